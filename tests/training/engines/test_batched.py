"""Seeds that train together train as they would alone; what one of them does is nothing to the others."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.trained import (
    STEPS_PER_EPOCH,
    quiet,
    run,
    run_together,
    same,
    trained,
    trained_together,
    training,
    weights,
)
from tests.support.trained import spec as serial_spec
from torch import Tensor, nn

import remeasure.training.engines.loop
from remeasure.runs.folder import Outcome
from remeasure.runs.journal import curve, read
from remeasure.spec.base import DivergenceError, InputError
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.training.engines.batched import BatchedJob, BatchedTraining, Stacked, clip_each
from remeasure.training.engines.loop import CheckpointCallback

SEEDS = (3, 4, 5)
WIDTH = ("engine=batched", "engine_width=3")
L2 = "recipe.loss={name: cross_entropy, label_smoothing: 0.1, l2_penalty: 0.05}"
RMSPROP = ("recipe=keras_mlp", "recipe.epochs_total=2")


def spec(*overrides: str) -> RunSpec:
    return serial_spec("steps_per_block=4", *overrides)


def together(*overrides: str) -> BatchedTraining:
    """Three seeds as one, on the digits."""
    alone = [training(spec(*overrides), seed=seed) for seed in SEEDS]
    networks = [one.network for one in alone]
    both = spec(*WIDTH, *overrides)
    return BatchedTraining(networks, spec=both, seeds=SEEDS, images=alone[0].images, labels=alone[0].labels)


def unstacked(batched: BatchedTraining, *overrides: str) -> list[dict[str, Tensor]]:
    """The weights of each seed's own network."""
    found = []
    for index, seed in enumerate(SEEDS):
        network = training(spec(*overrides), seed=seed).network
        network.load_state_dict(batched.state_of(index))
        found.append(weights(network))
    return found


# ---------------------------------------------------------------- the same as alone


@pytest.mark.parametrize(
    "overrides",
    [(), (L2, "recipe.clip_norm=null"), ("recipe.clip_norm=0.05",), RMSPROP, ("recipe.schedule.name=linear",)],
    ids=["article", "l2 and smoothing", "clipped", "rmsprop", "falling rate"],
)
def test_each_seed_ends_at_the_weights_and_curve_of_the_serial_engine(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    batched = together(*overrides)
    reports = trained_together(batched, spec=spec(*WIDTH, *overrides), folder=tmp_path)
    found = unstacked(batched, *overrides)
    for index, seed in enumerate(SEEDS):
        alone = training(spec(*overrides), seed=seed)
        expected = trained(alone, spec=spec(*overrides), folder=tmp_path / str(seed))
        for name, value in weights(alone.network).items():
            torch.testing.assert_close(found[index][name], value, rtol=2e-3, atol=2e-4)
        assert [report["loss"] for report in reports[index]] == pytest.approx(
            [report["loss"] for report in expected], rel=1e-5
        )
        for ours, theirs in zip(reports[index], expected, strict=True):
            assert ours["accuracy_percent"] == pytest.approx(theirs["accuracy_percent"], abs=0.1)
            assert {key: ours[key] for key in ("epoch", "step", "lr")} == {
                key: theirs[key] for key in ("epoch", "step", "lr")
            }


def test_lenet_with_its_fixed_codes_and_sparse_kernels_is_stacked_too() -> None:
    """28x28 images: the digits are too small for it."""
    from remeasure.config.compose import compose
    from remeasure.models import registry

    model = compose(["model=lenet5"]).model
    networks = [registry.build(model, image_shape=(1, 28, 28), num_classes=10, generator_seed=seed) for seed in SEEDS]
    images = torch.rand(3, 5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    together = Stacked(networks)
    logits = together(images)
    for index, network in enumerate(networks):
        torch.testing.assert_close(logits[index], network(images[index]), rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert all(torch.any(parameter.grad[index] != 0) for parameter in together.parameters() for index in range(3))
    assert sum(parameter.numel() for parameter in together.parameters()) == 3 * 60_000


def test_dropout_and_distortions_differ_between_seeds_and_steps(tmp_path: Path) -> None:
    """Three networks of equal weights on the same images part where each draws its own masks or maps."""
    for overrides in (("model=mlp4", "recipe=article"), ("recipe=lenet5", "recipe.schedule.epochs_warmup=0.5")):
        both = spec(*WIDTH, *overrides, "recipe.epochs_total=1")
        one = training(both, num_images=64)
        networks = [training(both, num_images=64).network for _ in SEEDS]
        batched = BatchedTraining(networks, spec=both, seeds=SEEDS, images=one.images, labels=one.labels)
        batched.order = lambda epoch: torch.arange(64)[:, None].repeat(1, 3)  # type: ignore[method-assign] # noqa: ARG005
        trained_together(batched, spec=both, folder=tmp_path)
        first, second, third = (parameter[:] for parameter in batched.network.stacked[0].detach())
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)


def test_a_group_gives_the_same_weights_again_and_another_group_does_not(tmp_path: Path) -> None:
    overrides = ("model=mlp4", "recipe=article", "recipe.epochs_total=1")
    found = []
    for number in range(2):
        torch.manual_seed(number)  # global state must not matter
        batched = together(*overrides)
        trained_together(batched, spec=spec(*WIDTH, *overrides), folder=tmp_path)
        found.append(unstacked(batched, *overrides))
    assert all(same(*pair) for pair in zip(*found, strict=True))
    assert not same(found[0][0], found[0][1])


def test_clipping_is_each_seeds_own() -> None:
    small, large = torch.tensor([[0.3, 0.4], [30.0, 40.0]]), torch.tensor([[0.0], [0.0]])
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 1))]
    parameters[0].grad, parameters[1].grad = small, large
    clip_each(parameters, max_norm=1.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([[0.3, 0.4], [0.6, 0.8]]))


def test_an_epoch_of_steps_is_counted_once_for_all(tmp_path: Path) -> None:
    for reports in trained_together(together(), spec=spec(*WIDTH), folder=tmp_path):
        assert [report["step"] for report in reports] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]


# ---------------------------------------------------------------- what it refuses

MUON = (
    "model=mlp4",
    "recipe.optimizer={name: muon, lr_peak: 0.1, momentum: 0.6, sgd_lr_peak: 0.1, alpha: null, eps: null}",
)
ALTERNATING = (
    "recipe.augmentation={name: crop, pad_pixels: 1, flip_probability: 0.5, cutout_pixels: 0, flips: alternating}"
)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ("model=logreg", "recipe=lbfgs"),
            "the batched engine has adam, adamw, sgd, rmsprop, not recipe.optimizer.name=lbfgs",
        ),
        (MUON, "not recipe.optimizer.name=muon"),
        (("recipe.averaging={from_epoch: 1, decay: 0.9}",), "recipe.averaging: the batched engine does not implement"),
        ((ALTERNATING,), "draws all its seeds' flips anew"),
        (("control=shuffled_labels",), "control: the batched engine has none, got shuffled_labels"),
        (("channels_last=true",), "channels_last: the batched engine has false, got true"),
        (("compile=true",), "compile: the batched engine has false, got true"),
        (
            ("model=vit_b16", "data=imagenet_sample", "recipe=deit_b_eval"),
            "engine: the batched engine trains, and recipe deit_b_eval only evaluates",
        ),
    ],
)
def test_what_the_batched_engine_cannot_do_is_refused(overrides: Sequence[str], fault: str) -> None:
    from remeasure.config.compose import compose

    with pytest.raises(InputError, match="choose engine=serial") as refused:
        compose([*WIDTH, *overrides])
    assert fault in str(refused.value)


def test_batch_normalisation_is_refused() -> None:
    with pytest.raises(InputError, match="no batch normalisation; choose engine=serial"):
        Stacked([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)])


# ---------------------------------------------------------------- divergence

WILD = ("recipe.optimizer={name: sgd, lr_peak: 0.1}", "recipe.clip_norm=null")


def poisoned(batched: BatchedTraining, *, seed_index: int) -> BatchedTraining:
    with torch.no_grad():
        batched.network.stacked[0][seed_index] = math.inf
    return batched


def test_a_seed_that_diverges_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    batched = poisoned(together(*WILD), seed_index=1)
    trained_together(batched, spec=spec(*WIDTH, *WILD), folder=tmp_path)
    assert list(batched.diverged) == [1]
    assert (batched.diverged[1].epoch, batched.diverged[1].step) == (0, 3), "the end of its first block of 4 steps"
    well = together(*WILD)
    trained_together(well, spec=spec(*WIDTH, *WILD), folder=tmp_path / "well")
    for index in (0, 2):
        assert same(unstacked(batched, *WILD)[index], unstacked(well, *WILD)[index])


def test_when_all_have_diverged_training_stops(tmp_path: Path) -> None:
    batched = together(*WILD)
    for index in range(3):
        poisoned(batched, seed_index=index)
    with pytest.raises(DivergenceError, match=r"not finite after step 3 \(epoch 1\)"):
        trained_together(batched, spec=spec(*WIDTH, *WILD), folder=tmp_path)


# ---------------------------------------------------------------- runs


@pytest.fixture(autouse=True)
def checkpoints_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")


def numbers(outcomes: Sequence[Outcome]) -> list[tuple[int, int | None, str | None]]:
    records = [outcome.record for outcome in outcomes]
    return [(record.seed, record.num_correct, record.predicted_sha256) for record in records]


def files(outcome: Outcome) -> set[str]:
    """Without the lock, which a group has in its first directory."""
    return {path.name for path in outcome.directory.iterdir()} - {"lock"}


def test_a_group_of_runs_leaves_what_as_many_runs_leave(tmp_path: Path) -> None:
    group = run_together(spec(*WIDTH), tmp_path, seed=4)
    assert [outcome.record.seed for outcome in group] == [3, 4, 5], "the group of seed 4"
    for outcome in group:
        alone = run(spec(), tmp_path / "alone", seed=outcome.record.seed)
        assert abs((outcome.record.num_correct or 0) - (alone.record.num_correct or 0)) <= 1
        assert files(outcome) == files(alone)
        ours, theirs = (
            [(event["epoch"], event["split"]) for event in curve(read(one.directory))] for one in (outcome, alone)
        )
        assert ours == theirs
        assert outcome.record.num_params == alone.record.num_params
    assert run(spec(*WIDTH), tmp_path, seed=5).reused


class CutError(Exception):
    """The lights go out."""


def test_layers_that_are_one_are_scored_with_their_seeds_weights(tmp_path: Path) -> None:
    shared = ("model=logreg", "model.builder=tests.support.shared_layer:build", "~model.options.initialisation")
    for outcome in run_together(spec(*WIDTH, *shared), tmp_path, seed=4):
        alone = run(spec(*shared), tmp_path / "alone", seed=outcome.record.seed)
        assert abs((outcome.record.num_correct or 0) - (alone.record.num_correct or 0)) <= 1


def test_a_group_cut_short_ends_as_an_unbroken_one_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (*WIDTH, "model=mlp4", "recipe=article", "recipe.epochs_total=2")
    unbroken = run_together(spec(*everything), tmp_path / "unbroken")
    original = CheckpointCallback._save_when_due

    def save(self: CheckpointCallback, trainer: Any) -> None:
        original(self, trainer)
        if trainer.lightning_module.num_steps == STEPS_PER_EPOCH + 8:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_save_when_due", save)
        with pytest.raises(CutError):
            run_together(spec(*everything), tmp_path)
    resumed = run_together(spec(*everything), tmp_path)
    assert numbers(resumed) == numbers(unbroken)
    for outcome in resumed:
        assert [event["event"] for event in read(outcome.directory)].count("resumed") == 1


def test_a_group_cut_between_two_records_keeps_the_first(tmp_path: Path) -> None:
    unbroken = run_together(spec(*WIDTH), tmp_path / "unbroken")

    def cut(directory: Path, event: Event) -> None:
        if event.get("split") == "test" and "-s1-" in directory.name:
            raise CutError

    with pytest.raises(CutError):
        run_together(spec(*WIDTH), tmp_path, sink=cut)
    (first,) = (path for path in (tmp_path / "runs").glob("*-s0-*"))
    journal = (first / "journal.jsonl").read_bytes()
    done = run_together(spec(*WIDTH), tmp_path, sink=quiet)
    assert numbers(done) == numbers(unbroken)
    assert [outcome.reused for outcome in done] == [True, False, False]
    assert (first / "journal.jsonl").read_bytes() == journal
    assert not list((tmp_path / "runs").glob("*/checkpoint.*"))


def test_a_seed_that_diverged_has_its_line_and_the_others_their_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BatchedJob.built
    monkeypatch.setattr(BatchedJob, "built", lambda job: poisoned(original(job), seed_index=1))
    done = run_together(spec(*WIDTH, *WILD), tmp_path)
    assert [outcome.record.accuracy_percent is None for outcome in done] == [False, True, False]
    assert "diverged" in [event["event"] for event in read(done[1].directory)]
    assert "diverged" not in [event["event"] for event in read(done[0].directory)]


def test_seconds_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remeasure.training.engines.loop, "train", lambda *_, **__: 30.0)
    assert [outcome.record.wall_seconds for outcome in run_together(spec(*WIDTH), tmp_path)] == [10.0, 10.0, 10.0]
