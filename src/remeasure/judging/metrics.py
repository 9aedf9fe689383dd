"""The metric that a row's claim is about: its value of a seed, in percent, and the evidence that `judge` takes."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from remeasure.judging.records import RowResults, from_results
from remeasure.judging.report.analysis import TestSplit, calibration, fits
from remeasure.spec.claim import Evidence, Metric, Row
from remeasure.spec.record import RunRecord
from remeasure.system.formats import Array
from remeasure.system.validation import counted


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """`title`: in words. `column`: of the RunRecord that it is computed from.

    `is_share`: it is the share of test images that a run has right or wrong, so that its seeds' sd is about that of the
    accuracy, and a Wilson interval applies.
    """

    title: str
    column: str
    is_share: bool = True


METRICS: Mapping[Metric, Meaning] = {
    "accuracy_percent": Meaning(title="accuracy", column="num_correct"),
    "error_percent": Meaning(title="error rate", column="num_correct"),
    "top5_percent": Meaning(title="top-5 accuracy", column="num_top5_correct"),
    "macro_f1_percent": Meaning(title="macro F1", column="macro_f1", is_share=False),
    "balanced_accuracy_percent": Meaning(title="balanced accuracy", column="balanced_accuracy", is_share=False),
}


def unit(row: Row) -> str:
    """Such as " (macro F1)", which follows the row's numbers; "" for accuracy."""
    return "" if row.metric == "accuracy_percent" else f" ({METRICS[row.metric].title})"


def num_decimals(row: Row) -> int:
    """Of what was measured, where a person reads it: those of the claim, and two at least."""
    return max(2, row.published.num_digits)


def missing(row: Row, *, records: Sequence[RunRecord]) -> str:
    """Why these records cannot give the row's metric: they are older, or of another claim; "" if they can."""
    meaning = METRICS[row.metric]
    if all(getattr(record, meaning.column) is not None for record in records if record.num_correct is not None):
        return ""
    return f"its records hold no {meaning.title}; `make reproduce ROWS={row.name}` measures it"


def percent(record: RunRecord, *, metric: Metric) -> float | None:
    """None: the seed diverged, or the record does not hold it."""
    if metric == "accuracy_percent":
        return record.accuracy_percent
    images = _images(record, metric=metric)
    return None if images is None else 100 * images / record.num_test


def evidence(records: Sequence[RunRecord], *, metric: Metric, num_test: int) -> Evidence:
    """What `judge` takes. Of a metric that is no share of the images it is the metric times their number."""
    return Evidence(num_correct={record.seed: _images(record, metric=metric) for record in records}, num_test=num_test)


def _images(record: RunRecord, *, metric: Metric) -> float | None:
    value: float | None = getattr(record, METRICS[metric].column)
    if value is None or METRICS[metric].is_share:
        return record.num_test - value if value is not None and metric == "error_percent" else value
    return value * record.num_test


def told(row: Row, *, group: RowResults | None, split: TestSplit | None) -> Iterator[str]:
    """A line for each metric of a row's predictions, mean and floored sd over its seeds, and for each class its recall;
    or why there is none.
    """
    if group is None or not len(group.seeds):
        yield f"{row.name}: no predictions yet"
    elif split is None or not fits(group, split.labels):
        yield f"{row.name}: the test labels of {row.data} are not here, or do not give the recorded accuracies"
    else:
        yield f"{row.name}, {counted(len(group.seeds), 'seed')}:"
        yield from (f"  {line}" for line in _told(group, labels=split.labels, classes=split.classes))


def _told(group: RowResults, *, labels: Array, classes: Sequence[str]) -> Iterator[str]:
    scored = [part for part in from_results(group) if part.predicted is not None]
    seeds = [of_predictions(np.asarray(part.predicted), labels=labels, top5=part.top5) for part in scored]
    for metric, meaning in METRICS.items():
        if all(meaning.column in seed for seed in seeds):
            whole = len(labels) if meaning.is_share else 1
            percents = [100 * seed[meaning.column] / whole for seed in seeds]
            told = [100 - each for each in percents] if metric == "error_percent" else percents
            yield f"{meaning.title}: {_spread(told, num_test=len(labels))}"
    calibrated = calibration(group.predicted, confidence=group.confidence, labels=labels)
    yield f"expected calibration error: {calibrated.ece_percent:.3f} %"
    for number in np.unique(labels).tolist():
        recalls = 100 * np.mean(group.predicted[:, labels == number] == number, axis=1)
        spread = _spread(recalls.tolist(), num_test=int(np.count_nonzero(labels == number)))
        yield f"class {classes[number] if classes else number}: {spread}"


def _spread(percents: Sequence[float], *, num_test: int) -> str:
    sd = f" ± {floored_sd(percents, num_test=num_test):.3f}" if len(percents) > 1 else ""
    return f"{statistics.fmean(percents):.3f}{sd} %"


def floored_sd(percents: Sequence[float], *, num_test: int) -> float:
    """The sample standard deviation, at least that of one step of 100/num_test: 100/(num_test·√12)."""
    return max(statistics.stdev(percents), 100 / (num_test * math.sqrt(12)))


def of_predictions(predicted: Array, *, labels: Array, top5: Array | None) -> dict[str, float]:
    """A seed's columns of METRICS, from its classes (N,), their labels (N,) and, for top-5, (N, 5) classes.

    With tp, fp and fn of each class, F1 = 2·tp/(2·tp + fp + fn) and recall = tp/(tp + fn); the means over the classes
    leave out those that neither labels nor predictions have, and for recall those that no label has.
    """
    num_classes = 1 + int(max(labels.max(), predicted.max()))
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    right, support, taken = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    occurs, has_images = support + taken > 0, support > 0
    found = {
        "num_correct": int(right.sum()),
        "macro_f1": float(np.mean(2 * right[occurs] / (support + taken)[occurs])),
        "balanced_accuracy": float(np.mean(right[has_images] / support[has_images])),
    }
    return found if top5 is None else {**found, "num_top5_correct": int((top5 == labels[:, None]).any(axis=1).sum())}
