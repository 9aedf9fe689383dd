"""Trained numbers do not change unnoticed: each model config's loss after 20 optimiser steps of its home recipe.

The one place where expected values are this code's own output; training/engines/test_serial.py shows that they are
right.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.trained import place

import remeasure.runs.splits
from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.runs.execute import execute
from remeasure.spec.config import Config
from remeasure.spec.record import Event
from remeasure.spec.run import TRAINING_VERSION
from remeasure.system import paths
from remeasure.training.engines.serial import SerialJob, Training
from remeasure.training.inference import predict

EVERY_MODEL = sorted(path.stem for path in (paths.conf_dir() / "model").glob("*.yaml"))
ONLY_EVALUATED = {
    "vit_b16"
}  # its home recipe trains nothing; tests/training/photographs/test_evaluate.py compares it with timm's own
MODELS = [name for name in EVERY_MODEL if name not in ONLY_EVALUATED]
STEPS = 20
# On tiny batches, Muon's renormalised steps magnify every rounding (tests/training/test_muon.py tests them).
NOT_HOME = {"resnet18": ["recipe=resnet18_fast"]}
NUM_IMAGES = {"resnet18": 320}  # else 2,560: batches of 128
GOLDEN_VERSION = 1
GOLDEN = {
    "article_mlp": 1.283043,
    "lenet5": 2.329528,
    "lenet5_remake": 1.835835,
    "logreg": 0.04397876,
    "mlp2": 0.7573301,
    "mlp4": 0.7210149,
    "resnet18": 2.346635,
}
WHAT_TO_DO = """\
Trained numbers changed. If that is not intended, find out why. If it is, raise TRAINING_VERSION in
src/remeasure/spec/run.py (records made before it are then shown as stale), and write into tests/test_golden.py
GOLDEN_VERSION = {version}
GOLDEN = {{
{values}
}}"""


def num_images(model: str) -> int:
    return NUM_IMAGES.get(model, 2560)


def synthetic(*, num: int, shape: tuple[int, int, int]) -> Split:
    """So many images, drawn by NumPy: three tenths of a class's template among noise; a fifth are mislabelled.

    On such data the losses feel a rate 1 % higher, but not another processor's rounding.
    """
    rng = np.random.default_rng(1998)
    templates, classes = rng.random((10, *shape)) < 0.2, rng.integers(0, 10, num)
    noise, shown = (rng.random((num, *shape)) < share for share in (0.2, 0.3))
    images = np.where(shown, templates[classes], noise).astype(np.uint8) * 255
    labels = np.where(rng.random(num) < 0.2, rng.integers(0, 10, num), classes)
    return Split(images=images, labels=labels, verified=False)


def home(model: str) -> Config:
    """The model's home recipe on so few images: an epoch of 20 steps, or 20 epochs of one. A warm-up takes 5 steps.

    In float32 on one thread, so that the number is the same on every processor, to 1e-4.
    """
    num = num_images(model)
    choices = [f"model={model}", *NOT_HOME.get(model, ())]
    config = compose([*choices, f"data.num_train={num}", "precision=float32", "cpu_threads=1"])
    recipe, warms_up = config.recipe, config.recipe.schedule.epochs_warmup > 0
    batch_size = num if recipe.batch_size >= 2560 else num // STEPS
    schedule = dataclasses.replace(recipe.schedule, epochs_warmup=0.25 * warms_up)
    rate = recipe.optimizer.lr_peak
    if model in NUM_IMAGES:  # tiny batches at the home's rate would be chaos: every rounding would show
        rate *= batch_size / recipe.batch_size
    changes = {"batch_size": batch_size, "schedule": schedule}
    changes["optimizer"] = dataclasses.replace(recipe.optimizer, lr_peak=rate)
    return dataclasses.replace(config, recipe=dataclasses.replace(recipe, **changes))


class EnoughError(Exception):
    """20 steps are done."""


def loss_after_20_steps(model: str, *, folder: Path) -> float:
    """Mean cross-entropy of these images, normalised as the recipe says, after 20 steps on them with seed 0."""
    spec = home(model).spec(data_sha256="synthetic")
    split = synthetic(num=num_images(model), shape=spec.data.image_shape)
    kept: list[Training] = []
    built = SerialJob.built

    def keep(job: SerialJob) -> Training:
        kept.append(built(job))
        return kept[0]

    def stop(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event["event"] == "epoch" and event["step"] == STEPS:
            raise EnoughError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remeasure.runs.splits, "_LOADED", {})
        patch.setattr(catalog, "load_split", lambda *_, **__: split)
        patch.setattr(SerialJob, "built", keep)
        with pytest.raises(EnoughError):
            execute(spec, seed=0, row="", place=place(folder), sink=stop)
    images, labels = torch.tensor(split.images), torch.tensor(split.labels)
    return predict(kept[0].network, images, labels=labels, spec=spec, device=torch.device("cpu")).loss


def test_every_model_config_has_a_golden_number_but_for_those_that_are_only_evaluated() -> None:
    assert sorted(GOLDEN) == MODELS
    found = {name for name in EVERY_MODEL if compose([f"model={name}"]).spec(data_sha256="").mode == "evaluate"}
    assert found == ONLY_EVALUATED


def test_losses_after_20_steps_change_only_with_the_training_version(tmp_path: Path) -> None:
    found = {name: loss_after_20_steps(name, folder=tmp_path / name) for name in MODELS}
    changed = {name for name in MODELS if found[name] != pytest.approx(GOLDEN.get(name, math.nan), rel=1e-4)}
    values = "\n".join(f'    "{name}": {loss:.7g},' for name, loss in found.items())
    version = TRAINING_VERSION + (GOLDEN_VERSION == TRAINING_VERSION)
    message = WHAT_TO_DO.format(version=version, values=values)
    assert (GOLDEN_VERSION, changed) == (TRAINING_VERSION, set()), message
