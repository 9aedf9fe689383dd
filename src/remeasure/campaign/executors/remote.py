"""Tasks in processes that are not this one's children: a scheduler starts them, perhaps on other machines.

Their progress is read from the journals of their runs, so the folder of runs must be on a disk that all machines share,
unless the executor brings the finished folders back.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remeasure.campaign.executors.base import Executor, Task, execute_task
from remeasure.runs import journal
from remeasure.runs.folder import Outcome, Place, attempts
from remeasure.runs.timing import seconds_of_seed
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import paths

BEGINNINGS = ("started", "resumed")
Execute = Callable[[Task, Place], list[Outcome] | Exception]


def environment() -> dict[str, str]:
    """What a process elsewhere needs to import this package and the user's modules, and to have one thread."""
    found = {name: value for name, value in os.environ.items() if name.startswith("REMEASURE_")}
    here = [str(Path(__file__).resolve().parents[3]), *(path for path in sys.path if path)]
    found |= {"PYTHONPATH": os.pathsep.join(dict.fromkeys(here)), "REMEASURE_DATA": str(paths.data_root())}
    return {"OMP_NUM_THREADS": "1", **found}


def train(task: Task, place: Place) -> list[Outcome] | Exception:
    """Train a task in this process; what its run raised is returned, as schedulers pass on exceptions as text."""
    try:
        return execute_task(task, place, journal.unwatched)
    except Exception as error:
        return error


def time_seed(spec: RunSpec, place: Place) -> float | Exception:
    """Seconds of a seed in this process, or what was raised."""
    try:
        return seconds_of_seed(spec, place=place)
    except Exception as error:
        return error


def returned(found: Any) -> Any:
    """What `train` or `time_seed` has returned elsewhere. Raises the exception if it is one."""
    if isinstance(found, Exception):
        raise found
    return found


@dataclass(kw_only=True)
class _Followed:
    """How far the journal of a seed was read. `earlier`: folders of attempts that the task does not go on from."""

    earlier: tuple[Path, ...]
    directory: Path | None
    num_events: int
    size: int = 0


class Remote(Executor):
    """Takes one of `num` places for each task, whatever its threads: the scheduler knows the cores.

    `execute`: trains a task, elsewhere.
    """

    def __init__(self, place: Place, *, num: int, execute: Execute | None = None) -> None:
        super().__init__(place, num=num)
        self.execute = execute or train
        self._followed: dict[tuple[str, int], _Followed] = {}

    def cores(self, spec: RunSpec) -> int:  # noqa: ARG002
        return 1

    def follow(self, task: Task, *, attached: bool = False) -> None:
        """Read the journals of this task's seeds from here on; of one that has begun, from where it last began."""
        for seed in task.spec.together(task.seed):
            found = attempts(task.spec, seed=seed, place=self.place)
            directory = found[-1] if found and not (task.fresh and not attached) else None
            events = journal.read(directory) if directory else []
            begun = [number for number, event in enumerate(events) if event["event"] in BEGINNINGS]
            num_events = begun[-1] if attached and begun else len(events)
            self._followed[task.spec.spec_sha256, seed] = _Followed(
                earlier=tuple(found), directory=directory, num_events=num_events
            )

    def events(self) -> Iterator[tuple[Path, Event]]:
        self.look()
        for task in self.active:
            for seed in task.spec.together(task.seed):
                yield from self._news(task.spec, seed=seed)

    def look(self) -> None:
        """Complete the futures of the tasks that have ended."""

    def _news(self, spec: RunSpec, *, seed: int) -> Iterator[tuple[Path, Event]]:
        followed = self._followed[spec.spec_sha256, seed]
        if followed.directory is None:
            new = [path for path in attempts(spec, seed=seed, place=self.place) if path not in followed.earlier]
            followed.directory = new[-1] if new else None
        if followed.directory is None:
            return
        path = followed.directory / journal.JOURNAL_FILE
        size = path.stat().st_size if path.exists() else 0
        if size != followed.size:
            followed.size = size
            events = journal.read(followed.directory)
            for event in events[followed.num_events :]:
                yield followed.directory, {**event, "elsewhere": True}
            followed.num_events = len(events)
