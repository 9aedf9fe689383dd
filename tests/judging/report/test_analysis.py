"""What the page computes from predictions and labels: by hand, and against scikit-learn, torchmetrics, statsmodels."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from tests.support.measured import LABELS, group, record
from torchmetrics.functional.classification import multiclass_calibration_error

from remeasure.judging.report import analysis


def test_confusion_is_scikit_learns_in_the_mean_over_the_seeds() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, (3, 200)).astype(np.uint8)
    expected = np.mean([confusion_matrix(labels, seed) for seed in predicted], axis=0)
    np.testing.assert_allclose(analysis.confusion(predicted, labels=labels, num_classes=4), expected)


def test_calibration_by_hand() -> None:
    """Seed 0: 0.95, 0.95 right, 0.95 wrong: |2/3 - 0.95|; 0.5 wrong. Seed 1: as sure as it is right."""
    confidence = np.array([[0.95, 0.95, 0.95, 0.5], [1.0, 1.0, 1.0, 1.0]])
    predicted, labels = np.array([[0, 1, 0, 0], [0, 1, 1, 1]]), np.array([0, 1, 1, 1])
    found = analysis.calibration(predicted, confidence=confidence, labels=labels)
    first = (abs(2 - 2.85) + abs(0 - 0.5)) / 4
    assert found.ece_percent == pytest.approx(100 * (first + 0) / 2)
    np.testing.assert_allclose(found.bins, [(0.5, 0, 1 / 8), (6.85 / 7, 6 / 7, 7 / 8)])


def test_the_calibration_error_is_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 500), rng.integers(0, 4, (1, 500))
    confidence = rng.uniform(0.3, 1.0, (1, 500))
    found = analysis.calibration(predicted, confidence=confidence, labels=labels)
    probabilities = np.repeat((1 - confidence[0, :, None]) / 3, 4, axis=1)
    probabilities[np.arange(500), predicted[0]] = confidence[0]
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=analysis.NUM_BINS
    )
    assert found.ece_percent == pytest.approx(100 * expected.item(), abs=1e-4)


def test_the_most_confidently_wrong_come_first_with_the_seeds_of_the_most_frequent_wrong_answer() -> None:
    """Item 0: all three are wrong, and two take it for class 2, with 0.5 and 0.7."""
    labels = np.array([0, 0, 0, 0])
    predicted = np.array([[1, 0, 2, 1], [2, 0, 0, 1], [2, 0, 0, 1]])
    confidence = np.array([[0.9, 1, 0.8, 0.6], [0.5, 1, 1, 0.6], [0.7, 1, 1, 0.6]], np.float16)
    found = analysis.most_confidently_wrong(predicted, confidence=confidence, labels=labels, num=3)
    assert [(each.index, each.truth, each.answer, each.num_seeds) for each in found] == [
        (0, 0, 2, 2),
        (3, 0, 1, 3),
        (2, 0, 2, 1),
    ]
    assert [each.confidence for each in found] == pytest.approx([0.6, 0.6, 0.8], abs=1e-3)


def test_mcnemars_p_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(1)
    right = {"a": rng.random(300) < 0.9, "b": rng.random(300) < 0.85, "c": rng.random(300) < 0.5}
    found = list(analysis.pairs(right))
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in found:
        table = [[0, pair.only_first], [pair.only_second, 0]]
        assert pair.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert pair.difference_pp == pytest.approx(100 * (right[pair.first].mean() - right[pair.second].mean()))
    (same,) = analysis.pairs({"a": right["a"], "also a": right["a"]})
    assert (same.only_first, same.only_second, same.p_value) == (0, 0, 1)


def test_labels_fit_only_where_they_give_each_seeds_recorded_number() -> None:
    assert analysis.fits(group(), LABELS)
    assert not analysis.fits(group(), LABELS[:39])
    assert not analysis.fits(group(), np.roll(LABELS, 1))


def test_a_diverged_seed_does_not_keep_labels_from_fitting() -> None:
    empty = dict.fromkeys(("accuracy_percent", "num_correct", "loss", "predicted_sha256"))
    whole = group()
    records = (*whole.records[:4], record(4, **empty))
    cut = {key: getattr(whole, key)[:4] for key in ("seeds", "predicted", "confidence")}
    assert analysis.fits(dataclasses.replace(whole, records=records, **cut), LABELS)
