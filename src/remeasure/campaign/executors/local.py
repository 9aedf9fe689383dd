"""Worker processes, one a core, kept for the whole campaign. A run of two threads takes two cores; on an accelerator a
run takes all of them, but L-BFGS, whose line search has the device wait for Python, takes one.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from remeasure.runs.folder import Outcome, Place
from remeasure.spec.recipe import Recipe
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import startup

W = TypeVar("W")
R = TypeVar("R")
MOST_ON_DEVICE = 10  # each process has some of an accelerator's memory
POLL_SECONDS = 0.2  # how long an event of a worker may wait to be seen


@dataclass(frozen=True, kw_only=True)
class Task:
    """One seed to train, or in the batched engine its group.

    `row`: the ledger row that the run belongs to; `asked_by`: the one that waits for it.
    """

    row: str
    seed: int
    spec: RunSpec
    fresh: bool
    asked_by: str = ""

    @property
    def keys(self) -> set[tuple[str, int]]:
        """(spec_sha256, seed) of each seed that it trains."""
        return {(self.spec.spec_sha256, seed) for seed in self.spec.together(self.seed)}


def num_workers(place: Place) -> int:
    """How many runs train side by side: one a core that this process may use, on an accelerator at most ten."""
    num = len(os.sched_getaffinity(0))
    return num if place.device_kind == "cpu" else min(num, MOST_ON_DEVICE)


def _searches_lines(spec: RunSpec) -> bool:
    return isinstance(spec.recipe, Recipe) and spec.recipe.optimizer.name == "lbfgs"


class Workers:
    """A pool that starts with the first task and, left in whatever way, leaves no process behind."""

    def __init__(self, place: Place) -> None:
        self.place, self.num = place, num_workers(place)
        self._context = multiprocessing.get_context("spawn")  # a forked torch can hang
        self._events: SimpleQueue[tuple[Path, Event]] = self._context.SimpleQueue()
        self._pool = self._new_pool()
        self._active: dict[Future[list[Outcome]], Task] = {}

    def _new_pool(self) -> ProcessPoolExecutor:
        start = (self._events, os.getpid())
        return ProcessPoolExecutor(self.num, mp_context=self._context, initializer=_begin, initargs=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:  # interrupted: each run journals that it was, and its checkpoint stays
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def idle(self) -> int:
        """How many cores no task has."""
        return self.num - sum(self.cores(task.spec) for task in self._active.values())

    def cores(self, spec: RunSpec) -> int:
        """How many of the cores a run of `spec` takes; an evaluation decodes its photographs on all of them."""
        if spec.mode == "evaluate" or not (self.place.device_kind == "cpu" or _searches_lines(spec)):
            return self.num
        return min(spec.cpu_threads, self.num)

    @property
    def active(self) -> list[Task]:
        return list(self._active.values())

    def submit(self, task: Task) -> None:
        """Start a task; cores enough must be idle, or threads get in each other's way."""
        assert self.cores(task.spec) <= self.idle
        self._active[self._submit(_execute, task)] = task

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """What each of so many seeds costs here, timed beside others as they will run; raises what a worker raises."""
        side_by_side = min(self.num // self.cores(spec), num_seeds)
        timings = [self._submit(_time, spec) for _ in range(side_by_side)]
        return max(timing.result() for timing in timings)

    def _submit(self, function: Callable[[W, Place], R], work: W) -> Future[R]:
        with _interrupts_held():
            try:
                return self._pool.submit(_until_terminated, function, work, self.place)
            except BrokenProcessPool:  # a worker was killed, and its task has failed; this one is another
                self._pool = self._new_pool()
                return self._pool.submit(_until_terminated, function, work, self.place)

    def finished(self) -> Iterator[tuple[Task, Future[list[Outcome]]]]:
        """Wait a moment for tasks to end, and yield those that did."""
        done, _ = wait(self._active, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            yield self._active.pop(future), future

    def events(self) -> Iterator[tuple[Path, Event]]:
        """What the workers journaled since the last call, as (run directory, event)."""
        while not self._events.empty():
            yield self._events.get()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Signals wait. A process that is started here inherits that, so that Ctrl-C does not hit it before `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SINK: Any = None  # this worker's end of the event queue


def _begin(events: "SimpleQueue[tuple[Path, Event]]", parent: int) -> None:
    """In a new worker: Ctrl-C is the parent's business, SIGTERM ends the run, and no worker outlives its parent."""
    global _SINK
    _SINK = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # one that waited ends the worker here, silently
    signal.signal(signal.SIGTERM, _terminated)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    startup.begin()
    atexit.register(startup.end, 0)  # the campaign need not wait for a worker's memory to be freed
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _terminated(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)  # the pool says it again once another worker has ended
    raise SystemExit(128 + number)


def _until_terminated(function: Callable[[W, Place], R], work: W, place: Place) -> R:
    """The pool would take the exception for the task's, and ask for another one: for ever, where a killed worker has
    taken the lock of its queue along.
    """
    try:
        return function(work, place)
    except SystemExit as reason:
        startup.end(int(reason.code or 0))


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _execute(task: Task, place: Place) -> list[Outcome]:
    from remeasure.runs.execute import execute_together

    def sink(directory: Path, event: Event) -> None:
        _SINK.put((directory, event))

    return execute_together(task.spec, seed=task.seed, row=task.row, place=place, sink=sink, fresh=task.fresh)


def _time(spec: RunSpec, place: Place) -> float:
    from remeasure.runs.timing import seconds_of_seed

    return seconds_of_seed(spec, place=place)
