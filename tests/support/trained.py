"""Small real runs on scikit-learn's digits, for tests: 1,297 images to train, 500 to test, 21 steps of 64 an epoch."""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from remeasure.config.compose import compose
from remeasure.data import catalog, fingerprint
from remeasure.models import registry
from remeasure.runs.execute import execute, execute_together
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.training.engines.blocks import BlockTraining
from remeasure.training.engines.loop import train
from remeasure.training.engines.serial import Training
from remeasure.training.seeding import derive

STEPS_PER_EPOCH = 21  # ceil(1297 / 64)
LAST_BATCH = 17  # 1297 - 20 * 64


@cache
def spec(*overrides: str) -> RunSpec:
    """A spec on the digits, composed as on the command line: mlp2 and the article's recipe for 2 epochs."""
    config = compose(["model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=2", *overrides])
    source = fingerprint.fingerprint(config.data, root=Path("nowhere"))
    return config.spec(data_sha256=source.data_sha256)


def place(folder: Path) -> Place:
    """A place of its own under `folder`, on the CPU; not a git checkout."""
    return Place(runs=folder / "runs", project=folder, data_root=folder / "data", device_kind="cpu")


def quiet(directory: Path, event: Event) -> None:
    """A sink that nobody watches."""


def run(
    spec: RunSpec,
    folder: Path,
    *,
    seed: int = 0,
    row: str = "",
    fresh: bool = False,
    keeps: Collection[int] = (),
    sink: Callable[[Path, Event], None] = quiet,
) -> Outcome:
    """`execute` under `folder`."""
    return execute(spec, seed=seed, row=row, place=place(folder), sink=sink, fresh=fresh, keeps=keeps)


def run_together(
    spec: RunSpec,
    folder: Path,
    *,
    seed: int = 0,
    row: str = "",
    fresh: bool = False,
    keeps: Collection[int] = (),
    sink: Callable[[Path, Event], None] = quiet,
) -> list[Outcome]:
    """`execute_together` under `folder`."""
    return execute_together(spec, seed=seed, row=row, place=place(folder), sink=sink, fresh=fresh, keeps=keeps)


def training(spec: RunSpec, *, seed: int = 0, num_images: int | None = None) -> Training:
    """A Training on the first `num_images` digits (all by default), as a run makes it."""
    split = catalog.load_split(spec.data, "train", root=Path("nowhere"))
    network = registry.build(
        spec.model, image_shape=(1, 8, 8), num_classes=10, generator_seed=derive(seed, purpose="weights", step=0)
    )
    images, labels = torch.tensor(split.images)[:num_images], torch.tensor(split.labels)[:num_images]
    return Training(network, spec=spec, seed=seed, images=images, labels=labels)


def trained(
    training: BlockTraining, *, spec: RunSpec, folder: Path, callbacks: Sequence[Callback] = ()
) -> list[dict[str, Any]]:
    """Train one seed to the end; the epochs' reports."""
    (reports,) = trained_together(training, spec=spec, folder=folder, callbacks=callbacks)
    return reports


def trained_together(
    training: BlockTraining, *, spec: RunSpec, folder: Path, callbacks: Sequence[Callback] = ()
) -> list[list[dict[str, Any]]]:
    """Train to the end; the epochs' reports of each seed."""
    reports: list[list[dict[str, Any]]] = [[] for _ in training.seeds]
    train(
        training,
        spec=spec,
        device_kind="cpu",
        checkpoint=folder / "checkpoint.ckpt",
        reports=[each.append for each in reports],
        callbacks=callbacks,
    )
    return reports


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
