"""This project in a contest: whole campaigns on the workers, and one seed's training, with Lightning and without."""

import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.config.compose import compose
from remeasure.data import fingerprint
from remeasure.runs import journal
from remeasure.runs.execute import job_of
from remeasure.runs.folder import Place
from remeasure.runs.hardware import processor
from remeasure.spec.run import RunSpec
from remeasure.training.engines.loop import train
from remeasure.training.engines.serial import SerialJob, Training
from remeasure.training.seeding import derive


def compose_spec(*overrides: str, data_root: Path) -> RunSpec:
    """The spec of a command line on the CPU. Raises InputError if data are missing."""
    config = compose(list(overrides))
    return config.spec(data_sha256=fingerprint.fingerprint(config.data, root=data_root).data_sha256)


# ---------------------------------------------------------------- campaigns


def tasks(spec: RunSpec, *, seeds: Iterable[int]) -> list[Task]:
    """A task for each seed, to train as in a campaign that nobody watches."""
    return [Task(row="", seed=seed, spec=spec, fresh=False) for seed in seeds]


def warm_up(workers: Workers, *, spec: RunSpec, seeds: Iterator[int]) -> None:
    """Train one untimed seed on each worker, so that it has imported everything and read the data."""
    workers.run(tasks(spec, seeds=itertools.islice(seeds, workers.num)))


def campaign_seconds(workers: Workers, *, spec: RunSpec, seeds: Sequence[int], epochs: int) -> float:
    """Wall seconds of a campaign of these seeds at `epochs` epochs, everything included: training, scoring, records.

    Only the spec's own epochs are measured. Further epochs are added at the measured seconds of an epoch, spread over
    the workers: nothing else depends on their number.
    """
    began = time.perf_counter()
    outcomes = workers.run(tasks(spec, seeds=seeds))
    wall_seconds = time.perf_counter() - began
    assert not any(outcome.reused for outcome in outcomes)
    points = [point for outcome in outcomes for point in journal.curve(journal.read(outcome.directory))]
    trained: float = sum(point["seconds"] for point in points if point["split"] == "train") / spec.recipe.epochs_total
    side_by_side = min(workers.num // workers.cores(spec), len(seeds))
    return wall_seconds + (epochs - spec.recipe.epochs_total) * trained / side_by_side


# ---------------------------------------------------------------- one seed


def through_lightning(*, spec: RunSpec, place: Place, seed: int) -> list[float]:
    """Seconds of each epoch of one seed's training, as in a run."""
    return timed_training(training_of(spec, seed=seed, place=place), spec=spec)


def training_of(spec: RunSpec, *, seed: int, place: Place) -> Training:
    """As in a run."""
    job = job_of(spec, seed=seed, place=place)
    assert isinstance(job, SerialJob)
    return job.training


def timed_training(training: Training, *, spec: RunSpec) -> list[float]:
    seconds: list[float] = []
    with processor(spec), tempfile.TemporaryDirectory() as folder:
        train(
            training,
            spec=spec,
            device_kind="cpu",
            checkpoint=Path(folder) / "checkpoint.ckpt",
            reports=[lambda values: seconds.append(values["seconds"])],
        )
    return seconds


def by_hand(*, spec: RunSpec, place: Place, seed: int) -> list[float]:
    """Seconds of each epoch of the same steps in a bare loop."""
    return timed_steps(training_of(spec, seed=seed, place=place), spec=spec)


def timed_steps(training: Training, *, spec: RunSpec) -> list[float]:
    """As `timed_training`, with equal weights, but without Lightning's loop, hooks and optimiser."""
    seconds: list[float] = []
    with processor(spec):
        optimizer = training.configure_optimizers()
        for epoch in range(spec.recipe.epochs_total):
            began = time.perf_counter()
            _epoch(training, optimizer=optimizer, epoch=epoch)
            seconds.append(time.perf_counter() - began)
    return seconds


def _epoch(training: Training, *, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Train block by block, since Training draws random numbers and counts totals for each block."""
    training.network.train()
    training.on_train_epoch_start()
    step = epoch * training.steps_per_epoch
    for block in torch.split(training.order(epoch), training.recipe.batch_size * training.steps_per_block):
        torch.manual_seed(derive(training.seed, purpose="dropout", step=step))
        generator, seen = training.generator(step), []
        for chosen in torch.split(block, training.recipe.batch_size):
            optimizer.param_groups[0]["lr"] = training.learning_rate(step)
            seen.append(training.take(chosen, step=step, generator=generator, optimizer=optimizer))
            step += 1
        training.count(seen)
