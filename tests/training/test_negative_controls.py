"""Negative controls: the fault is the one that is named, nothing else moves, and the verdict is `falls short`."""

from pathlib import Path

import pytest
import torch
from tests.support import trained

from remeasure.judging import ledger
from remeasure.judging.verdict import judge
from remeasure.spec.claim import Evidence
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training import negative_controls
from remeasure.training.inference import Forward

IMAGES, LABELS = (torch.arange(400) % 251).to(torch.uint8).view(-1, 1, 2, 2), torch.arange(100) % 10
FAULTS = ("shuffled_labels", "swapped_classes", "tenth_of_data", "other_normalisation")


def spec(control: str, *overrides: str) -> RunSpec:
    return trained.spec(f"control={control}", *overrides)


def test_shuffled_labels_are_the_same_labels_at_other_images() -> None:
    images, labels = negative_controls.applied(IMAGES, LABELS, control="shuffled_labels", seed=1)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels.sort().values, LABELS.sort().values)
    assert 0 < (labels == LABELS).sum() < 30  # one in ten by chance
    again = negative_controls.applied(IMAGES, LABELS, control="shuffled_labels", seed=1)[1]
    other = negative_controls.applied(IMAGES, LABELS, control="shuffled_labels", seed=2)[1]
    assert torch.equal(labels, again)
    assert not torch.equal(labels, other)


def test_two_classes_are_swapped_and_the_others_are_not() -> None:
    images, labels = negative_controls.applied(IMAGES, LABELS, control="swapped_classes", seed=1)
    assert torch.equal(images, IMAGES)
    assert labels[:10].tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_tenth_keeps_each_image_with_its_label() -> None:
    images, labels = negative_controls.applied(IMAGES, LABELS, control="tenth_of_data", seed=1)
    assert len(images) == len(labels) == 10
    where = [int((image == IMAGES).flatten(1).all(dim=1).nonzero()[0]) for image in images]
    assert len(set(where)) == 10
    assert torch.equal(LABELS[where], labels)


def test_only_scoring_sees_another_normalisation() -> None:
    faulty = spec("other_normalisation")
    assert faulty.recipe.normalisation == spec("none").recipe.normalisation
    run = Forward(torch.nn.Flatten(), spec=faulty, device=torch.device("cpu"))
    white = run(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    assert white.flatten().tolist() == pytest.approx(4 * [(1 - 0.4734) / 0.2507])


def test_a_control_is_another_spec_and_none_is_what_it_always_was() -> None:
    hashes = {spec(control).spec_sha256 for control in ("none", *FAULTS)}
    assert len(hashes) == 5
    assert spec("none").spec_sha256 == trained.spec().spec_sha256


def test_what_cannot_have_the_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="trains all its seeds on the same images"):
        spec("shuffled_labels", "engine=batched", "engine_width=2")


@pytest.mark.parametrize("control", FAULTS)
def test_a_fault_falls_short_of_what_the_same_recipe_reaches_without_it(tmp_path: Path, control: str) -> None:
    """On the digits, with a claim at what the sound recipe gives and the demo's margin of two points."""
    recipe = ("model=logreg", "recipe=lbfgs", "recipe.epochs_total=30")
    sound = trained.run(spec("none", *recipe), tmp_path).record.accuracy_percent
    assert sound is not None
    rows = ledger.read(paths.conf_dir() / "demo.yaml")
    rule = rows["mlp2-digits"].rule
    counts = {}
    for seed in range(rule.looks[0]):
        outcome = trained.run(spec(control, *recipe), tmp_path, seed=seed)
        counts[seed] = outcome.record.num_correct
    verdict = judge(Evidence(num_correct=counts, num_test=500), published_percent=sound, rule=rule)
    assert verdict.verdict == "falls short"


def test_controls_stand_under_the_claims_and_margins_of_the_ledger() -> None:
    rows = ledger.read(paths.conf_dir() / "benchmark.yaml")
    faulty = ledger.read(paths.conf_dir() / "controls.yaml")
    for name, row in faulty.items():
        own = rows[name.rpartition("-")[0]]
        assert name == f"{own.name}-{row.control}"
        assert (row.model, row.data, row.recipe, row.mode) == (own.model, own.data, own.recipe, own.mode)
        assert row.published.accuracy_percent == own.published.accuracy_percent
        assert (row.rule.margin_pp, row.rule.confidence) == (own.rule.margin_pp, own.rule.confidence)
    assert {row.control for row in faulty.values()} == set(FAULTS)
    assert all(row.control == "none" for row in rows.values())
