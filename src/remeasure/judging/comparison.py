"""How a measurement compares with the record that was there before, or with another machine's: by predictions, or
statistically.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from remeasure.judging.reader import read_row
from remeasure.judging.records import RowResults
from remeasure.judging.verdict import agree
from remeasure.spec.base import InputError
from remeasure.spec.record import RunRecord
from remeasure.system.formats import Array

Outcome = Literal["identical", "equal within noise", "different", "not compared"]
_CAMPAIGN = ("spec_sha256", "data_sha256", "device_kind", "own_code_sha256")


def same_campaign(old: RowResults, new: RowResults) -> bool:
    """Whether both have one spec, one data fingerprint, one device kind and one code of the user's own."""
    first, other = old.records[0], new.records[0]
    return all(getattr(first, key) == getattr(other, key) for key in _CAMPAIGN)


def differing(old: RowResults, new: RowResults) -> dict[int, int]:
    """For each seed that both have: the number of test images that they predict differently; all if one diverged."""
    before, after = _predictions(old), _predictions(new)
    shared = sorted({record.seed for record in old.records} & {record.seed for record in new.records})
    return {seed: _num_different(before.get(seed), after.get(seed), num=new.records[0].num_test) for seed in shared}


def compare(old: RowResults, new: RowResults, *, confidence: float) -> str:
    """A sentence about the seeds of `new` that are other runs than those of `old`; "" if it has none.

    Seeds that both have, of one spec on one kind of device, are compared prediction by prediction. Other seeds, another
    spec or another device are compared by Welch's t-test, which needs two seeds on each side.
    """
    runs = {(record.seed, record.finished_at) for record in old.records}
    others = [record for record in new.records if (record.seed, record.finished_at) not in runs]
    if not others:
        return ""
    if not same_campaign(old, new):
        return _welch(old.records, others, confidence=confidence)
    seeds = {record.seed for record in others}
    different = {seed: num for seed, num in differing(old, new).items() if seed in seeds}
    if not different:
        return _welch(old.records, others, confidence=confidence)
    sentences = [_identical(different, num_test=others[0].num_test)]
    if any(different.values()) and {record.device for record in old.records} != {record.device for record in others}:
        sentences.append(_welch(old.records, others, confidence=confidence))
    return "; ".join(filter(None, sentences))


def _predictions(results: RowResults) -> dict[int, Array]:
    return dict(zip(results.seeds.tolist(), results.predicted, strict=True))


def _num_different(before: Array | None, after: Array | None, *, num: int) -> int:
    if before is None or after is None:
        return 0 if before is after else num
    return int(np.count_nonzero(before != after)) if before.shape == after.shape else num


def _identical(different: dict[int, int], *, num_test: int) -> str:
    """Such as "38 of 40 seeds identical to the committed ones; up to 12 of 10000 predictions differ in seeds 3, 7"."""
    changed = [seed for seed, num in different.items() if num]
    said = f"{len(different) - len(changed)} of {len(different)} seeds identical to the committed ones"
    if not changed:
        return said
    named = ", ".join(map(str, changed[:5])) + (", …" if len(changed) > 5 else "")
    return f"{said}; up to {max(different.values())} of {num_test} predictions differ in seeds {named}"


def _welch(old: Sequence[RunRecord], new: Sequence[RunRecord], *, confidence: float) -> str:
    """Such as "97.912 % (5 seeds) before, 97.907 % (5 seeds) now: they agree (Welch's t-test, p = 0.871)"."""
    before, after = _accuracies(old), _accuracies(new)
    if len(before) < 2 or len(after) < 2:
        return ""
    p_value, same = agree(before, after, num_test=new[0].num_test, confidence=confidence)
    outcome = "agree" if same else "differ"
    return f"{_mean(before)} before, {_mean(after)} now: they {outcome} (Welch's t-test, p = {p_value:.3f})"


def _mean(accuracies: Sequence[float]) -> str:
    return f"{statistics.fmean(accuracies):.3f} % ({len(accuracies)} seeds)"


def _accuracies(records: Sequence[RunRecord]) -> list[float]:
    """In percent, of the seeds that did not diverge."""
    return [record.accuracy_percent for record in records if record.accuracy_percent is not None]


# ---------------------------------------------------------------- two results folders


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row in two results folders. `differences`: a line for each thing that differs around the numbers."""

    row: str
    outcome: Outcome
    evidence: str
    differences: tuple[str, ...] = ()


def compare_folders(first: Path, second: Path, *, confidence: float) -> list[Compared]:
    """Each row that one of two results folders has a record of. InputError: no such folder, or faulty files."""
    names = set[str]()
    for results in (first, second):
        if (inside := results / "results").is_dir():
            raise InputError(f"{results}: a project, not its results folder; name {inside}")
        if not (results / "runs").is_dir():
            raise InputError(f"{results}: no results folder; it has no runs/")
        names |= {path.stem for path in (results / "runs").glob("*.csv")}
    compared = []
    for name in sorted(names):
        old, new = read_row(first, row=name), read_row(second, row=name)
        if old and new:
            compared.append(_compared(old, new, confidence=confidence))
        elif old or new:
            where = second if old else first
            compared.append(Compared(row=name, outcome="not compared", evidence=f"{where} has no record of it"))
    return compared


def _compared(old: RowResults, new: RowResults, *, confidence: float) -> Compared:
    """Seeds that both have, on the same data, prediction by prediction; if one differs, all seeds by Welch's t-test."""
    same_data = old.records[0].data_sha256 == new.records[0].data_sha256
    changed, evidence = differing(old, new) if same_data else {}, list[str]()
    if changed:
        num_same = sum(not num for num in changed.values())
        evidence.append(f"{num_same} of {len(changed)} shared seeds have identical predictions")
    accuracies = [_accuracies(group.records) for group in (old, new)]
    outcome: Outcome
    if changed and not any(changed.values()):
        outcome = "identical"
    elif min(map(len, accuracies)) < 2:
        outcome = "not compared"
        evidence.append("fewer than two seeds with a score on a side, too few for a test")
    else:
        p_value, same = agree(*accuracies, num_test=new.records[0].num_test, confidence=confidence)
        outcome = "equal within noise" if same else "different"
        evidence.append(f"{' and '.join(map(_mean, accuracies))}, Welch's t-test, p = {p_value:.3f}")
    differences = tuple(_around(old, new))
    return Compared(row=old.row, outcome=outcome, evidence="; ".join(evidence), differences=differences)


def _around(old: RowResults, new: RowResults) -> Iterator[str]:
    """What differs in data, device, commit, spec and environment: "key: first → second"."""
    groups = (old, new)
    for key in ("data_sha256", "device_kind", "commit"):
        yield from _difference(key, *([getattr(record, key) for record in group.records] for group in groups))
    specs = [[dict(flat(group.spec))] for group in groups]
    environments = [[dict(flat(each)) for each in group.environments.values()] for group in groups]
    for what, sides in {"spec": specs, "environment": environments}.items():
        for key in dict.fromkeys(key for side in sides for each in side for key in each):
            yield from _difference(f"{what} {key}", *([each.get(key) for each in side] for side in sides))


def _difference(what: str, before: Sequence[object], after: Sequence[object]) -> Iterator[str]:
    first, second = (", ".join(sorted({str(value) for value in values})) for values in (before, after))
    if first != second:
        yield f"{what}: {first} → {second}"


def flat(value: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each plain value in nested mappings."""
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            yield from flat(entry, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry
