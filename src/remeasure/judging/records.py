"""The files of a measured row under results/: their contents, and the checks that they agree with each other.

A measured row is a group of files that are valid only together (paths are relative to results/):

    runs/<row>.csv              the RunRecords, one line a seed; only a header where the row has no record yet
    predictions/<row>.npz       seeds (S,) int64, predicted (S, N) smallest unsigned, confidence (S, N) float16;
                                top5 (S, N, min(5, K)) smallest unsigned where the claim is about top-5
    curves/<row>.csv            the CurvePoints
    filters/<row>.npz           weights float16: the first layer's weights of the lowest seed; empty where it diverged
    findings/<row>.csv          the FoundPoints; no such file where the doctor found nothing
    specs/<row>.yaml            the resolved RunSpec
    environments/<sha256>.json  versions and machine; rows measured in the same environment share it
    sums/<row>.sha256           the seal: the SHA-256 of each file above, for `sha256sum --check` inside results/
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from remeasure.spec.base import canonical_sha256, refuse
from remeasure.spec.findings import Finding, finding
from remeasure.spec.record import CurvePoint, FoundPoint, RunRecord
from remeasure.spec.run import spec_sha256
from remeasure.system.formats import (
    Array,
    encode_csv,
    encode_json,
    encode_npz,
    encode_yaml,
    mismatch,
    predicted_sha256,
    smallest_unsigned,
)

FOLDERS = ("runs", "predictions", "curves", "filters", "findings", "specs", "environments", "sums")
_SHA256 = re.compile("[0-9a-f]{64}")
_SAME_IN_ALL_SEEDS = (
    "spec_sha256",
    "training_version",
    "num_test",
    "num_params",
    "device_kind",
    "data_sha256",
    "own_code_sha256",
)
_SCORES = ("accuracy_percent", "num_correct", "loss", "predicted_sha256")  # all None where the seed diverged


@dataclass(frozen=True, kw_only=True, eq=False)
class RowResults:
    """All that was measured for one row: S seeds that have predictions, N test items in the test split's order.

    `seeds` (S,) integer: those of `records`, without the seeds that diverged. `predicted` (S, N) integer. `confidence`
    (S, N) float in [0, 1]: the predicted class's probability. `top5` (S, N, min(5, K)) integer: the most probable
    classes; None where no seed's `num_top5_correct` is recorded. `filters`: float, any shape. `spec`: asdict(RunSpec).
    `environments`: versions_sha256 to content. `curves`: the last test point of each of the S seeds has its record's
    accuracy. InputError, one line for each fault, where these contradict each other.
    """

    row: str
    records: tuple[RunRecord, ...]
    seeds: Array
    predicted: Array
    confidence: Array
    curves: tuple[CurvePoint, ...]
    filters: Array
    spec: Mapping[str, Any]
    environments: Mapping[str, Mapping[str, Any]]
    findings: tuple[FoundPoint, ...] = ()
    top5: Array | None = None

    def __post_init__(self) -> None:
        refuse(_group_faults(self))

    def to_files(self) -> dict[str, bytes]:
        """The group: relative path to content, the seal last."""
        predictions = {
            "seeds": self.seeds.astype("<i8"),
            "predicted": smallest_unsigned(self.predicted),
            "confidence": self.confidence.astype("<f2"),
            **({} if self.top5 is None else {"top5": smallest_unsigned(self.top5)}),
        }
        files = {
            **{f"environments/{key}.json": encode_json(value) for key, value in sorted(self.environments.items())},
            f"specs/{self.row}.yaml": encode_yaml(self.spec),
            f"filters/{self.row}.npz": encode_npz({"weights": self.filters.astype("<f2")}),
            f"curves/{self.row}.csv": encode_csv(self.curves, cls=CurvePoint),
            **({f"findings/{self.row}.csv": encode_csv(self.findings, cls=FoundPoint)} if self.findings else {}),
            f"predictions/{self.row}.npz": encode_npz(predictions),
            f"runs/{self.row}.csv": encode_csv(self.records, cls=RunRecord),
        }
        return {**files, f"sums/{self.row}.sha256": seal_of_files(files, row=self.row)}


# ---------------------------------------------------------------- reading


def by_finding(points: Sequence[FoundPoint]) -> Iterator[tuple[Finding, list[FoundPoint]]]:
    """Each finding with the evidence of the first seed that has it, and the points of all seeds that have it."""
    for name in dict.fromkeys(point.finding for point in points):
        own = [point for point in points if point.finding == name]
        yield finding(name, own[0].evidence), own


def row_files(row: str, *, records: Iterable[RunRecord], found: bool) -> list[str]:
    """Relative paths of the group that these records belong to, the seal last; `found`: the doctor found something."""
    return [
        *([f"findings/{row}.csv"] if found else []),
        *(f"environments/{version}.json" for version in sorted({record.versions_sha256 for record in records})),
        *(f"specs/{row}.yaml", f"filters/{row}.npz", f"curves/{row}.csv", f"predictions/{row}.npz", f"runs/{row}.csv"),
        f"sums/{row}.sha256",
    ]


# ---------------------------------------------------------------- do the files agree


def _group_faults(group: RowResults) -> Iterator[str]:
    yield from record_faults(group.records, row=group.row)
    yield from _prediction_faults(group)
    yield from _curve_faults(group)
    yield from _finding_faults(group)
    yield from _spec_faults(group)
    yield from _environment_faults(group)
    if not np.isfinite(group.filters).all():
        yield f"filters/{group.row}.npz, weights: expected finite numbers"


def record_faults(records: Sequence[RunRecord], *, row: str) -> Iterator[str]:
    for line, record in enumerate(records, start=2):
        for column, expected, found in _cell_faults(record, row=row, first=records[0]):
            yield mismatch(f"runs/{row}.csv, line {line}, column {column}", expected=expected, found=found)
    seeds = [record.seed for record in records]
    if seeds != sorted(set(seeds)):
        yield mismatch(f"runs/{row}.csv, column seed", expected="each seed once, rising", found=seeds)


def _cell_faults(record: RunRecord, *, row: str, first: RunRecord) -> Iterator[tuple[str, object, object]]:
    """Column, what it should hold, and what it holds."""
    if record.row != row:
        yield "row", row, record.row
    for column in ("seed", "training_version", "num_params", "epochs", "wall_seconds"):
        if getattr(record, column) < 0:
            yield column, "0 or more", getattr(record, column)
    for column in _SAME_IN_ALL_SEEDS:
        if getattr(record, column) != getattr(first, column):
            yield column, f"{getattr(first, column)} as in the first line", getattr(record, column)
    for column in ("spec_sha256", "data_sha256", "versions_sha256", "predicted_sha256", "own_code_sha256"):
        if getattr(record, column) is not None and not _SHA256.fullmatch(getattr(record, column)):
            yield column, "64 hexadecimal digits", repr(getattr(record, column))
    if not _is_utc(record.finished_at):
        yield "finished_at", "a time in UTC such as 2026-11-22T14:05:09Z", repr(record.finished_at)
    yield from _score_faults(record)


def _score_faults(record: RunRecord) -> Iterator[tuple[str, object, object]]:
    empty = [column for column in _SCORES if getattr(record, column) is None]
    if record.num_test < 1:
        yield "num_test", "1 or more", record.num_test
    elif 0 < len(empty) < len(_SCORES):
        yield empty[0], f"a value, or none in any of {', '.join(_SCORES)}", "none"
    elif record.num_correct is not None and record.accuracy_percent is not None:
        expected, found = (f"{100 * record.num_correct / record.num_test:.3f}", f"{record.accuracy_percent:.3f}")
        if not 0 <= record.num_correct <= record.num_test:
            yield "num_correct", f"0 to {record.num_test}", record.num_correct
        elif found != expected:
            yield "accuracy_percent", f"{expected} (num_correct {record.num_correct} of {record.num_test})", found
    for column, most in (("num_top5_correct", record.num_test), ("macro_f1", 1), ("balanced_accuracy", 1)):
        value = getattr(record, column)
        if value is not None and (record.num_correct is None or not 0 <= value <= most):
            yield column, f"0 to {most}, and none for a seed that diverged", value


def _is_utc(text: str) -> bool:
    try:
        return f"{datetime.strptime(text, '%Y-%m-%dT%H:%M:%SZ'):%Y-%m-%dT%H:%M:%SZ}" == text
    except ValueError:
        return False


def _prediction_faults(group: RowResults) -> Iterator[str]:
    name = f"predictions/{group.row}.npz"
    scored = [record for record in group.records if record.predicted_sha256 is not None]
    seeds = [record.seed for record in scored]
    if group.seeds.tolist() != seeds:
        yield mismatch(f"{name}, seeds", expected=seeds, found=group.seeds.tolist())
    shape = (len(scored), group.records[0].num_test) if scored else group.predicted.shape
    for key in ("predicted", "confidence"):
        if (found := getattr(group, key).shape) != shape:
            yield mismatch(f"{name}, shape of {key}", expected=shape, found=found)
    if group.top5 is not None and group.top5.shape[:-1] != shape:
        yield mismatch(f"{name}, shape of top5", expected=(*shape, 5), found=group.top5.shape)
    if not group.predicted.ndim:  # a scalar array cannot be iterated
        return
    for record, predicted in zip(scored, group.predicted, strict=False):  # another length is a fault above
        if (sha256 := predicted_sha256(predicted)) != record.predicted_sha256:
            yield mismatch(f"{name}, SHA-256 of seed {record.seed}", expected=record.predicted_sha256, found=sha256)
    if not ((group.confidence >= 0) & (group.confidence <= 1)).all():  # false for NaN, too
        yield f"{name}, confidence: expected finite numbers in [0, 1]"


def _curve_faults(group: RowResults) -> Iterator[str]:
    name = f"curves/{group.row}.csv"
    for line, point in enumerate(group.curves, start=2):
        if point.row != group.row:
            yield mismatch(f"{name}, line {line}, column row", expected=group.row, found=point.row)
    tested = sorted((point for point in group.curves if point.split == "test"), key=lambda point: point.epoch)
    last = {point.seed: _percent(point.accuracy_percent) for point in tested}
    for record in group.records:
        expected, found = _percent(record.accuracy_percent), last.get(record.seed, "none")
        if record.accuracy_percent is not None and found != expected:
            yield mismatch(f"{name}, last test accuracy of seed {record.seed}", expected=expected, found=found)


def _finding_faults(group: RowResults) -> Iterator[str]:
    seeds = {record.seed for record in group.records}
    for line, point in enumerate(group.findings, start=2):
        name = f"findings/{group.row}.csv, line {line}, column"
        if point.row != group.row:
            yield mismatch(f"{name} row", expected=group.row, found=point.row)
        if point.seed not in seeds:
            yield mismatch(f"{name} seed", expected="a seed that has a record", found=point.seed)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _spec_faults(group: RowResults) -> Iterator[str]:
    name = f"specs/{group.row}.yaml"
    try:
        found = {"spec_sha256": spec_sha256(group.spec), **group.spec}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        yield f"{name}: expected a whole resolved spec ({type(error).__name__}: {error})"
        return
    for key in ("spec_sha256", "data_sha256", "training_version"):
        if found[key] != (expected := getattr(group.records[0], key)):
            yield mismatch(f"{name}, {key}", expected=f"{expected} as in runs/{group.row}.csv", found=found[key])
    most = group.spec["recipe"].get("epochs_total", 0)
    least = 1 if group.spec.get("callbacks") else most  # a callback may stop a training
    for record in group.records:
        if record.accuracy_percent is not None and not least <= record.epochs <= most:
            wanted = f"{most}, as specs/{group.row}.yaml says" if least == most else f"{least} to {most}"
            yield mismatch(f"runs/{group.row}.csv, seed {record.seed}, epochs", expected=wanted, found=record.epochs)


def _environment_faults(group: RowResults) -> Iterator[str]:
    wanted = sorted({record.versions_sha256 for record in group.records})
    if sorted(group.environments) != wanted:
        yield mismatch(f"environments of {group.row}", expected=wanted, found=sorted(group.environments))
    for version, content in group.environments.items():
        try:
            found = canonical_sha256(content)
        except (ValueError, RecursionError) as error:  # NaN, a lone surrogate
            found = str(error)
        if found != version:
            yield mismatch(f"environments/{version}.json, SHA-256 of its content", expected=version, found=found)


# ---------------------------------------------------------------- the seal: covers what no other check does


def seal_of_files(files: Mapping[str, bytes], *, row: str) -> bytes:
    return seal_of_sums({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, row=row)


def seal_of_sums(sums: Mapping[str, str], *, row: str) -> bytes:
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
    return f"# Generated by remeasure. Inside results/: sha256sum --check sums/{row}.sha256\n{lines}".encode()


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedResults:
    """One seed's part of a row. `predicted` and `confidence` (N,); they and `filters` are None if the seed diverged.

    `top5` (N, min(5, K)), for a claim about it. From results/ only the lowest seed has `filters`.
    """

    record: RunRecord
    predicted: npt.NDArray[Any] | None
    confidence: npt.NDArray[Any] | None
    filters: npt.NDArray[Any] | None
    curve: tuple[CurvePoint, ...]
    findings: tuple[FoundPoint, ...]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    top5: npt.NDArray[Any] | None = None


def from_results(results: RowResults) -> list[SeedResults]:
    """The seeds of a committed row."""
    index = {int(seed): position for position, seed in enumerate(results.seeds)}
    return [
        SeedResults(
            record=record,
            predicted=results.predicted[index[record.seed]] if record.seed in index else None,
            confidence=results.confidence[index[record.seed]] if record.seed in index else None,
            top5=results.top5[index[record.seed]] if results.top5 is not None and record.seed in index else None,
            filters=results.filters if record is results.records[0] and results.filters.size else None,
            curve=tuple(point for point in results.curves if point.seed == record.seed),
            findings=tuple(point for point in results.findings if point.seed == record.seed),
            spec=results.spec,
            environment=results.environments[record.versions_sha256],
        )
        for record in results.records
    ]


def put_together(row: str, *, seeds: Sequence[SeedResults]) -> RowResults:
    """The row of these seeds, sorted by seed. All share one spec, data set and device kind."""
    seeds = sorted(seeds, key=lambda part: part.record.seed)
    scored = [part.record.seed for part in seeds if part.predicted is not None]
    predicted = [part.predicted for part in seeds if part.predicted is not None]
    confidence = [part.confidence for part in seeds if part.confidence is not None]
    top5 = [part.top5 for part in seeds if part.top5 is not None]
    shape = (0, seeds[0].record.num_test)
    filters = seeds[0].filters
    return RowResults(
        row=row,
        records=tuple(part.record for part in seeds),
        seeds=np.array(scored, np.int64),
        predicted=np.stack(predicted) if scored else np.zeros(shape, np.uint8),
        confidence=np.stack(confidence) if scored else np.zeros(shape, np.float16),
        top5=np.stack(top5) if top5 and len(top5) == len(scored) else None,
        curves=tuple(point for part in seeds for point in part.curve),
        findings=tuple(point for part in seeds for point in part.findings),
        filters=np.zeros(0, np.float16) if filters is None else filters,
        spec=seeds[0].spec,
        environments={part.record.versions_sha256: part.environment for part in seeds},
    )
