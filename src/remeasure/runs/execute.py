"""One run: RunSpec and seed → RunRecord. A finished run is returned, an unfinished one resumed, a new one started."""

import contextlib
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from remeasure.runs import code
from remeasure.runs.folder import Outcome, Place, finished, open_directory, read_record
from remeasure.runs.hardware import keep_freed_memory, processor
from remeasure.runs.journal import Sink
from remeasure.runs.recorder import Attempt
from remeasure.runs.splits import Splits
from remeasure.spec.base import DivergenceError
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import locks
from remeasure.training.checkpoints import sound
from remeasure.training.diagnostics import nonfinite
from remeasure.training.diagnostics.doctor import Doctor
from remeasure.training.engines.base import Job, Scored, engine_of, find_world
from remeasure.training.photographs import world as worlds
from remeasure.training.photographs.world import ALONE, World


def execute(
    spec: RunSpec,
    *,
    seed: int,
    row: str,
    place: Place,
    sink: Sink,
    fresh: bool = False,
    keeps: Collection[int] = (),
) -> Outcome:
    """The outcome of one seed: training and evaluation, or evaluation of published weights; a finished run is reused.

    `row`: the ledger row it belongs to, "" for none. `keeps`: the seeds whose trained network is kept
    (models/saved.py). Raises InputError, and any exception of training, which the journal records.
    """
    outcomes = execute_together(spec, seed=seed, row=row, place=place, sink=sink, fresh=fresh, keeps=keeps)
    return next(outcome for outcome in outcomes if outcome.record.seed == seed)


def execute_together(
    spec: RunSpec,
    *,
    seed: int,
    row: str,
    place: Place,
    sink: Sink,
    fresh: bool = False,
    keeps: Collection[int] = (),
) -> list[Outcome]:
    """`execute` for all seeds that train together with `seed`: `seed` alone, or its group in the batched engine."""
    seeds, world = spec.together(seed), world_of(spec, place=place)
    done = [] if fresh else [outcome for each in seeds if (outcome := finished(spec, seed=each, place=place))]
    if world.rank:  # rank 0 alone locks, records and tells of the run
        if len(done) < len(seeds):
            _share(world, spec=spec, seed=seed, place=place)
        raise SystemExit(0)
    if len(done) == len(seeds):
        return done
    directories = [open_directory(spec, seed=each, place=place, fresh=fresh) for each in seeds]
    with contextlib.ExitStack() as held:
        for directory in directories:
            held.enter_context(locks.held(directory / "lock"))
        reused = [(directory / "record.json").is_file() for directory in directories]
        if not all(reused):  # another process may have finished them while this one waited
            attempt = partial(Attempt, spec=spec, row=row, place=place, sink=sink, num_devices=world.size)
            attempts = [
                attempt(directory, seed=each, keeps=each in keeps)
                for each, directory in zip(seeds, directories, strict=True)
            ]
            share = partial(_share, spec=spec, seed=seed, place=place)
            with processor(spec), worlds.joined(world, device_kind=place.device_kind, share=share) as connected:
                worlds.told(directories[0], world=connected)
                records = _measure(spec, attempts=attempts, place=place, world=connected)
        else:
            records = [read_record(directory) for directory in directories]
            if world.launcher:
                with worlds.joined(world, device_kind=place.device_kind, share=print) as connected:
                    worlds.told(None, world=connected)
    ends = zip(records, directories, reused, strict=True)
    return [Outcome(record=record, directory=directory, reused=again) for record, directory, again in ends]


def world_of(spec: RunSpec, *, place: Place) -> World:
    """The processes that a run of `spec` is divided among. Raises InputError: its devices are not there."""
    return find_world(spec, devices=place.devices, num_nodes=place.num_nodes, device_kind=place.device_kind)


def job_of(spec: RunSpec, *, seed: int, place: Place, world: World = ALONE) -> Job:
    """The engine's job for the seeds that train together with `seed`, on the spec's data."""
    seeds, data = spec.together(seed), Splits(spec, place=place)
    several = world if world.size > 1 else None
    return engine_of(spec).build(spec, seeds=seeds, data=data, device_kind=place.device_kind, world=several)


def _share(world: World, *, spec: RunSpec, seed: int, place: Place) -> None:
    """What a process of rank above 0 does of a run. A divergence ends it without a fault: rank 0 records it."""
    with processor(spec), worlds.connected(world, device_kind=place.device_kind):
        directory: Path | None = worlds.told(None, world=world)
        if directory is None:  # the run is finished
            return
        job = job_of(spec, seed=seed, place=place, world=world)
        if not job.train(checkpoint=directory / "checkpoint.ckpt", reports=[]):
            with contextlib.suppress(DivergenceError):
                job.score(0, checkpoint=directory / "checkpoint.ckpt", progress=lambda _: None)


def _measure(spec: RunSpec, *, attempts: Sequence[Attempt], place: Place, world: World) -> list[RunRecord]:
    """Train, evaluate once after the last epoch, write the results, then delete the checkpoint."""
    job = job_of(spec, seed=attempts[0].seed, place=place, world=world)
    code.refuse_edited(spec)
    folder = attempts[0].directory  # seeds that train together share one checkpoint, in the first one's
    checkpoint, official = sound(folder / "checkpoint.ckpt"), Splits(spec, place=place).official()
    for attempt in attempts:
        attempt.announce(num_params=job.num_params, data_official=official, checkpoint=checkpoint)
    keep_freed_memory()
    try:
        results = _results(job, attempts=attempts, checkpoint=folder / "checkpoint.ckpt")
    except BaseException as error:
        for attempt in attempts:
            attempt.fail(error)
        raise
    records = [attempt.close(result) for attempt, result in zip(attempts, results, strict=True)]
    for leftover in folder.glob("checkpoint.*"):
        leftover.unlink(missing_ok=True)
    return records


def _results(job: Job, *, attempts: Sequence[Attempt], checkpoint: Path) -> list[Scored | DivergenceError]:
    """The result of each seed: its score, or where it diverged."""
    reports, first = [attempt.epoch for attempt in attempts], attempts[0]
    charts = [attempt.chart for attempt in attempts]
    callbacks = [Doctor(charts, inside=not first.spec.compile)] if first.place.doctor else []
    results: dict[int, Scored | DivergenceError] = {}
    results |= job.train(checkpoint=checkpoint, reports=reports, callbacks=callbacks)
    for index, attempt in enumerate(attempts):
        if index not in results:
            try:
                results[index] = job.score(index, checkpoint=checkpoint, progress=attempt.images)
            except DivergenceError as error:
                results[index] = error
    lost = {
        index: end
        for index, end in results.items()
        if isinstance(end, DivergenceError) and not attempts[index].finished
    }
    if lost:
        last_step = max(error.step for error in lost.values())
        for index, found in job.trace(lost, until=last_step, checkpoint=checkpoint).items():
            results[index] = nonfinite.kept(found, folder=attempts[index].directory)
    return [results[index] for index in range(len(attempts))]
