"""Takes over finished runs of another machine, whose seeds then count here as if they had been trained here."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from remeasure.runs import code
from remeasure.runs.folder import attempt, directories, read_record, refuse_renamed, write_record
from remeasure.spec.base import InputError
from remeasure.spec.record import RunRecord
from remeasure.system import locks

_PREFIX = ".merging-"
_LEFT_BEHIND = shutil.ignore_patterns("lock", "checkpoint.*", "*.partial")
Taken = Literal["merged", "here already", "here with other predictions", "being trained here"]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A finished run of another machine, and what became of it."""

    record: RunRecord
    source: Path
    taken: Taken


def merge(source: Path, *, runs: Path) -> Iterator[Merged | InputError]:
    """Copy each finished run of `source`, a folder of runs, that `runs` lacks; yields what became of it.

    InputError, yielded in its place: the run is not what was sealed when it finished. A seed that is here stays as it
    is, also where the other machine's rounding gave other predictions. Raises InputError: `source` has no run.
    """
    directories = sorted(path.parent for path in source.glob("*/record.json"))
    if not directories:
        raise InputError(f"{source}: no finished run in this folder; name another machine's runs/, or its project")
    for directory in directories:
        try:
            yield _take(directory, runs=runs)
        except InputError as error:
            yield error


def _take(directory: Path, *, runs: Path) -> Merged:
    record, name = read_record(directory), directory.name.rpartition("-a")[0]
    refuse_renamed(directory, record=record)
    with locks.held_folder(runs, writes=True):  # as where an attempt is begun
        for left in runs.glob(f"{_PREFIX}*"):  # by a merge that was killed
            shutil.rmtree(left, ignore_errors=True)
        earlier = sorted(directories(runs, of=name), key=attempt)
        same = [each for each in earlier if code.kept(each) == code.kept(directory)]
        taken: Taken = "merged"
        if done := [read_record(each) for each in same if (each / "record.json").is_file()]:
            equal = any(each.predicted_sha256 == record.predicted_sha256 for each in done)
            taken = "here already" if equal else "here with other predictions"
        elif any(locks.is_held(each / "lock") for each in same):
            taken = "being trained here"
        else:
            number = attempt(earlier[-1]) + 1 if earlier else 1
            _copy(directory, record=record, to=runs / f"{name}-a{number}")
    return Merged(record=record, source=directory, taken=taken)


def _copy(directory: Path, *, record: RunRecord, to: Path) -> None:
    """Copy a run's folder, at once for whoever looks: an interrupted copy leaves no run.

    Its MLflow id is of the other machine's store; without one, the next command gives it a run in this machine's.
    """
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=_PREFIX) as folder:
        copied = shutil.copytree(directory, Path(folder) / to.name, ignore=_LEFT_BEHIND)
        read_record(copied)  # the disk or the network may have failed
        write_record(copied, replace(record, mlflow_run_id=""))
        os.rename(copied, to)  # noqa: PTH104
