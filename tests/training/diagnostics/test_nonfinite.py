"""A run that diverged says where: planted at a step and in a layer, found at that step and in that layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.support import trained
from tests.support.trained import STEPS_PER_EPOCH
from torch import Tensor, nn

import remeasure.training.diagnostics.nonfinite
import remeasure.training.engines.loop
from remeasure.models.scratch.activations import Array
from remeasure.models.scratch.layers import Dense
from remeasure.runs.folder import Outcome
from remeasure.runs.journal import last, read
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import write_atomic
from remeasure.training.checkpoints import keep_checkpoint
from remeasure.training.diagnostics.nonfinite import Fault, Found, kept
from remeasure.training.engines.batched import BatchedJob, BatchedTraining
from remeasure.training.engines.numpy_engine import NumpyTraining
from remeasure.training.engines.serial import Training
from remeasure.training.seeding import initial_network, permutation

STEP = 30  # of the second epoch, in the middle of a block


class CutError(Exception):
    """The lights go out."""


def spec(*overrides: str) -> RunSpec:
    """The 21 steps of an epoch in blocks of 4, with dropout."""
    return trained.spec("steps_per_block=4", "model=mlp4", "model.options.hidden_sizes=[32,32]", *overrides)


@pytest.fixture(params=[0.0, 1e9], ids=["from a checkpoint", "from the start"])
def checkpoints(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", str(request.param))


def planted(
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[nn.Module, int], None],
    *,
    training: type[Training] = Training,
) -> None:
    """`plant(network, step)` before each training step's forward pass, in the run and in its replay."""
    original = training.take

    def step_with_plant(self: Any, chosen: Tensor, *, step: int, **rest: Any) -> tuple[Tensor, ...]:
        plant(self.network, step)
        return original(self, chosen, step=step, **rest)

    monkeypatch.setattr(training, "take", step_with_plant)


def fault(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.directory / "divergence.json").read_text())
    return found


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("at", [STEP, STEP - 2], ids=["within a block", "last of a block, so that its loss is finite"])
def test_a_gradient_that_is_not_finite_is_found_in_its_step_and_layer(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def plant(network: nn.Module, step: int) -> None:
        name, parameter = list(network.named_parameters())[2]  # the second layer's weight
        names.append(name)
        if step == at:
            parameter.register_hook(lambda gradient: gradient * torch.inf)

    planted(monkeypatch, plant)
    outcome = trained.run(spec(), tmp_path, seed=3)
    found = fault(outcome)
    assert (found["what"], found["layer"], found["step"], found["epoch"]) == ("gradient", names[0], at, 1)
    start = (at - STEPS_PER_EPOCH) * 64
    assert found["batch"] == permutation(1297, seed=3, epoch=1)[start : start + 64].tolist()
    diverged = last(read(outcome.directory), "diverged")
    assert diverged is not None
    assert diverged["reason"] == f"the gradient of {names[0]} is not finite in step {at} (epoch 2)"
    assert (diverged["step"], diverged["epoch"]) == (at, 1)


def test_the_weights_before_the_step_are_kept_and_are_those_of_an_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, Tensor] = {}

    def remember(network: nn.Module, step: int) -> None:
        if step == STEP:
            before.update(trained.weights(network))

    def plant(network: nn.Module, step: int) -> None:
        if step == STEP:
            next(network.parameters()).register_hook(lambda gradient: gradient * torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        planted(patch, remember)
        trained.run(spec(), tmp_path / "sound")
    planted(monkeypatch, plant)
    outcome = trained.run(spec(), tmp_path / "faulty")
    assert trained.same(safetensors.torch.load_file(outcome.directory / "divergence.safetensors"), before)


def test_a_layers_output_that_is_not_finite_is_named_before_all_that_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def plant(network: nn.Module, step: int) -> None:
        name, layer = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][1]
        names.append(name)
        if step == 2:
            with torch.no_grad():
                layer.bias[0] = torch.inf

    planted(monkeypatch, plant)
    found = fault(trained.run(spec(), tmp_path))
    assert (found["what"], found["layer"], found["step"]) == ("output", names[0], 2)


def test_a_rate_that_is_too_high_blows_up_where_the_replay_says(tmp_path: Path) -> None:
    wild = ("recipe.optimizer={name: sgd, lr_peak: 1.0e+9}", "recipe.clip_norm=null")
    outcome = trained.run(spec(*wild), tmp_path)
    found = fault(outcome)
    kept = safetensors.torch.load_file(outcome.directory / "divergence.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert outcome.record.accuracy_percent is None
    assert len(found["batch"]) == 64
    assert trained.run(spec(*wild), tmp_path, fresh=True).directory != outcome.directory
    assert fault(trained.run(spec(*wild), tmp_path, fresh=True)) == found


def test_a_fault_that_does_not_come_again_ends_the_replay_where_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def plant(network: nn.Module, step: int) -> None:
        if step == STEP and step not in steps:
            next(network.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        steps.append(step)

    planted(monkeypatch, plant)
    outcome = trained.run(spec(), tmp_path)
    end = STEP + 2  # of the block
    assert steps == [*range(end + 1), *range(end + 1)]
    assert not list(outcome.directory.glob("divergence*"))
    diverged = last(read(outcome.directory), "diverged")
    assert diverged is not None
    assert diverged["reason"] == f"the loss is not finite after step {end} (epoch 2)"
    assert outcome.record.accuracy_percent is None


def test_weights_that_lie_in_another_order_in_memory_are_kept(tmp_path: Path) -> None:
    weight = torch.arange(72.0).view(2, 4, 3, 3).to(memory_format=torch.channels_last)

    fault = Fault(epoch=0, step=2, layer="", what="loss", batch=(7,))
    error = kept(Found(fault=fault, weights={"conv.weight": weight}), folder=tmp_path)
    assert str(error) == "the loss is not finite in step 2 (epoch 1)"
    assert torch.equal(safetensors.torch.load_file(tmp_path / "divergence.safetensors")["conv.weight"], weight)


def test_a_sound_run_keeps_no_fault(tmp_path: Path) -> None:
    assert not list(trained.run(spec(), tmp_path).directory.glob("divergence*"))


def test_weights_that_are_not_finite_in_a_checkpoint_that_is_whole_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")

    def poison(partial: Path, checkpoint: Path) -> None:
        content = torch.load(partial, weights_only=True)
        content["state_dict"]["network.1.weight"][0] = torch.nan
        torch.save(content, partial)
        keep_checkpoint(partial, checkpoint)
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(remeasure.training.engines.loop, "keep_checkpoint", poison)
        with pytest.raises(CutError):
            trained.run(spec(), tmp_path)
    outcome = trained.run(spec(), tmp_path)
    resumed = last(read(outcome.directory), "resumed")
    assert resumed is not None
    assert resumed["checkpoint"] == "used"
    assert outcome.record.accuracy_percent is None
    found = fault(outcome)
    assert (found["what"], found["layer"], found["step"]) == ("output", "1", 4), "the first step of the second block"


# ---------------------------------------------------------------- from scratch


@pytest.mark.usefixtures("checkpoints")
def test_a_layer_from_scratch_that_is_not_finite_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[str, Tensor] = {}

    def plant(network: nn.Module, step: int) -> None:
        if step == STEP:
            before.update(trained.weights(network))
            with torch.no_grad():
                network.get_parameter("3.bias")[0] = torch.inf

    planted(monkeypatch, plant, training=NumpyTraining)
    outcome = trained.run(trained.spec("steps_per_block=4", "engine=numpy"), tmp_path, seed=3)
    found = fault(outcome)
    assert (found["what"], found["layer"], found["step"], found["epoch"]) == ("output", "3", STEP, 1)
    start = (STEP - STEPS_PER_EPOCH) * 64
    assert found["batch"] == permutation(1297, seed=3, epoch=1)[start : start + 64].tolist()
    assert trained.same(safetensors.torch.load_file(outcome.directory / "divergence.safetensors"), before)


def test_a_gradient_from_scratch_is_named_as_it_was_before_it_was_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping makes all gradients NaN as soon as one is infinite."""
    original, steps = Dense.backward, list[int]()

    def backward(self: Dense, gradient: Array) -> Array:
        before = original(self, gradient)
        if steps[-1] == 2 and len(self.parameters[1]) == 256:
            self.gradients[1][0] = np.inf
        return before

    planted(monkeypatch, lambda _, step: steps.append(step), training=NumpyTraining)
    monkeypatch.setattr(Dense, "backward", backward)
    found = fault(trained.run(trained.spec("engine=numpy"), tmp_path))
    assert (found["what"], found["layer"], found["step"]) == ("gradient", "1.bias", 2)


# ---------------------------------------------------------------- several seeds as one

GROUP = ("engine=batched", "engine_width=3")
LAST_STEP = 2 * STEPS_PER_EPOCH - 1
PLANTED = {1: 10, 2: LAST_STEP}  # by a seed's place in its group: the step in which its gradient is not finite
SECOND = 2  # the place of the second layer's weight among the parameters


def names(outcome: Outcome) -> set[str]:
    return {path.name for path in outcome.directory.iterdir()}


def planted_in_group(monkeypatch: pytest.MonkeyPatch, before: dict[int, list[Tensor]]) -> None:
    """Plant PLANTED, in the run and in its replay; `before`: the weights before the step, in the run."""
    original = BatchedTraining.take

    def step_with_plant(self: Any, chosen: Tensor, *, step: int, **rest: Any) -> tuple[Tensor, ...]:
        for place in [place for place, at in PLANTED.items() if at == step]:
            before.setdefault(place, [stacked[place].detach().clone() for stacked in self.network.stacked])
            blow_up = torch.ones(3, 1, 1)
            blow_up[place] = torch.inf
            self.network.stacked[SECOND].register_hook(lambda gradient, factor=blow_up: gradient * factor)
        return original(self, chosen, step=step, **rest)

    monkeypatch.setattr(BatchedTraining, "take", step_with_plant)


@pytest.mark.usefixtures("checkpoints")
def test_each_seed_of_a_group_has_its_own_step_layer_batch_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = trained.run_together(spec(*GROUP), tmp_path / "sound", seed=3)
    before: dict[int, list[Tensor]] = {}
    planted_in_group(monkeypatch, before)
    done = trained.run_together(spec(*GROUP), tmp_path, seed=3)
    assert done[0].record.predicted_sha256 == sound[0].record.predicted_sha256
    assert not list(done[0].directory.glob("divergence*"))
    parameters = [name for name, _ in initial_network(spec(), seed=0).named_parameters()]
    name = parameters[SECOND]
    for place, at in PLANTED.items():
        found, kept = fault(done[place]), safetensors.torch.load_file(done[place].directory / "divergence.safetensors")
        epoch, start = divmod(at, STEPS_PER_EPOCH)
        order = permutation(1297, seed=3 + place, epoch=epoch).tolist()
        assert found["batch"] == order[start * 64 : (start + 1) * 64]
        assert (found["what"], found["layer"], found["step"], found["epoch"]) == ("gradient", name, at, epoch)
        assert trained.same(kept, dict(zip(parameters, before[place], strict=True)))
        diverged = last(read(done[place].directory), "diverged")
        assert diverged is not None
        assert diverged["reason"] == f"the gradient of {name} is not finite in step {at} (epoch {epoch + 1})"


def test_when_all_seeds_of_a_group_diverge_each_has_the_fault_that_it_has_alone(tmp_path: Path) -> None:
    """Without dropout, whose masks a group draws from one stream."""
    wild = ("model=mlp2", "recipe=article", "recipe.optimizer={name: sgd, lr_peak: 1.0e+9}", "recipe.clip_norm=null")
    for outcome in trained.run_together(spec(*wild, *GROUP), tmp_path):
        alone = trained.run(spec(*wild), tmp_path, seed=outcome.record.seed)
        assert fault(outcome) == fault(alone)
        theirs = safetensors.torch.load_file(alone.directory / "divergence.safetensors")
        ours = safetensors.torch.load_file(outcome.directory / "divergence.safetensors")
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3)


def test_a_layers_output_in_a_group_is_named_before_all_that_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BatchedJob.built

    def poisoned(job: BatchedJob) -> BatchedTraining:
        group = original(job)
        with torch.no_grad():
            group.network.stacked[SECOND][1] = torch.nan
        return group

    monkeypatch.setattr(BatchedJob, "built", poisoned)
    found = fault(trained.run_together(spec(*GROUP), tmp_path)[1])
    layers = initial_network(spec(), seed=0).named_modules()
    second = [name for name, layer in layers if isinstance(layer, nn.Linear)][1]
    assert (found["what"], found["layer"], found["step"]) == ("output", second, 0)


def test_a_group_killed_while_it_is_diagnosed_goes_on_from_its_own_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    planted_in_group(monkeypatch, {})
    unbroken = trained.run_together(spec(*GROUP), tmp_path / "unbroken")

    def cut(path: Path, content: bytes) -> None:
        write_atomic(path, content)
        if path.name == "divergence.json":  # the first one is there, the second one is not
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(remeasure.training.diagnostics.nonfinite, "write_atomic", cut)
        with pytest.raises(CutError):
            trained.run_together(spec(*GROUP), tmp_path)
    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoint.*")
    assert torch.load(checkpoint, weights_only=True)["num_steps"] == STEPS_PER_EPOCH + 20, (
        "the last one of the training"
    )
    done = trained.run_together(spec(*GROUP), tmp_path)
    for ours, theirs in zip(done, unbroken, strict=True):
        assert ours.record.predicted_sha256 == theirs.record.predicted_sha256
        assert names(ours) == names(theirs)
    assert [fault(done[place]) for place in PLANTED] == [fault(unbroken[place]) for place in PLANTED]


def test_what_a_finished_seed_of_a_group_has_kept_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_in_group(monkeypatch, {})

    def cut(directory: Path, event: Event) -> None:
        if event["event"] == "diverged" and "-s2-" in directory.name:
            raise CutError

    with pytest.raises(CutError):
        trained.run_together(spec(*GROUP), tmp_path, sink=cut)
    (kept,) = (tmp_path / "runs").glob("*-s1-*/divergence.safetensors")
    written = kept.stat().st_ino
    done = trained.run_together(spec(*GROUP), tmp_path)
    assert [outcome.reused for outcome in done] == [True, True, False]
    assert kept.stat().st_ino == written
    assert fault(done[2])["step"] == PLANTED[2]
