"""How a measurement compares with the record before: prediction by prediction, or by Welch's t-test."""

import dataclasses
from pathlib import Path

import pytest
from tests.support.measured import ENVIRONMENT, ROW, diverged, otherwise_wrong, part, seeds

from remeasure.judging.comparison import Compared, compare, compare_folders
from remeasure.judging.publish import publish
from remeasure.judging.records import RowResults, put_together
from remeasure.spec.base import InputError, canonical_sha256

LATER = "2030-01-01T00:00:00Z"


def said(old: RowResults, new: RowResults) -> str:
    return compare(old, new, confidence=0.95)


def test_the_same_runs_are_no_new_measurement() -> None:
    assert said(seeds(0, 1, 2), seeds(0, 1)) == ""


def test_the_same_seeds_are_compared_prediction_by_prediction() -> None:
    assert said(seeds(*range(5)), seeds(0, 1, finished_at=LATER)) == "2 of 2 seeds identical to the committed ones"
    changed = otherwise_wrong(seeds(0, 1, finished_at=LATER))
    sentence = "0 of 2 seeds identical to the committed ones; up to 1 of 40 predictions differ in seeds 0, 1"
    assert said(seeds(*range(5)), changed) == sentence
    lost = put_together(ROW, seeds=[part(0, finished_at=LATER), diverged(1)])
    moved = dataclasses.replace(lost.records[1], finished_at=LATER)
    assert said(seeds(0, 1), dataclasses.replace(lost, records=(lost.records[0], moved))) == (
        "1 of 2 seeds identical to the committed ones; up to 40 of 40 predictions differ in seeds 1"
    )


def test_disjoint_seeds_and_other_devices_are_compared_by_their_means() -> None:
    """Seeds 0 to 4 have 95.0, 92.5, 95.0, 92.5, 95.0 %, and so have the five after them."""
    sentence = "94.000 % (5 seeds) before, 94.000 % (5 seeds) now: they agree (Welch's t-test, p = 1.000)"
    assert said(seeds(*range(5)), seeds(*range(5, 10))) == sentence
    assert said(seeds(*range(5)), seeds(*range(10))) == sentence, "seeds 0 to 4 are the same runs"
    assert said(seeds(*range(5)), seeds(*range(5), finished_at=LATER, device_kind="cuda")) == sentence


def test_another_machine_of_the_same_kind_is_compared_both_ways_unless_identical() -> None:
    again = seeds(*range(5), finished_at=LATER, device="Another CPU")
    assert said(seeds(*range(5)), again) == "5 of 5 seeds identical to the committed ones"
    assert said(seeds(*range(5)), otherwise_wrong(again)) == (
        "0 of 5 seeds identical to the committed ones; up to 1 of 40 predictions differ in seeds 0, 1, 2, 3, 4; "
        "94.000 % (5 seeds) before, 94.000 % (5 seeds) now: they agree (Welch's t-test, p = 1.000)"
    )


def test_records_that_differ_are_called_different_and_one_seed_is_no_sample() -> None:
    low = seeds(1, 3, 6, 8, device_kind="cuda")  # 92.5 % each
    high = seeds(0, 2, 4, 5)  # 95.0 % each
    assert "95.000 % (4 seeds) before, 92.500 % (4 seeds) now: they differ" in said(high, low)
    assert said(high, seeds(1, device_kind="cuda")) == ""


# ---------------------------------------------------------------- two results folders


def compared(tmp_path: Path, old: RowResults, new: RowResults) -> Compared:
    """As if two machines had measured the row."""
    for name, results in (("a", old), ("b", new)):
        publish(tmp_path / name, row=ROW, files=results.to_files())
    (row,) = compare_folders(tmp_path / "a", tmp_path / "b", confidence=0.95)
    return row


def test_folders_with_the_same_predictions_are_identical_whatever_differs_around(tmp_path: Path) -> None:
    other = {**ENVIRONMENT, "torch": "2.16.0"}
    versions = canonical_sha256(other)
    before = seeds(*range(5))
    records = tuple(dataclasses.replace(each, versions_sha256=versions, commit="decaf") for each in before.records)
    new = dataclasses.replace(before, records=records, environments={versions: other})
    row = compared(tmp_path, before, new)
    assert (row.outcome, row.evidence) == ("identical", "5 of 5 shared seeds have identical predictions")
    assert row.differences == ("commit: c0ffee → decaf", "environment torch: 2.15.0 → 2.16.0")


def test_other_predictions_of_the_same_accuracy_are_equal_within_noise(tmp_path: Path) -> None:
    row = compared(tmp_path, seeds(*range(5)), otherwise_wrong(seeds(*range(5))))
    assert row.outcome == "equal within noise"
    assert row.evidence == (
        "0 of 5 shared seeds have identical predictions; "
        "94.000 % (5 seeds) and 94.000 % (5 seeds), Welch's t-test, p = 1.000"
    )


def test_other_means_are_different_and_one_seed_is_too_few(tmp_path: Path) -> None:
    row = compared(tmp_path, seeds(0, 2, 4, 5), seeds(1, 3, 6, 8))
    assert row.outcome == "different"
    assert row.evidence.startswith("95.000 % (4 seeds) and 92.500 % (4 seeds), Welch's t-test, p = 0.0")
    row = compared(tmp_path / "one", seeds(0), seeds(1))
    assert (row.outcome, row.evidence) == (
        "not compared",
        "fewer than two seeds with a score on a side, too few for a test",
    )


def test_a_row_that_one_folder_lacks_is_not_compared_and_no_folder_is_refused(tmp_path: Path) -> None:
    publish(tmp_path / "a", row=ROW, files=seeds(0, 1).to_files())
    (tmp_path / "b/runs").mkdir(parents=True)
    (row,) = compare_folders(tmp_path / "a", tmp_path / "b", confidence=0.95)
    assert (row.outcome, row.evidence) == ("not compared", f"{tmp_path}/b has no record of it")
    with pytest.raises(InputError, match=r"nowhere: no results folder; it has no runs/"):
        compare_folders(tmp_path / "a", tmp_path / "nowhere", confidence=0.95)
