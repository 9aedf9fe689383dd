"""A captured step trains to the numbers of one that is not, on a stand-in for CUDA graphs."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import graphs, trained
from tests.support.graphs import Graph
from tests.support.trained import STEPS_PER_EPOCH, same, weights
from tests.training.engines import test_batched
from tests.training.engines.test_serial import GROWING, any_size
from torch import nn

from remeasure.runs import timing
from remeasure.runs.hardware import processor
from remeasure.spec.base import DivergenceError
from remeasure.spec.findings import Finding
from remeasure.spec.recipe import Optimizer
from remeasure.spec.run import RunSpec
from remeasure.training.diagnostics.curves import CurveMonitor
from remeasure.training.diagnostics.doctor import LOOK_STEPS, Doctor
from remeasure.training.diagnostics.nonfinite import Tracer
from remeasure.training.engines import capture
from remeasure.training.engines.blocks import BlockTraining
from remeasure.training.engines.capture import STEPS_BEFORE_CAPTURE, Captured
from remeasure.training.engines.loop import CheckpointCallback, train
from remeasure.training.engines.serial import Training
from remeasure.training.optimizers import build_optimizer
from remeasure.training.seeding import derive

DROPS = ("model=mlp4", "recipe=article", "recipe.epochs_total=2")  # its masks are drawn in each step
SGD = ("recipe.optimizer={name: sgd, lr_peak: 0.02, momentum: 0.9, nesterov: true}", "recipe.schedule.name=linear")
MUON = (
    *("model=mlp4", "model.options.hidden_sizes=[64,64]", "recipe=article", "recipe.epochs_total=2"),
    "recipe.optimizer={name: muon, lr_peak: 0.1, momentum: 0.6, sgd_lr_peak: 0.02, betas: null, eps: null}",
)
CROPPED = ("recipe.augmentation={name: crop, pad_pixels: 1, flip_probability: 0.5, cutout_pixels: 2}",)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    return graphs.stand_in(monkeypatch)


def spec(*overrides: str) -> RunSpec:
    return trained.spec("steps_per_block=4", *overrides)


def end(
    make: Callable[[], BlockTraining], *, spec: RunSpec, folder: Path, wanted: bool
) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights and reports, but for the seconds."""
    os.environ["REMEASURE_CAPTURE"] = str(int(wanted))
    training = make()
    reports = trained.trained_together(training, spec=spec, folder=folder / str(wanted))
    return weights(training.network), [{**report, "seconds": None} for seed in reports for report in seed]


@pytest.mark.parametrize("overrides", [(), DROPS, SGD, MUON, CROPPED], ids=["adam", "dropout", "sgd", "muon", "crop"])
def test_captured_steps_train_to_the_numbers_of_others(
    overrides: tuple[str, ...], captured: list[Graph], tmp_path: Path
) -> None:
    """Serial; 20 whole batches an epoch, of which the last 37 of two are replayed."""
    one = spec(*overrides)
    make = lambda: trained.training(one)  # noqa: E731
    found, reports = end(make, spec=one, folder=tmp_path, wanted=True)
    assert [graph.num_replays for graph in captured] == [2 * (STEPS_PER_EPOCH - 1) - STEPS_BEFORE_CAPTURE]
    expected, curve = end(make, spec=one, folder=tmp_path, wanted=False)
    assert same(found, expected)
    assert reports == curve
    assert len(captured) == 1


def test_captured_steps_of_several_seeds_train_to_the_numbers_of_others(captured: list[Graph], tmp_path: Path) -> None:
    both = spec(*test_batched.WIDTH, *DROPS)
    make = lambda: test_batched.together(*DROPS)  # noqa: E731
    found, reports = end(make, spec=both, folder=tmp_path, wanted=True)
    assert [graph.num_replays for graph in captured] == [2 * (STEPS_PER_EPOCH - 1) - STEPS_BEFORE_CAPTURE]
    expected, curve = end(make, spec=both, folder=tmp_path, wanted=False)
    assert same(found, expected)
    assert reports == curve


def test_each_size_of_images_has_a_graph(captured: list[Graph], tmp_path: Path) -> None:
    """Epoch 0 at 4 pixels, 1 and 2 at 6, 3 at all 8; 20 whole batches each."""
    growing = spec(*GROWING, "recipe.epochs_total=4")
    make = lambda: any_size(growing)  # noqa: E731
    found, _ = end(make, spec=growing, folder=tmp_path, wanted=True)
    assert [graph.num_replays for graph in captured] == [20 - STEPS_BEFORE_CAPTURE, 37, 20 - STEPS_BEFORE_CAPTURE]
    expected, _ = end(make, spec=growing, folder=tmp_path, wanted=False)
    assert same(found, expected)


def test_a_step_that_waits_for_the_device_cannot_be_captured(captured: list[Graph]) -> None:  # noqa: ARG001
    call = Captured()
    for _ in range(STEPS_BEFORE_CAPTURE):
        call(lambda chosen: (chosen * chosen.sum().item(),), torch.ones(2), key=None)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        call(lambda chosen: (chosen * chosen.sum().item(),), torch.ones(2), key=None)


def test_what_a_step_returned_stays_when_the_next_one_is_replayed(captured: list[Graph]) -> None:  # noqa: ARG001
    call = Captured()
    seen = [call(lambda chosen: (2 * chosen,), torch.tensor([step]), key=None)[0] for step in range(6)]
    assert [int(value) for value in seen] == [0, 2, 4, 6, 8, 10]


def test_the_doctor_sees_the_steps_it_looks_at_and_changes_nothing(captured: list[Graph], tmp_path: Path) -> None:
    """21 steps an epoch, 42 in all: it looks at 10 from step 0 and 20 on. Step 20 is short: it never is replayed."""
    found: list[Finding] = []
    one, healthy = spec(*SGD), trained.training(spec(*SGD))
    chart = CurveMonitor(num_classes=10, epochs_total=2, report=found.append)
    train(
        healthy,
        spec=one,
        device_kind="cpu",
        checkpoint=tmp_path / "c",
        reports=[chart.see],
        callbacks=[Doctor([chart])],
    )
    assert chart.same_answer > 0, "a look was concluded"
    assert [graph.num_replays for graph in captured] == [41 - STEPS_BEFORE_CAPTURE - 2 * LOOK_STEPS]
    alone = trained.training(one)
    trained.trained(alone, spec=one, folder=tmp_path)
    assert same(weights(healthy.network), weights(alone.network))


def test_where_every_layer_is_watched_nothing_is_captured(captured: list[Graph], tmp_path: Path) -> None:
    one = trained.training(spec())
    with pytest.raises(DivergenceError):  # its end
        trained.trained(one, spec=spec(), folder=tmp_path, callbacks=[Tracer([0], until=30)])
    assert not captured


def test_lbfgs_is_not_captured(captured: list[Graph], tmp_path: Path) -> None:
    one = spec("model=logreg", "recipe=lbfgs", "recipe.epochs_total=6")
    trained.trained(trained.training(one), spec=one, folder=tmp_path)
    assert not captured


class CutError(Exception):
    """The lights go out."""


def test_a_captured_training_cut_short_ends_as_an_unbroken_one(
    captured: list[Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    unbroken = trained.training(spec(*SGD))
    trained.trained(unbroken, spec=spec(*SGD), folder=tmp_path / "unbroken")
    original = CheckpointCallback._save_when_due

    def save(self: CheckpointCallback, trainer: Any) -> None:
        original(self, trainer)
        if trainer.lightning_module.num_steps == STEPS_PER_EPOCH + 8:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_save_when_due", save)
        with pytest.raises(CutError):
            trained.trained(trained.training(spec(*SGD)), spec=spec(*SGD), folder=tmp_path)
    resumed = trained.training(spec(*SGD))
    trained.trained(resumed, spec=spec(*SGD), folder=tmp_path)
    assert same(weights(resumed.network), weights(unbroken.network))
    assert len(captured) == 3


def test_timing_waits_for_the_device_only_outside_a_capture(
    captured: list[Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that train together, too; and half a second is enough for a row."""

    def clock(device_kind: str) -> Callable[[], float]:
        def now() -> float:
            assert not Graph.capturing, "operation not permitted when stream is capturing"
            return time.perf_counter()

        assert device_kind == "cpu"
        return now

    monkeypatch.setattr(timing, "_clock_of", clock)
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.2)
    for overrides in ((), test_batched.WIDTH):
        one = trained.spec(*overrides, "recipe.epochs_total=1000")
        assert 0 < timing.seconds_of_seed(one, place=trained.place(tmp_path)) < 1000
    assert len(captured) == 2
    assert all(graph.num_replays > 2 for graph in captured)


# ---------------------------------------------------------------- where a real GPU would be


def test_on_cuda_distortions_are_drawn_on_the_device_and_elsewhere_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trained.training(spec())
    generator = one.generator(3)
    assert generator is not None
    assert generator.initial_seed() == derive(0, purpose="augmentation", step=3)
    monkeypatch.setattr(Training, "device", torch.device("cuda"))
    assert one.generator(3) is None


@pytest.mark.parametrize("name", sorted(set(Optimizer.choices) - {"lbfgs"}))
def test_the_rate_of_a_captured_optimiser_is_the_tensor_it_was_given(name: str, captured: list[Graph]) -> None:  # noqa: ARG001
    muons = {"momentum": 0.6, "sgd_lr_peak": 0.1} if name == "muon" else {}
    optimizer = Optimizer.choices[name](lr_peak=0.1, **muons)
    assert optimizer.capturable
    rate = torch.tensor(0.1)
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    built = build_optimizer(parameters, optimizer=optimizer, captured_rate=rate)
    assert built.param_groups[0]["lr"] is rate
    assert built.param_groups[0].get("capturable", True)


def test_without_a_gpu_nothing_is_captured() -> None:
    assert capture.possible(torch.device("cuda"))
    assert not capture.possible(torch.device("cpu"))
    assert trained.training(spec()).configure_optimizers().param_groups[0]["lr"] == 1e-3


def test_float32_is_float32_and_fresh_memory_is_left_as_it_is() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    with processor(spec()):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
