"""A run that diverged says where: planted at a step and in a layer, found at that step and in that layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import trained
from tests.trained import STEPS_PER_EPOCH
from torch import Tensor, nn

import remeasure.run
import remeasure.training
from remeasure.journal import last, read
from remeasure.rundir import Outcome
from remeasure.spec import RunSpec
from remeasure.training import permutation

STEP = 30  # of the second epoch, in the middle of a block


def spec(*overrides: str) -> RunSpec:
    """The 21 steps of an epoch in blocks of 4, with dropout."""
    return trained.spec("steps_per_block=4", "model=mlp4", "model.options.hidden_sizes=[32,32]", *overrides)


@pytest.fixture(params=[0.0, 1e9], ids=["from a checkpoint", "from the start"])
def checkpoints(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remeasure.training, "CHECKPOINT_SECONDS", request.param)


def planted(monkeypatch: pytest.MonkeyPatch, plant: Callable[[nn.Module, int], None]) -> None:
    """`plant(network, step)` before each training step's forward pass, in the run and in its replay."""
    original = remeasure.training.Training._optimiser_step

    def step_with_plant(self: Any, chosen: Tensor, *, step: int, **rest: Any) -> tuple[Tensor, ...]:
        plant(self.network, step)
        return original(self, chosen, step=step, **rest)

    monkeypatch.setattr(remeasure.training.Training, "_optimiser_step", step_with_plant)


def fault(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.directory / "divergence.json").read_text())
    return found


@pytest.mark.usefixtures("checkpoints")
def test_a_gradient_that_is_not_finite_is_found_in_its_step_and_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def plant(network: nn.Module, step: int) -> None:
        name, parameter = list(network.named_parameters())[2]  # the second layer's weight
        names.append(name)
        if step == STEP:
            parameter.register_hook(lambda gradient: gradient * torch.inf)

    planted(monkeypatch, plant)
    outcome = trained.run(spec(), tmp_path, seed=3)
    found = fault(outcome)
    assert (found["what"], found["layer"], found["step"], found["epoch"]) == ("gradient", names[0], STEP, 1)
    start = (STEP - STEPS_PER_EPOCH) * 64
    assert found["batch"] == permutation(1297, seed=3, epoch=1)[start : start + 64].tolist()
    diverged = last(read(outcome.directory), "diverged")
    assert diverged is not None
    assert diverged["reason"] == f"the gradient of {names[0]} is not finite in step {STEP} (epoch 2)"
    assert (diverged["step"], diverged["epoch"]) == (STEP, 1)


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


def test_a_sound_run_keeps_no_fault(tmp_path: Path) -> None:
    assert not list(trained.run(spec(), tmp_path).directory.glob("divergence*"))
