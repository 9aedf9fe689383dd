"""How a measurement compares with the record that was there before: by predictions, or statistically."""

import statistics
from collections.abc import Sequence

import numpy as np

from remeasure.judging.records import RowResults
from remeasure.judging.verdict import agree
from remeasure.spec.record import RunRecord
from remeasure.system.formats import Array

_CAMPAIGN = ("spec_sha256", "data_sha256", "device_kind")


def same_campaign(old: RowResults, new: RowResults) -> bool:
    """Whether both have one spec, one data fingerprint and one device kind."""
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
    before, after = (
        [record.accuracy_percent for record in records if record.accuracy_percent is not None] for records in (old, new)
    )
    if len(before) < 2 or len(after) < 2:
        return ""
    p_value, same = agree(before, after, num_test=new[0].num_test, confidence=confidence)
    means = [f"{statistics.fmean(values):.3f} % ({len(values)} seeds)" for values in (before, after)]
    outcome = "agree" if same else "differ"
    return f"{means[0]} before, {means[1]} now: they {outcome} (Welch's t-test, p = {p_value:.3f})"
