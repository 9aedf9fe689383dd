"""The network from scratch trains as torch does, and through the same run path: curves, checkpoints, records."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import trained
from torch import nn

import remeasure.training.engines.loop
from remeasure.models import registry
from remeasure.runs.execute import job_of
from remeasure.runs.folder import Outcome
from remeasure.spec.base import InputError
from remeasure.spec.run import ModelSpec, RunSpec
from remeasure.training.engines.numpy_engine import FromScratch, layers

NUMPY = "engine=numpy"
SGD = "recipe.optimizer={name: sgd, lr_peak: 0.05, momentum: 0.9}"


def spec(*overrides: str) -> RunSpec:
    return trained.spec("model.options.hidden_sizes=[32]", *overrides)


def weights(run_spec: RunSpec, folder: Path, *, seed: int = 3) -> dict[str, torch.Tensor]:
    """After training to the last epoch."""
    job: Any = job_of(run_spec, seed=seed, place=trained.place(folder))
    assert job.train(checkpoint=None, reports=[lambda _: None]) == {}
    return trained.weights(job.training.network)


def arrays(outcome: Outcome) -> dict[str, Any]:
    with np.load(outcome.directory / "predictions.npz") as found:
        return dict(found)


@pytest.mark.parametrize(
    "overrides",
    [(), (SGD,), ("recipe.clip_norm=0.05",), ("recipe.clip_norm=null",), ("model.options.activation=tanh",)],
    ids=["article", "sgd with momentum", "clipped", "not clipped", "tanh"],
)
def test_a_seed_ends_at_torchs_weights_but_for_rounding(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """42 steps of float32: an independent net on the same batches from the same weights."""
    found = weights(spec(NUMPY, *overrides), tmp_path / "numpy")
    for name, value in weights(spec(*overrides), tmp_path / "torch").items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)


def test_a_logistic_regression_too(tmp_path: Path) -> None:
    overrides = ("model=logreg", "recipe=article")
    found = weights(trained.spec(NUMPY, *overrides), tmp_path / "numpy")
    for name, value in weights(trained.spec(*overrides), tmp_path / "torch").items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)


def test_its_run_leaves_what_others_leave(tmp_path: Path) -> None:
    outcome, other = (trained.run(spec(*more), tmp_path, seed=1) for more in ((NUMPY,), ()))
    assert outcome.record.accuracy_percent == pytest.approx(other.record.accuracy_percent, abs=0.5)
    assert outcome.record.loss == pytest.approx(other.record.loss, rel=1e-3)
    assert outcome.record.num_params == other.record.num_params
    assert outcome.record.spec_sha256 != other.record.spec_sha256
    assert {path.name for path in outcome.directory.iterdir()} == {path.name for path in other.directory.iterdir()}


@pytest.mark.parametrize("overrides", [(), (SGD,)], ids=["adam", "sgd"])
def test_a_run_cut_short_ends_as_an_unbroken_one_bit_for_bit(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    whole = trained.run(spec(NUMPY, "steps_per_block=4", *overrides), tmp_path / "whole")

    class CutError(Exception):
        pass

    original = remeasure.training.engines.loop.CheckpointCallback.on_train_batch_end

    def cut(keeper: Any, trainer: Any, module: Any, *rest: Any) -> None:
        original(keeper, trainer, module, *rest)
        if module.num_steps == 29:  # in the midst of the second epoch
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(remeasure.training.engines.loop.CheckpointCallback, "on_train_batch_end", cut)
        with pytest.raises(CutError):
            trained.run(spec(NUMPY, "steps_per_block=4", *overrides), tmp_path / "cut")
    resumed = trained.run(spec(NUMPY, "steps_per_block=4", *overrides), tmp_path / "cut")
    assert arrays(resumed).keys() == arrays(whole).keys()
    assert all((arrays(resumed)[name] == value).all() for name, value in arrays(whole).items())
    assert resumed.record.loss == whole.record.loss


def test_its_forward_pass_is_torchs() -> None:
    options = {"hidden_sizes": [20, 15], "activation": "relu", "dropout": [], "dropout_masks": "bernoulli"}
    options |= {"batch_norm": False, "initialisation": "torch_default"}
    model = ModelSpec(name="mlp", builder="mlp", options=options)
    network = registry.build(model, image_shape=(1, 8, 8), num_classes=10, generator_seed=5)
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(FromScratch(network)(images), network(images), rtol=1e-5, atol=1e-6)


def test_its_layers_are_on_the_networks_own_weights() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    (dense,) = layers(network).values()
    dense.parameters[0][...] = 7.0
    assert (network[1].weight == 7.0).all()


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("recipe.loss.label_smoothing=0.1",), "has the cross-entropy alone"),
        (("recipe.loss.l2_penalty=0.1",), "has the cross-entropy alone"),
        (
            ("recipe.optimizer={name: rmsprop, lr_peak: 0.1}",),
            "the numpy engine has adam, sgd, not recipe.optimizer.name=rmsprop; choose engine=serial",
        ),
        (("recipe.optimizer.weight_decay=0.1",), "without weight decay"),
        (
            ("recipe.optimizer={name: sgd, lr_peak: 0.1, momentum: 0.9, nesterov: true}",),
            "has SGD with momentum",
        ),
        (("recipe.averaging={from_epoch: 1, decay: 0.9}",), "recipe.averaging: the numpy engine does not implement it"),
        (("precision=bfloat16",), "precision: the numpy engine has float32, got bfloat16"),
        (("channels_last=true",), "channels_last: the numpy engine has false, got true"),
        (("engine_width=2",), "engine_width: the numpy engine has 1, got 2; engine=batched trains several seeds"),
    ],
)
def test_what_it_cannot_do_is_refused(overrides: tuple[str, ...], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        spec(NUMPY, *overrides)


def test_a_layer_that_it_does_not_have_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="engine: the numpy engine has no Dropout"):
        trained.run(spec(NUMPY, "model.options.dropout=[0.2]"), tmp_path)
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_a_rate_that_is_too_high_ends_the_run_without_a_number(tmp_path: Path) -> None:
    wild = spec(NUMPY, "recipe.optimizer={name: sgd, lr_peak: 1.0e+12}", "recipe.clip_norm=null")
    outcome = trained.run(wild, tmp_path)
    assert outcome.record.accuracy_percent is None
