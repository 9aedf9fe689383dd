"""One run: RunSpec and seed → RunRecord. A finished run is returned, an unfinished one resumed, a new one started."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from remeasure.data import catalog
from remeasure.models import pretrained, registry
from remeasure.runs import splits
from remeasure.runs.folder import Outcome, Place, finished, open_directory, read_record
from remeasure.runs.hardware import keep_freed_memory, processor
from remeasure.runs.recorder import Attempt, Scored, Sink
from remeasure.runs.splits import data_official, kept_to_train, refuse_changed_files, scored_on
from remeasure.spec.base import InputError
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import locks
from remeasure.training.checkpoints import sound
from remeasure.training.diagnostics import leaks
from remeasure.training.diagnostics.doctor import SUSPICIOUS_EPOCHS, Doctor, check_labels
from remeasure.training.diagnostics.nonfinite import (
    WatchedBatchedTraining,
    WatchedNumpyTraining,
    WatchedTraining,
    diagnosed,
    diagnosed_together,
)
from remeasure.training.engines.batched import BatchedTraining
from remeasure.training.engines.loop import train
from remeasure.training.engines.numpy_engine import FromScratch, NumpyTraining
from remeasure.training.engines.serial import DivergenceError, Training
from remeasure.training.inference import Predictions, predict
from remeasure.training.photographs import evaluate
from remeasure.training.seeding import derive


def execute(spec: RunSpec, *, seed: int, row: str, place: Place, sink: Sink, fresh: bool = False) -> Outcome:
    """The outcome of one seed: training and evaluation, or evaluation of published weights; a finished run is reused.

    `row`: the ledger row it belongs to, "" for none. Raises InputError, and any exception of training, which the
    journal records.
    """
    outcomes = execute_together(spec, seed=seed, row=row, place=place, sink=sink, fresh=fresh)
    return next(outcome for outcome in outcomes if outcome.record.seed == seed)


def execute_together(
    spec: RunSpec, *, seed: int, row: str, place: Place, sink: Sink, fresh: bool = False
) -> list[Outcome]:
    """`execute` for all seeds that train together with `seed`: `seed` alone, or its group in the batched engine."""
    if getattr(rank_zero_only, "rank", 0):
        _follow(spec, seed=seed, place=place)
    seeds = spec.together(seed)
    if not fresh and (done := _all_finished(spec, seeds=seeds, place=place)):
        return done
    directories = [open_directory(spec, seed=each, place=place, fresh=fresh) for each in seeds]
    with contextlib.ExitStack() as held:
        for directory in directories:
            held.enter_context(locks.held(directory / "lock"))
        reused = [(directory / "record.json").is_file() for directory in directories]
        if not all(reused):  # another process may have finished them while this one waited
            attempts = [
                Attempt(directory, spec=spec, seed=each, row=row, place=place, sink=sink)
                for each, directory in zip(seeds, directories, strict=True)
            ]
            with processor(spec):
                records = _measure(spec, attempts=attempts, place=place)
        else:
            records = [read_record(directory) for directory in directories]
    ends = zip(records, directories, reused, strict=True)
    return [Outcome(record=record, directory=directory, reused=again) for record, directory, again in ends]


def _all_finished(spec: RunSpec, *, seeds: range, place: Place) -> list[Outcome]:
    """The outcomes of these seeds if all are finished, else []."""
    done = [outcome for seed in seeds if (outcome := finished(spec, seed=seed, place=place))]
    return done if len(done) == len(seeds) else []


def _follow(spec: RunSpec, *, seed: int, place: Place) -> NoReturn:
    """Train in a process of rank above 0, then exit; rank 0 alone locks, scores and records the run."""
    directory = open_directory(spec, seed=seed, place=place, fresh=False)
    network = _network(spec, seed=seed)
    _stream(network, spec=spec, seed=seed, place=place, checkpoint=directory / "checkpoint.ckpt", report=lambda _: None)
    raise SystemExit(0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A prepared training or evaluation. `do(checkpoint, attempts)` runs it; `attempts`: one a seed, in order of seeds.

    `do` returns the result of each seed, or raises DivergenceError for all of them.
    """

    num_params: int
    do: Callable[[Path, Sequence[Attempt]], Sequence[Scored | DivergenceError]]


def _measure(spec: RunSpec, *, attempts: Sequence[Attempt], place: Place) -> list[RunRecord]:
    """Train, evaluate once after the last epoch, write the results, then delete the checkpoint."""
    work = _work(spec, seeds=[attempt.seed for attempt in attempts], place=place)
    folder = attempts[0].directory  # seeds that train together share one checkpoint, in the first one's
    checkpoint, official = sound(folder / "checkpoint.ckpt"), data_official(spec, place=place)
    for attempt in attempts:
        attempt.announce(num_params=work.num_params, data_official=official, checkpoint=checkpoint)
    results: Sequence[Scored | DivergenceError]
    keep_freed_memory()
    try:
        results = work.do(folder / "checkpoint.ckpt", attempts)
    except DivergenceError as reason:
        results = [reason] * len(attempts)
    except BaseException as error:
        for attempt in attempts:
            attempt.fail(error)
        raise
    records = [attempt.close(result) for attempt, result in zip(attempts, results, strict=True)]
    for leftover in folder.glob("checkpoint.*"):
        leftover.unlink(missing_ok=True)
    return records


def _work(spec: RunSpec, *, seeds: Sequence[int], place: Place) -> Work:
    if isinstance(spec.recipe, Evaluation):
        return _evaluation(spec, place=place)
    if spec.recipe.streaming:
        return _stream_and_score(spec, seed=seeds[0], place=place)
    if spec.engine == "batched":
        return _train_together(spec, seeds=seeds, place=place)
    return _train_and_score(spec, seed=seeds[0], place=place)


def _stream_and_score(spec: RunSpec, *, seed: int, place: Place) -> Work:
    """Training on photographs that are streamed from their files, on all devices; rank 0 scores."""
    assert isinstance(spec.recipe, Recipe)
    assert spec.recipe.streaming is not None
    transform = spec.recipe.streaming.transform
    listing = catalog.load_listing(spec.data, "test", root=place.data_root)
    network = _network(spec, seed=seed)

    def trained(checkpoint: Path, attempt: Attempt) -> Scored:
        wall_seconds = _stream(
            network,
            spec=spec,
            seed=seed,
            place=place,
            checkpoint=checkpoint,
            report=attempt.epoch,
            doctor=_doctor(attempt),
        )
        sound(checkpoint.with_suffix(".npz"))
        _, predictions = evaluate.evaluate(
            network,
            listing,
            spec=spec,
            transform=transform,
            device=torch.device(place.device_kind),
            checkpoint=checkpoint.with_suffix(".npz"),
            report=lambda values: attempt.watch("images", **values),
        )
        _refuse_not_finite(predictions, spec=spec)
        labels = torch.tensor(listing.labels)
        return Scored(network=network, predictions=predictions, labels=labels, wall_seconds=wall_seconds)

    def do(checkpoint: Path, attempts: Sequence[Attempt]) -> list[Scored]:
        (attempt,) = attempts
        try:
            return [trained(checkpoint, attempt)]
        except DivergenceError as error:
            if not _on_one_device(place):  # other ranks have ended, and a replay would wait for them
                raise
            again = functools.partial(_stream, _network(spec, seed=seed), spec=spec, seed=seed, place=place)
            replay = functools.partial(again, checkpoint=checkpoint, report=lambda _: None, watched_until=error.step)
            raise diagnosed(error, replay=replay, folder=attempt.directory) from None

    return Work(num_params=registry.num_trainable(network), do=do)


def _doctor(attempt: Attempt) -> Doctor | None:
    return Doctor(attempt.chart, inside=not attempt.spec.compile) if attempt.place.doctor else None


def _num_devices(place: Place) -> int:
    return torch.cuda.device_count() if place.device_kind == "cuda" else 1


def _on_one_device(place: Place) -> bool:
    from remeasure.training.photographs import train as photographs_train

    return _num_devices(place) * photographs_train.num_nodes() == 1


def _stream(
    network: nn.Module,
    *,
    spec: RunSpec,
    seed: int,
    place: Place,
    checkpoint: Path,
    report: Callable[[dict[str, Any]], None],
    doctor: Doctor | None = None,
    watched_until: int | None = None,
) -> float:
    """Seconds of training on all devices of this kind; afterwards `network` holds the weights to score."""
    from remeasure.training.photographs import train as photographs_train  # timm: seconds to import

    listing = catalog.load_listing(spec.data, "train", root=place.data_root)
    devices = _num_devices(place)
    return photographs_train.train(
        network,
        spec=spec,
        seed=seed,
        paths=[f"{listing.place}/{name}" for name in listing.names],
        labels=listing.labels,
        device_kind=place.device_kind,
        devices=devices,
        num_workers=evaluate.num_cores() // devices,
        checkpoint=checkpoint,
        report=report,
        doctor=doctor,
        watched_until=watched_until,
    )


def _train_and_score(spec: RunSpec, *, seed: int, place: Place) -> Work:
    training = build_training(spec, seed=seed, place=place)

    def do(checkpoint: Path, attempts: Sequence[Attempt]) -> list[Scored]:
        (attempt,) = attempts
        fit = functools.partial(train, spec=spec, device_kind=place.device_kind, checkpoint=checkpoint)
        try:
            wall_seconds = fit(training, report=attempt.epoch, doctor=_doctor(attempt))
            return [_scored(training.scored, spec=spec, place=place, wall_seconds=wall_seconds)]
        except DivergenceError as error:
            watched = build_training(spec, seed=seed, place=place, watched_until=error.step)
            replay = functools.partial(fit, watched, report=lambda _: None)
            raise diagnosed(error, replay=replay, folder=attempt.directory) from None

    return Work(num_params=registry.num_trainable(training.network), do=do)


def _train_together(spec: RunSpec, *, seeds: Sequence[int], place: Place) -> Work:
    """Several seeds trained as one network; each seed's seconds are an equal share."""
    training = build_training(spec, seed=seeds[0], place=place)
    assert isinstance(training, BatchedTraining)

    def do(checkpoint: Path, attempts: Sequence[Attempt]) -> list[Scored | DivergenceError]:
        def report(values: dict[str, Any]) -> None:
            for index, attempt in enumerate(attempts):
                own = {key: value[index] if isinstance(value, list) else value for key, value in values.items()}
                if index not in training.diverged:
                    attempt.epoch(own)
                    if place.doctor and own["epoch"] <= SUSPICIOUS_EPOCHS:
                        check_labels(attempt.chart, images=training.images, labels=training.labels, loss=own["loss"])

        wall_seconds = 0.0
        with contextlib.suppress(DivergenceError):  # raised if all seeds diverged; `training.diverged` holds each
            wall_seconds = train(
                training, spec=spec, device_kind=place.device_kind, checkpoint=checkpoint, report=report
            )
        results = [result(index, seconds=wall_seconds / len(seeds)) for index in range(len(seeds))]
        lost = {index: end for index, end in enumerate(results) if isinstance(end, DivergenceError)}
        folders = {index: attempts[index].directory for index in lost if not attempts[index].finished}
        if not folders:
            return results
        watched = build_training(
            spec, seed=seeds[0], place=place, watched_until=max(error.step for error in lost.values())
        )
        assert isinstance(watched, WatchedBatchedTraining)
        found = diagnosed_together(watched, spec=spec, device_kind=place.device_kind, folders=folders)
        return [found.get(index, end) for index, end in enumerate(results)]

    def result(index: int, *, seconds: float) -> Scored | DivergenceError:
        if reason := training.diverged.get(index):
            return reason
        network = _network(spec, seed=seeds[index])
        training.network.unstack(index, into=network)
        try:
            return _scored(network, spec=spec, place=place, wall_seconds=seconds)
        except DivergenceError as reason:
            return reason

    return Work(num_params=registry.num_trainable(training.network) // len(seeds), do=do)


def _scored(network: nn.Module, *, spec: RunSpec, place: Place, wall_seconds: float) -> Scored:
    images, labels = scored_on(spec, place=place)
    refuse_changed_files(spec, place=place)
    leaks.refuse_shared_images(kept_to_train(spec, place=place)[0], images, spec=spec)
    scored = FromScratch(network) if spec.engine == "numpy" else network
    predictions = predict(scored, images, labels=labels, spec=spec, device=torch.device(place.device_kind))
    _refuse_not_finite(predictions, spec=spec)
    return Scored(network=network, predictions=predictions, labels=labels, wall_seconds=wall_seconds)


def _refuse_not_finite(predictions: Predictions, *, spec: RunSpec) -> None:
    """Raise DivergenceError if the loss is not finite: the last steps diverged after the last check during training."""
    assert isinstance(spec.recipe, Recipe)
    if not math.isfinite(predictions.loss):
        batches = (spec.data.num_train - spec.data.num_validation) / spec.recipe.batch_size
        steps_per_epoch = math.floor(batches) if spec.recipe.streaming else math.ceil(batches)
        raise DivergenceError(epoch=spec.recipe.epochs_total - 1, step=spec.recipe.epochs_total * steps_per_epoch - 1)


def _evaluation(spec: RunSpec, *, place: Place) -> Work:
    """Published weights on the photographs of the test split."""
    recipe = spec.recipe
    assert isinstance(recipe, Evaluation)
    listing = catalog.load_listing(spec.data, "test", root=place.data_root)
    network = _network(spec, seed=0)
    path = pretrained.locate(spec)
    assert path is not None
    pretrained.load(network, path, sha256=spec.weights_sha256)

    def do(checkpoint: Path, attempts: Sequence[Attempt]) -> list[Scored]:
        (attempt,) = attempts
        wall_seconds, predictions = evaluate.evaluate(
            network,
            listing,
            spec=spec,
            transform=recipe.transform,
            device=torch.device(place.device_kind),
            checkpoint=checkpoint,
            report=lambda values: attempt.watch("images", **values),
        )
        if not math.isfinite(predictions.loss):
            raise InputError(f"{path}: with these weights the net's answers are not finite in {spec.precision}")
        labels = torch.tensor(listing.labels)
        return [Scored(network=network, predictions=predictions, labels=labels, wall_seconds=wall_seconds)]

    return Work(num_params=registry.num_trainable(network), do=do)


def build_training(spec: RunSpec, *, seed: int, place: Place, watched_until: int | None = None) -> Training:
    """A Lightning module on the spec's data, with the initial weights of the seed, or of each seed in its group.

    `watched_until`: the module checks for values that are not finite, and stops at this step
    (training/diagnostics/nonfinite.py).
    """
    images, labels = splits.trained_on(spec, seed=seed, place=place)
    networks = [_network(spec, seed=each) for each in spec.together(seed)]
    named: dict[str, Any] = {"spec": spec, "images": images, "labels": labels}
    if spec.engine == "batched":
        named["seeds"] = spec.together(seed)
        if watched_until is None:
            return BatchedTraining(networks, **named)
        return WatchedBatchedTraining(networks, until=watched_until, **named)
    plain, watched = (NumpyTraining, WatchedNumpyTraining) if spec.engine == "numpy" else (Training, WatchedTraining)
    if watched_until is None:
        return plain(networks[0], seed=seed, **named)
    return watched(networks[0], seed=seed, until=watched_until, **named)


def _network(spec: RunSpec, *, seed: int) -> nn.Module:
    network = registry.build(
        spec.model,
        image_shape=spec.input_shape,
        num_classes=spec.data.num_classes,
        generator_seed=derive(seed, purpose="weights", step=0),
    )
    if spec.compile:
        network.compile()
    return network
