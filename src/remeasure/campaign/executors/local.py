"""Worker processes, one a core, kept for the whole campaign. A run of two threads takes two cores; on an accelerator a
run takes all of them, except L-BFGS: in its line search the device waits for Python, so it takes one.
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
MOST_ON_DEVICE = 10  # each process takes some of an accelerator's memory
POLL_SECONDS = 0.2  # how long an event of a worker may wait to be read


@dataclass(frozen=True, kw_only=True)
class Task:
    """One seed to train, or in the batched engine its group.

    `row`: the ledger row that the run is recorded for; `asked_by`: the row that waits for it.
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
    return isinstance(spec.recipe, Recipe) and spec.recipe.optimizer.searches_lines


class Workers:
    """A process pool that starts with the first task and ends all its processes on exit, exceptions included."""

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
        if kind:  # interrupted: each run journals it and keeps its checkpoint
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def idle(self) -> int:
        """Number of cores without a task."""
        return self.num - sum(self.cores(task.spec) for task in self._active.values())

    def cores(self, spec: RunSpec) -> int:
        """Number of cores that a run of `spec` takes; an evaluation decodes its photographs on all of them."""
        if spec.mode == "evaluate" or not (self.place.device_kind == "cpu" or _searches_lines(spec)):
            return self.num
        return min(spec.cpu_threads, self.num)

    @property
    def active(self) -> list[Task]:
        return list(self._active.values())

    def submit(self, task: Task) -> None:
        """Start a task. Enough cores must be idle, or its threads would compete with others."""
        assert self.cores(task.spec) <= self.idle
        self._active[self._submit(_execute, task)] = task

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """Seconds of each of `num_seeds` seeds, timed side by side as they will run; raises what a worker raises."""
        side_by_side = min(self.num // self.cores(spec), num_seeds)
        timings = [self._submit(_time, spec) for _ in range(side_by_side)]
        return max(timing.result() for timing in timings)

    def _submit(self, function: Callable[[W, Place], R], work: W) -> Future[R]:
        with _interrupts_held():
            try:
                return self._pool.submit(_until_terminated, function, work, self.place)
            except BrokenProcessPool:  # a worker was killed, which failed its own task only
                self._pool = self._new_pool()
                return self._pool.submit(_until_terminated, function, work, self.place)

    def finished(self) -> Iterator[tuple[Task, Future[list[Outcome]]]]:
        """Wait up to POLL_SECONDS for tasks to end, and yield those that did."""
        done, _ = wait(self._active, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            yield self._active.pop(future), future

    def events(self) -> Iterator[tuple[Path, Event]]:
        """What the workers journaled since the last call, as (run directory, event)."""
        while not self._events.empty():
            yield self._events.get()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block signals. A process started here inherits the mask, so that Ctrl-C cannot end it before `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SINK: Any = None  # this worker's end of the event queue


def _begin(events: "SimpleQueue[tuple[Path, Event]]", parent: int) -> None:
    """Initialise a worker: ignore Ctrl-C, end the run on SIGTERM, and end the worker with its parent."""
    global _SINK
    _SINK = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # a pending one ends the worker here, silently
    signal.signal(signal.SIGTERM, _terminated)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    startup.begin()
    atexit.register(startup.end, 0)  # the campaign need not wait for a worker's memory to be freed
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _terminated(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)  # the pool sends it again when another worker ends
    raise SystemExit(128 + number)


def _until_terminated(function: Callable[[W, Place], R], work: W, place: Place) -> R:
    """Run a task, and end the process on SystemExit. The pool would take SystemExit for the task's exception and let
    the worker wait for another task: for ever, if a killed worker held the lock of the task queue.
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
