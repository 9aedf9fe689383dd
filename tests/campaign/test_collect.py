"""Finished runs put together as a row: each seed's part in its own place, a diverged seed's place left empty."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.measured import ENVIRONMENT, LABELS, ROW, SPEC, VERSIONS, curve, group, predictions, record
from tests.support.trained import run, spec

from remeasure.campaign.collect import from_run
from remeasure.data import catalog
from remeasure.judging.records import SeedResults, from_results, put_together
from remeasure.runs.journal import encode
from remeasure.spec.record import FoundPoint
from remeasure.system.formats import predicted_sha256

WILD = ("recipe.optimizer={name: sgd, lr_peak: 1.0e+9}", "recipe.clip_norm=null")


def part(seed: int, *, diverged: bool = False) -> SeedResults:
    """A seed that is a hundredth as confident as its number is high; of the even seeds, 38 of 40 are right."""
    nothing: dict[str, Any] = {"accuracy_percent": None, "num_correct": None, "loss": None, "predicted_sha256": None}
    num_wrong = 2 + seed % 2
    whole = record(
        seed,
        num_correct=40 - num_wrong,
        accuracy_percent=2.5 * (40 - num_wrong),
        predicted_sha256=predicted_sha256(predictions(num_wrong=num_wrong)),
    )
    return SeedResults(
        record=dataclasses.replace(whole, **nothing) if diverged else whole,
        predicted=None if diverged else predictions(num_wrong=num_wrong).astype(np.uint16),
        confidence=None if diverged else np.full(40, seed / 100, np.float16),
        filters=None if diverged else np.full((2, 2), seed, np.float16),
        curve=tuple(curve(seed, accuracy_percent=2.5 * (40 - num_wrong))[: 1 if diverged else None]),
        findings=(FoundPoint(row=ROW, seed=seed, finding="plateau", evidence=f"of seed {seed}"),) * (seed % 2),
        spec=SPEC,
        environment=ENVIRONMENT,
    )


def test_seeds_stand_in_order_whatever_order_they_finished_in() -> None:
    row = put_together(ROW, seeds=[part(2), part(10), part(0), part(1)])
    assert [entry.seed for entry in row.records] == [0, 1, 2, 10]
    assert row.seeds.tolist() == [0, 1, 2, 10]
    assert (row.predicted == LABELS).sum(axis=1).tolist() == [38, 37, 38, 38]
    np.testing.assert_array_equal(row.confidence[:, 0], np.array([0, 0.01, 0.02, 0.10], np.float16))
    assert [point.seed for point in row.curves] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 10, 10]
    assert [point.seed for point in row.findings] == [1]
    assert row.filters.tolist() == [[0, 0], [0, 0]]
    assert row.environments == {VERSIONS: ENVIRONMENT}
    assert (row.row, row.spec) == (ROW, SPEC)


def test_a_diverged_seed_has_its_line_and_no_predictions() -> None:
    row = put_together(ROW, seeds=[part(2), part(1, diverged=True), part(0)])
    assert [entry.num_correct is None for entry in row.records] == [False, True, False]
    assert row.seeds.tolist() == [0, 2]
    assert row.confidence[:, 0].tolist() == [0, np.float16(0.02)]
    assert {point.seed for point in row.curves} == {0, 1, 2}


@pytest.mark.parametrize("diverged", [(0,), (0, 1)])
def test_seed_0_may_have_diverged_or_all_seeds(diverged: tuple[int, ...]) -> None:
    row = put_together(ROW, seeds=[part(seed, diverged=seed in diverged) for seed in (1, 0)])
    scored = [seed for seed in (0, 1) if seed not in diverged]
    assert row.seeds.tolist() == scored
    assert row.predicted.shape == row.confidence.shape == (len(scored), 40)
    assert row.filters.size == 0, "filters are the first seed's"


def test_a_committed_row_taken_apart_and_put_together_is_the_same_row() -> None:
    nothing = {"accuracy_percent": None, "num_correct": None, "loss": None, "predicted_sha256": None}
    whole = group()
    keep = [0, 1, 2, 4]
    with_diverged = dataclasses.replace(
        whole,
        records=(*whole.records[:3], record(3, **nothing), whole.records[4]),
        seeds=whole.seeds[keep],
        predicted=whole.predicted[keep],
        confidence=whole.confidence[keep],
    )
    for row in (whole, with_diverged):
        assert put_together(ROW, seeds=from_results(row)[::-1]).to_files() == row.to_files()
    assert from_results(with_diverged)[3].predicted is None


def test_a_finished_run_becomes_its_part_of_the_row(tmp_path: Path) -> None:
    outcome = run(spec(), tmp_path, seed=0)
    found = from_run(outcome, row="mlp2-digits")
    others = dict.fromkeys(("num_top5_correct", "macro_f1", "balanced_accuracy"))  # the claim is about accuracy
    assert found.record == dataclasses.replace(outcome.record, row="mlp2-digits", **others)
    assert found.predicted is not None
    assert found.confidence is not None
    labels = catalog.load_split(spec().data, "test", root=tmp_path).labels
    assert (found.predicted == labels).sum() == outcome.record.num_correct
    assert predicted_sha256(found.predicted) == outcome.record.predicted_sha256
    assert found.confidence.dtype == np.float16
    assert found.filters is not None
    assert found.filters.shape == (256, 64)
    assert {(point.row, point.seed) for point in found.curve} == {("mlp2-digits", 0)}
    assert sorted((point.epoch, point.split) for point in found.curve) == [(1, "train"), (2, "test"), (2, "train")]
    assert "seed" not in found.spec
    assert "row" not in found.spec
    assert found.spec["recipe"]["epochs_total"] == 2
    row = put_together("mlp2-digits", seeds=[found])
    assert f"runs/{row.row}.csv" in {name.replace("\\", "/") for name in row.to_files()}


def test_a_diverged_run_becomes_a_part_without_predictions(tmp_path: Path) -> None:
    found = from_run(run(spec(*WILD), tmp_path), row="mlp2-digits")
    assert (found.predicted, found.confidence, found.filters) == (None, None, None)
    assert [(point.row, point.seed, point.finding) for point in found.findings] == [("mlp2-digits", 0, "not finite")]
    assert found.record.accuracy_percent is None
    row = put_together("mlp2-digits", seeds=[found])
    assert row.predicted.shape == (0, 500)


def test_a_loss_that_is_no_number_is_an_empty_cell_of_the_curve(tmp_path: Path) -> None:
    outcome = run(spec(), tmp_path)
    path = outcome.directory / "journal.jsonl"
    path.write_text(
        path.read_text()
        + encode(
            {"event": "epoch", "epoch": 1, "split": "train", "loss": math.nan, "accuracy_percent": 9.5, "lr": math.inf}
        )
    )
    point = next(point for point in from_run(outcome, row="r").curve if point.epoch == 1)
    assert (point.loss, point.accuracy_percent, point.lr) == (None, 9.5, None)
    assert not any(value is not None and math.isnan(value) for value in (point.loss, point.lr))
