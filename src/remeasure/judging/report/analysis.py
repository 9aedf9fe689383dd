"""What the page computes from predictions and the test split's labels: confusion, calibration, mistakes, paired tests.

Shapes: `predicted` (S, N) integer and `confidence` (S, N) float in [0, 1] of S seeds on N test items, `labels` (N,).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import bdtr

from remeasure.judging.records import RowResults
from remeasure.system.formats import Array

NUM_BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class TestSplit:
    """A data set's official test split: `labels` (N,), `images` (N, C, H, W) uint8 or None, and class names."""

    __test__ = False  # pytest: not a class of tests

    labels: Array
    images: Array | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`bins`: mean confidence, accuracy and share of the items, each in [0, 1], of each bin that is not empty."""

    bins: tuple[tuple[float, float, float], ...]
    ece_percent: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A test item that seeds got wrong. `answer`: the most frequent wrong class.

    `num_seeds`: how many gave that answer; `confidence`: their mean probability of it.
    """

    index: int
    truth: int
    answer: int
    num_seeds: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows on the same test items, by one seed each: how many items only one of them has right, and McNemar's p."""

    first: str
    second: str
    only_first: int
    only_second: int
    difference_pp: float
    p_value: float


def fits(group: RowResults, labels: Array) -> bool:
    """Whether each seed's number of correct predictions by these labels is the recorded one."""
    if labels.shape != group.predicted.shape[1:]:
        return False
    recorded = [record.num_correct for record in group.records if record.num_correct is not None]
    return bool(np.array_equal((group.predicted == labels).sum(axis=1), recorded))


def confusion(predicted: Array, *, labels: Array, num_classes: int) -> Array:
    """(K, K) float: how many items of class i (row) a seed takes for class j (column), mean over the seeds."""
    cells = (labels.astype(np.int64) * num_classes + predicted).ravel()
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return np.asarray(counts / len(predicted))


def calibration(predicted: Array, *, confidence: Array, labels: Array) -> Calibration:
    """In `NUM_BINS` bins of equal width, over all seeds together; the ECE is the mean of the seeds' own.

    ECE = Σ_b n_b/N · |accuracy_b - confidence_b| (Naeini et al. 2015; Guo et al. 2017, Eq. 3).
    """
    right, sure = predicted == labels, confidence.astype(np.float64)
    seeds = np.arange(len(sure))[:, None]
    at = (seeds * NUM_BINS + np.minimum((sure * NUM_BINS).astype(np.int64), NUM_BINS - 1)).ravel()
    num, hits, sums = (
        np.bincount(at, weights, minlength=len(sure) * NUM_BINS).reshape(len(sure), NUM_BINS)
        for weights in (None, right.ravel(), sure.ravel())
    )
    ece = np.abs(hits - sums).sum(axis=1) / labels.size
    total = num.sum(axis=0)
    bins = tuple(
        (float(sums[:, b].sum() / total[b]), float(hits[:, b].sum() / total[b]), float(total[b] / total.sum()))
        for b in np.flatnonzero(total)
    )
    return Calibration(bins=bins, ece_percent=100 * float(ece.mean()))


def most_confidently_wrong(predicted: Array, *, confidence: Array, labels: Array, num: int) -> list[Mistake]:
    """Up to `num` items, by the confidence in wrong answers, mean over all seeds (0 for a seed that is right)."""
    wrong = predicted != labels
    weight = np.where(wrong, confidence, 0).sum(axis=0, dtype=np.float64)
    order = np.argsort(-weight, kind="stable")[:num]
    return [
        _mistake(int(index), predicted=predicted[:, index], confidence=confidence[:, index], truth=int(labels[index]))
        for index in order
        if weight[index] > 0
    ]


def _mistake(index: int, *, predicted: Array, confidence: Array, truth: int) -> Mistake:
    """`predicted` (S,) and `confidence` (S,) of this item."""
    answer = int(np.bincount(predicted[predicted != truth]).argmax())
    sure = confidence[predicted == answer].astype(np.float64)
    return Mistake(index=index, truth=truth, answer=answer, num_seeds=len(sure), confidence=float(sure.mean()))


def pairs(right: dict[str, Array]) -> Iterator[Pair]:
    """Each two of these rows, in their order. `right`: by row, which of the same N test items one seed has right (N,).

    p: exact, two-sided: under equal accuracy the items that only one has right are split as by a fair coin
    (McNemar 1947, Psychometrika 12:153).
    """
    for first, second in combinations(right, 2):
        b, c = (int((right[one] & ~right[other]).sum()) for one, other in ((first, second), (second, first)))
        yield Pair(
            first=first,
            second=second,
            only_first=b,
            only_second=c,
            difference_pp=100 * (b - c) / right[first].size,
            p_value=min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))),
        )
