"""What a campaign asks of an executor: take tasks while cores are idle, hand back outcomes and events."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from remeasure.runs.folder import Outcome, Place
from remeasure.runs.journal import Sink, unwatched
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import signals

POLL_SECONDS = 0.2  # how long an event of a task may wait to be read
WAIT_SECONDS = 1.0  # between two looks for work that may follow, while no task runs


@dataclass(frozen=True, kw_only=True)
class Task:
    """One seed to train, or in the batched engine its group.

    `row`: the ledger row that the run is recorded for; `asked_by`: the row that waits for it. `keeps`: the seeds whose
    trained network is kept.
    """

    row: str
    seed: int
    spec: RunSpec
    fresh: bool
    asked_by: str = ""
    keeps: tuple[int, ...] = ()

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(spec_sha256, seed) of each seed that it trains."""
        return [(self.spec.spec_sha256, seed) for seed in self.spec.together(self.seed)]


Take = Callable[[Task, Future[list[Outcome]]], None]  # gets a task that has ended


class Executor(ABC):
    """Trains tasks side by side on `num` cores; a context manager, which ends or leaves what runs on exit.

    Only it knows where tasks run. Looks, verdicts, the budget, results/ and MLflow are the campaign's, in the process
    that the user started; a task writes its run's folder and nothing else.
    """

    def __init__(self, place: Place, *, num: int) -> None:
        self.place, self.num = place, num
        self._active: dict[Future[list[Outcome]], Task] = {}

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    @abstractmethod
    def start(self, task: Task) -> Future[list[Outcome]]:
        """Start a task, for which enough cores are idle; the outcomes of its seeds, or what its run raised."""

    @abstractmethod
    def events(self) -> Iterator[tuple[Path, Event]]:
        """What the runs have journaled since the last call, as (run directory, event)."""

    @abstractmethod
    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """Seconds of each of `num_seeds` seeds, timed side by side as they will run; raises what a worker raises."""

    def attaches(self, spec: RunSpec, *, seed: int) -> bool:  # noqa: ARG002
        """Whether a task that an earlier process started trains this seed or waits for its turn: `start` takes it."""
        return False

    def is_alive(self, directory: Path) -> bool:  # noqa: ARG002
        """Whether a task that an earlier process started trains in this run's folder, as far as is known here."""
        return False

    def together(self) -> AbstractContextManager[None]:
        """In this context several tasks are started, which a scheduler may take as one array."""
        return nullcontext()

    def run(
        self,
        tasks: Sequence[Task],
        *,
        watch: Sink = unwatched,
        keep: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> list[Outcome]:
        """Train all tasks, each as soon as its cores are idle; returns their outcomes in the order of the tasks.

        `watch` gets what the runs journal, `keep` each outcome at once. Raises what a run raises.
        """
        waiting, found = list(tasks), dict[tuple[str, int], Outcome]()

        def start() -> bool:
            for task in list(waiting):
                if self.fits(task.spec):
                    waiting.remove(task)
                    self.submit(task)
            return bool(waiting)

        def take(task: Task, future: Future[list[Outcome]]) -> None:
            found.update(zip(task.keys, map(keep, future.result()), strict=True))

        self.work(start, take=take, watch=watch)
        return [found[key] for task in tasks for key in task.keys]

    def work(self, start: Callable[[], bool], *, take: Take, watch: Sink) -> None:
        """Keep the cores busy: `start` submits tasks, and says whether more may follow; `take` gets each that ended.

        `start` is called while a core is idle, until no task runs and none may follow. A signal is deferred to the end
        of such a turn.
        """
        while self._turn(start, take=take, watch=watch):
            pass

    @signals.held()
    def _turn(self, start: Callable[[], bool], *, take: Take, watch: Sink) -> bool:
        more = True
        if self.idle:
            with self.together():
                more = start()
        if not self._active:
            if more:
                time.sleep(WAIT_SECONDS)
            return more
        done, _ = wait(self._active, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        self.drain(watch)
        for future in [future for future in self._active if future in done]:
            take(self._active.pop(future), future)
        return True

    def drain(self, watch: Sink) -> None:
        """Give `watch` what the runs have journaled."""
        for directory, event in self.events():
            watch(directory, event)

    @property
    def idle(self) -> int:
        """Number of cores without a task."""
        return self.num - sum(self.cores(task.spec) for task in self._active.values())

    def fits(self, spec: RunSpec) -> bool:
        """Whether enough cores are idle for a run of `spec`."""
        return self.cores(spec) <= self.idle

    @abstractmethod
    def cores(self, spec: RunSpec) -> int:
        """Number of cores, out of `num`, that a run of `spec` takes."""

    @property
    def active(self) -> list[Task]:
        return list(self._active.values())

    def submit(self, task: Task) -> None:
        """Start a task. Enough cores must be idle, or its threads would compete with others."""
        assert self.fits(task.spec)
        self._active[self.start(task)] = task


def execute_task(task: Task, place: Place, sink: Sink) -> list[Outcome]:
    """Train a task in this process."""
    from remeasure.runs.execute import execute_together

    return execute_together(
        task.spec, seed=task.seed, row=task.row, place=place, sink=sink, fresh=task.fresh, keeps=task.keeps
    )
