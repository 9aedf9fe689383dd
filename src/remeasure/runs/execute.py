"""One run: RunSpec and seed → RunRecord. A finished run is returned, an unfinished one resumed, a new one started."""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_only

from remeasure.runs.folder import Outcome, Place, finished, open_directory, read_record
from remeasure.runs.hardware import keep_freed_memory, processor
from remeasure.runs.recorder import Attempt, Sink
from remeasure.runs.splits import Splits
from remeasure.spec.base import DivergenceError
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import locks
from remeasure.training.checkpoints import sound
from remeasure.training.diagnostics import nonfinite
from remeasure.training.diagnostics.doctor import Doctor
from remeasure.training.engines.base import Job, Scored, engine_of


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
    rank: int = getattr(rank_zero_only, "rank", 0)
    if rank and engine_of(spec).on_many_devices:
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
                Attempt(directory, spec=spec, seed=each, row=row, place=place, sink=sink, keeps=each in keeps)
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


def job_of(spec: RunSpec, *, seed: int, place: Place) -> Job:
    """The engine's job for the seeds that train together with `seed`, on the spec's data."""
    seeds, data = spec.together(seed), Splits(spec, place=place)
    return engine_of(spec).build(spec, seeds=seeds, data=data, device_kind=place.device_kind)


def _follow(spec: RunSpec, *, seed: int, place: Place) -> NoReturn:
    """Train in a process of rank above 0, then exit; rank 0 alone locks, scores and records the run."""
    directory = open_directory(spec, seed=seed, place=place, fresh=False)
    job_of(spec, seed=seed, place=place).train(checkpoint=directory / "checkpoint.ckpt", reports=[])
    raise SystemExit(0)


def _measure(spec: RunSpec, *, attempts: Sequence[Attempt], place: Place) -> list[RunRecord]:
    """Train, evaluate once after the last epoch, write the results, then delete the checkpoint."""
    job = job_of(spec, seed=attempts[0].seed, place=place)
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
    reports = [attempt.epoch for attempt in attempts]
    results: dict[int, Scored | DivergenceError] = {}
    results |= job.train(checkpoint=checkpoint, reports=reports, callbacks=_callbacks(attempts))
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


def _callbacks(attempts: Sequence[Attempt]) -> list[Callback]:
    """Lightning callbacks of the training: the doctor, unless it is switched off."""
    spec, place = attempts[0].spec, attempts[0].place
    return [Doctor([attempt.chart for attempt in attempts], inside=not spec.compile)] if place.doctor else []
