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
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from remeasure.campaign.executors.base import Executor, Task, execute_task, seconds_of_seed
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.recipe import Recipe
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import startup
from remeasure.system.paths import naming
from remeasure.training.engines.base import engine_of

if TYPE_CHECKING:
    from remeasure.runs.recorder import Sink  # torch: seconds to import

P = ParamSpec("P")
R = TypeVar("R")
MOST_ON_DEVICE = 10  # each process takes some of an accelerator's memory
SEMAPHORES = Path("/dev/shm")  # where Linux keeps the locks of a process pool, 32 bytes each


def num_workers(place: Place) -> int:
    """How many runs train side by side: one a core that this process may use, on an accelerator at most ten."""
    num = startup.num_cores()
    return num if place.device_kind == "cpu" else min(num, MOST_ON_DEVICE)


def _searches_lines(spec: RunSpec) -> bool:
    return isinstance(spec.recipe, Recipe) and spec.recipe.optimizer.searches_lines


class Workers(Executor):
    """A process pool that starts with the first task and ends all its processes on exit, exceptions included.

    `num`: how many processes. In a worker, `execute` trains a task and `time_seed` times a few steps of a spec.
    A worker that runs for `end_seconds` after SIGTERM is killed. `new_pool` makes the pool, from the arguments of
    ProcessPoolExecutor.
    """

    def __init__(
        self,
        place: Place,
        *,
        num: int | None = None,
        execute: "Callable[[Task, Place, Sink], list[Outcome]] | None" = None,
        time_seed: Callable[[RunSpec, Place], float] | None = None,
        end_seconds: float = 60.0,
        new_pool: Callable[..., Pool] = ProcessPoolExecutor,
    ) -> None:
        super().__init__(place, num=num or num_workers(place))
        self.end_seconds = end_seconds
        self._execute, self._time_seed = execute or execute_task, time_seed or seconds_of_seed
        context = multiprocessing.get_context("spawn")  # a forked torch can hang
        with naming(SEMAPHORES):
            self._events: SimpleQueue[tuple[Path, Event]] = context.SimpleQueue()
        start = (self._events, os.getpid())
        self._new_pool = partial(new_pool, self.num, mp_context=context, initializer=_begin, initargs=start)
        self._pool = self._started()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killing = threading.Timer(self.end_seconds, _kill_children)
        if kind:  # interrupted: each run journals it and keeps its checkpoint
            for process in multiprocessing.active_children():
                process.terminate()
            killing.start()
        self._pool.shutdown(wait=True, cancel_futures=True)
        killing.cancel()

    def events(self) -> Iterator[tuple[Path, Event]]:
        while not self._events.empty():
            yield self._events.get()

    def start(self, task: Task) -> Future[list[Outcome]]:
        return self._submit(_with_sink, self._execute, task, self.place)

    def cores(self, spec: RunSpec) -> int:
        """Number of cores that a run of `spec` takes; an evaluation decodes its photographs on all of them."""
        if engine_of(spec).takes_all_cores or not (self.place.device_kind == "cpu" or _searches_lines(spec)):
            return self.num
        return min(spec.cpu_threads, self.num)

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """Seconds of each of `num_seeds` seeds, timed side by side as they will run; raises what a worker raises."""
        side_by_side = min(self.num // self.cores(spec), num_seeds)
        timings = [self._submit(self._time_seed, spec, self.place) for _ in range(side_by_side)]
        return max(timing.result() for timing in timings)

    def _started(self) -> Pool:
        with naming(SEMAPHORES):
            return self._new_pool()

    def _submit(self, function: Callable[P, R], *args: P.args, **named: P.kwargs) -> Future[R]:
        call = partial(_until_terminated, partial(function, *args, **named))
        with _interrupts_held():
            try:
                return self._pool.submit(call)
            except BrokenProcessPool:  # a worker was killed, which failed its own task only
                self._pool = self._started()
                return self._pool.submit(call)


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


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


def _until_terminated(call: Callable[[], R]) -> R:
    """Run a task, and end the process on SystemExit. The pool would take SystemExit for the task's exception and let
    the worker wait for another task: for ever, if a killed worker held the lock of the task queue.
    """
    try:
        return call()
    except SystemExit as reason:
        startup.end(int(reason.code or 0))


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _with_sink(execute: "Callable[[Task, Place, Sink], R]", task: Task, place: Place) -> R:
    return execute(task, place, lambda directory, event: _SINK.put((directory, event)))
