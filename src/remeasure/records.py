"""The measured rows under results/: what the files of a row hold, and what they may not contradict.

A measured row is a group of files that stand or fall together (paths are relative to results/):

    runs/<row>.csv              the RunRecords, one line a seed; a header alone where the row has no record yet
    predictions/<row>.npz       seeds (S,) int64, predicted (S, N) smallest unsigned, confidence (S, N) float16
    curves/<row>.csv            the CurvePoints
    filters/<row>.npz           weights float16: the first layer's weights of seed 0; empty where there is no such seed
    findings/<row>.csv          the FoundPoints; no such file where the doctor found nothing
    specs/<row>.yaml            the resolved RunSpec
    environments/<sha256>.json  versions and machine; rows measured in the same environment share it
    sums/<row>.sha256           the seal: the SHA-256 of each file above, for `sha256sum --check` inside results/
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from remeasure.encoding import (
    Array,
    decode_csv,
    decode_json,
    decode_npz,
    decode_yaml,
    encode_csv,
    encode_json,
    encode_npz,
    encode_yaml,
    mismatch,
    refuse,
)
from remeasure.findings import Finding, recorded
from remeasure.spec import InputError, RunRecord, canonical_json, gathered, spec_sha256
from remeasure.storage import read_bytes, write_atomic

FOLDERS = ("runs", "predictions", "curves", "filters", "findings", "specs", "environments", "sums")
_SHA256 = re.compile("[0-9a-f]{64}")
_SEALED = re.compile(rf"^([0-9a-f]{{64}})  ((?:{'|'.join(FOLDERS)})/[\w.-]+)$", re.MULTILINE)  # a line of a seal
_SAME_IN_ALL_SEEDS = ("spec_sha256", "training_version", "num_test", "num_params", "device_kind", "data_sha256")
_SCORES = ("accuracy_percent", "num_correct", "loss", "predicted_sha256")  # all None where the seed diverged
_PREDICTION_TYPES = {"seeds": ("<i8",), "predicted": ("|u1", "<u2", "<u4"), "confidence": ("<f2",)}


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One line of results/curves/<row>.csv, whose columns are these fields in this order. None: not a finite number."""

    row: str
    seed: int
    epoch: int
    split: Literal["train", "test", "validation"]
    loss: float | None
    accuracy_percent: float | None
    lr: float | None


@dataclass(frozen=True, kw_only=True)
class FoundPoint:
    """One line of results/findings/<row>.csv, whose columns are these fields in this order (findings.Finding)."""

    row: str
    seed: int
    finding: str
    evidence: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RowResults:
    """All that was measured for one row: S seeds that have predictions, N test items in the test split's order.

    `seeds` (S,) integer: those of `records`, without the seeds that diverged. `predicted` (S, N) integer. `confidence`
    (S, N) float in [0, 1]: the predicted class's probability. `filters`: float, any shape. `spec`: asdict(RunSpec).
    `environments`: versions_sha256 to content. `curves`: for each of the S seeds, its last test point is its record's.
    InputError, one line for each fault, where these contradict each other.
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

    def __post_init__(self) -> None:
        refuse(_group_faults(self))

    def to_files(self) -> dict[str, bytes]:
        """The group: relative path to content, the seal last."""
        predictions = {
            "seeds": self.seeds.astype("<i8"),
            "predicted": _smallest_unsigned(self.predicted),
            "confidence": self.confidence.astype("<f2"),
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
        return {**files, f"sums/{self.row}.sha256": _seal(files, row=self.row)}


def predicted_sha256(predicted: Array) -> str:
    """SHA-256 over one seed's predicted classes (N,): the bytes of the smallest unsigned type that holds them all.

    Little-endian; the same whatever integer type the array comes in. ValueError: a class below 0.
    """
    return hashlib.sha256(_smallest_unsigned(predicted).tobytes()).hexdigest()


def environment_sha256(environment: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of an environment: its `versions_sha256` and its file's name."""
    return hashlib.sha256(canonical_json(environment).encode()).hexdigest()


def _smallest_unsigned(values: Array) -> Array:
    if values.size and values.min() < 0:
        raise ValueError(f"predicted: expected classes from 0 up, got {values.min()}")
    dtype = np.min_scalar_type(int(values.max()) if values.size else 0)
    return values.astype(dtype.newbyteorder("<"))


# ---------------------------------------------------------------- reading


def read_runs(results: Path, *, row: str) -> list[RunRecord]:
    """The row's records, rising by seed; none where its runs file is absent or a header alone, and there is no seal.

    InputError with one line for each fault; each names the file, the line and the column, or that it is not as sealed.
    """
    name, faults, records = f"runs/{row}.csv", list[str](), list[RunRecord]()
    there = (results / name).exists()
    data = read_bytes(results / name) if there else b""
    with _faults_in(results):
        with gathered(faults):
            records = decode_csv(data, cls=RunRecord, name=name) if there else []
            refuse(_record_faults(records, row=row))
            if not records and (results / f"sums/{row}.sha256").exists():
                raise InputError(mismatch(name, expected="the sealed records", found="none"))
        refuse([*faults, *_altered(results, row=row, folder="runs")])
    return records


def read_findings(results: Path, *, row: str) -> list[FoundPoint]:
    """What the doctor found in the row's seeds. InputError: the file is altered, or cannot be read."""
    name = f"findings/{row}.csv"
    if not _has_findings(results, row=row):
        return []
    with _faults_in(results):
        refuse(_altered(results, row=row, folder="findings"))
        return decode_csv(read_bytes(results / name), cls=FoundPoint, name=name)


def by_finding(points: Sequence[FoundPoint]) -> Iterator[tuple[Finding, list[FoundPoint]]]:
    """Each finding with the evidence of the first seed that has it, and the points of all that have it."""
    for name in dict.fromkeys(point.finding for point in points):
        own = [point for point in points if point.finding == name]
        yield recorded(name, own[0].evidence), own


def read_row(results: Path, *, row: str) -> RowResults | None:
    """The row's whole group, checked against its seal and against itself; None for a row without a record.

    InputError: a file is missing, altered, unreadable, or contradicts another; one line for each fault.
    """
    try:
        records = read_runs(results, row=row)
        files = _read_files(results, row=row, records=records)
    except InputError as error:
        altered = (f"{results}/{fault}" for fault in _altered(results, row=row))
        raise InputError(*dict.fromkeys([*error.faults, *altered])) from None
    if not records:
        return None
    with _faults_in(results):
        faults = list(_seal_faults(files, row=row))
        with gathered(faults):
            group = _parse(files, row=row, records=records)
        refuse(faults)
    return group


def _read_files(results: Path, *, row: str, records: Sequence[RunRecord]) -> dict[str, bytes]:
    """The content of the group's files. InputError: all that are not there, or cannot be read."""
    faults, files = list[str](), dict[str, bytes]()
    for name in row_files(row, records=records, found=_has_findings(results, row=row)) if records else ():
        if not (results / name).exists():
            expected = f"a file, as {results}/runs/{row}.csv has it"
            faults.append(mismatch(f"{results}/{name}", expected=expected, found="none"))
            continue
        with gathered(faults):
            files[name] = read_bytes(results / name)
    refuse(faults)
    return files


def _has_findings(results: Path, *, row: str) -> bool:
    """Whether the row has a findings file, or its seal says that it should."""
    name, seal = f"findings/{row}.csv", results / f"sums/{row}.sha256"
    return (results / name).exists() or (seal.is_file() and f"  {name}\n".encode() in read_bytes(seal))


@contextmanager
def _faults_in(results: Path) -> Iterator[None]:
    """Begin each fault with the folder that its file lies in."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{results}/{fault}" for fault in error.faults)) from None


def row_files(row: str, *, records: Iterable[RunRecord], found: bool) -> list[str]:
    """Relative paths of the group that these records belong to, the seal last; `found`: the doctor found something."""
    return [
        *([f"findings/{row}.csv"] if found else []),
        *(f"environments/{version}.json" for version in sorted({record.versions_sha256 for record in records})),
        *(f"specs/{row}.yaml", f"filters/{row}.npz", f"curves/{row}.csv", f"predictions/{row}.npz", f"runs/{row}.csv"),
        f"sums/{row}.sha256",
    ]


def ensure_header(results: Path, *, row: str) -> None:
    """Give a row without a record its runs file, a header alone; leave any other runs file as it is."""
    path = results / "runs" / f"{row}.csv"
    if not path.exists():
        write_atomic(path, encode_csv([], cls=RunRecord))


def _parse(files: Mapping[str, bytes], *, row: str, records: Sequence[RunRecord]) -> RowResults:
    predictions, curves, filters, spec = (
        f"predictions/{row}.npz",
        f"curves/{row}.csv",
        f"filters/{row}.npz",
        f"specs/{row}.yaml",
    )
    findings = f"findings/{row}.csv"
    faults, parts, environments = list[str](), dict[str, Any](), dict[str, Any]()
    with gathered(faults):
        parts |= decode_npz(files[predictions], name=predictions, dtypes=_PREDICTION_TYPES)
    with gathered(faults):
        parts["curves"] = tuple(decode_csv(files[curves], cls=CurvePoint, name=curves))
    with gathered(faults):
        parts["findings"] = tuple(
            decode_csv(files[findings], cls=FoundPoint, name=findings) if findings in files else ()
        )
    with gathered(faults):
        parts["filters"] = decode_npz(files[filters], name=filters, dtypes={"weights": ("<f2",)})["weights"]
    with gathered(faults):
        parts["spec"] = decode_yaml(files[spec], name=spec)
    for name in (name for name in files if name.startswith("environments/")):
        with gathered(faults):
            environments[Path(name).stem] = decode_json(files[name], name=name)
    refuse(faults)
    return RowResults(row=row, records=tuple(records), environments=environments, **parts)


# ---------------------------------------------------------------- what may not contradict what


def _group_faults(group: RowResults) -> Iterator[str]:
    yield from _record_faults(group.records, row=group.row)
    yield from _prediction_faults(group)
    yield from _curve_faults(group)
    yield from _finding_faults(group)
    yield from _spec_faults(group)
    yield from _environment_faults(group)
    if not np.isfinite(group.filters).all():
        yield f"filters/{group.row}.npz, weights: expected finite numbers"


def _record_faults(records: Sequence[RunRecord], *, row: str) -> Iterator[str]:
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
    for column in ("spec_sha256", "data_sha256", "versions_sha256", "predicted_sha256"):
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
    shapes = {key: getattr(group, key).shape for key in ("predicted", "confidence")}
    for key, found in shapes.items():
        if found != shape:
            yield mismatch(f"{name}, shape of {key}", expected=shape, found=found)
    if not shapes["predicted"]:  # a single number: there is nothing to go through
        return
    for record, predicted in zip(scored, group.predicted, strict=False):  # a length that differs is a fault above
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


def _environment_faults(group: RowResults) -> Iterator[str]:
    wanted = sorted({record.versions_sha256 for record in group.records})
    if sorted(group.environments) != wanted:
        yield mismatch(f"environments of {group.row}", expected=wanted, found=sorted(group.environments))
    for version, content in group.environments.items():
        try:
            found = environment_sha256(content)
        except (ValueError, RecursionError) as error:  # NaN, half of a surrogate pair
            found = str(error)
        if found != version:
            yield mismatch(f"environments/{version}.json, SHA-256 of its content", expected=version, found=found)


# ---------------------------------------------------------------- the seal: what no other check reaches


def _seal(files: Mapping[str, bytes], *, row: str) -> bytes:
    return _seal_of({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, row=row)


def _seal_of(sums: Mapping[str, str], *, row: str) -> bytes:
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
    return f"# Generated by remeasure. Inside results/: sha256sum --check sums/{row}.sha256\n{lines}".encode()


def _altered(results: Path, *, row: str, folder: str = "") -> Iterator[str]:
    """The row's files in this folder, or in all, that are there and not as its seal says; or a seal that is none."""
    seal = f"sums/{row}.sha256"
    if not (results / seal).exists():
        return
    try:
        content = read_bytes(results / seal)
    except InputError as error:
        yield from (fault.removeprefix(f"{results}/") for fault in error.faults)
        return
    sealed = _SEALED.findall(content.decode(errors="replace"))
    sums = {name: sha256 for sha256, name in sealed}
    found = (results / f"findings/{row}.csv").exists()
    least = set(row_files(row, records=(), found=found)) - {seal}
    if not least < sums.keys() or content != _seal_of(sums, row=row):  # there is an environment, too
        yield f"{seal}: not as remeasure writes it"
    for sha256, name in sealed:
        path = results / name
        if name.startswith(folder) and path.is_file() and hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
            yield f"{name}: differs from the SHA-256 that {seal} gives for it"


def _seal_faults(files: Mapping[str, bytes], *, row: str) -> Iterator[str]:
    """The files that differ from what the seal says, or the seal itself if it is not a seal of these files."""
    seal = f"sums/{row}.sha256"
    expected = _seal({name: data for name, data in files.items() if name != seal}, row=row).splitlines(keepends=True)
    sealed = files[seal].splitlines(keepends=True)
    altered = [line.split()[1].decode() for line in expected[1:] if line not in sealed]
    yield from (f"{name}: differs from the SHA-256 that {seal} gives for it" for name in altered)
    if not altered and sealed != expected:
        yield f"{seal}: not as remeasure writes it"
