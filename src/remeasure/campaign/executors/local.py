"""Worker processes, one a core, kept for the whole campaign. A run of two threads takes two cores.

On a machine with several GPUs each worker sees one of them, and as many seeds as there are GPUs train side by side. A
run takes all workers of its GPU, except L-BFGS: in its line search the device waits for Python, so it takes one.
"""

import atexit
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from remeasure.campaign.executors.base import Executor, Task, execute_task
from remeasure.runs.folder import Outcome, Place
from remeasure.runs.journal import Sink
from remeasure.runs.timing import seconds_of_seed
from remeasure.spec.recipe import Recipe
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import startup
from remeasure.system.paths import naming
from remeasure.training.engines.base import engine_of

P = ParamSpec("P")
R = TypeVar("R")
Devices = tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them
AS_HERE = ""  # in place of a device's name: a worker sees what this process sees
MOST_ON_DEVICE = 10  # each process takes some of an accelerator's memory
SEMAPHORES = Path("/dev/shm")  # where Linux keeps the locks of a process pool, 32 bytes each


def num_workers(place: Place, *, num_devices: int = 1) -> int:
    """How many workers each device has: one a core that this process may use, on an accelerator at most ten."""
    num = max(startup.num_cores() // num_devices, 1)
    return num if place.device_kind == "cpu" else min(num, MOST_ON_DEVICE)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: those of the variable where it is set."""
    import torch  # seconds to import

    num, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(str(number) for number in range(num))
    names = tuple(name.strip() for name in listed.split(","))
    return names if names[0].startswith("MIG-") else names[:num]  # of several MIG instances, a process sees one


def _searches_lines(spec: RunSpec) -> bool:
    return isinstance(spec.recipe, Recipe) and spec.recipe.optimizer.searches_lines


class Workers(Executor):
    """Process pools, one a GPU, that start with the first task; all processes end on exit, exceptions included.

    `num`: how many processes each has. In a worker, `execute` trains a task and `time_seed` times a few steps of a
    spec. A worker that runs for `end_seconds` after SIGTERM is killed. `new_pool` makes a pool, from the arguments of
    ProcessPoolExecutor. `gpus`: which are there, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(
        self,
        place: Place,
        *,
        num: int | None = None,
        execute: Callable[[Task, Place, Sink], list[Outcome]] = execute_task,
        time_seed: Callable[..., float] = seconds_of_seed,
        end_seconds: float = 60.0,
        new_pool: Callable[..., Pool] = ProcessPoolExecutor,
        gpus: Callable[[], Sequence[str]] = visible_gpus,
    ) -> None:
        found = tuple(gpus()) if place.device_kind == "cuda" else ()
        self.devices = found if len(found) > 1 else (AS_HERE,)
        self.per_device = num or num_workers(place, num_devices=len(self.devices))
        super().__init__(place, num=self.per_device * len(self.devices))
        self.end_seconds, self._execute, self._time_seed = end_seconds, execute, time_seed
        context = multiprocessing.get_context("spawn")  # a forked torch can hang
        with _interrupts_held():  # multiprocessing's process, which removes semaphores, survives a closed terminal
            resource_tracker.ensure_running()
        with naming(SEMAPHORES):
            self._events: SimpleQueue[tuple[Path, Event]] = context.SimpleQueue()
        self._new_pool = partial(new_pool, mp_context=context, initializer=_begin)
        self._pools: dict[Devices, Pool] = {(device,): self._started((device,)) for device in self.devices}
        self._seen: dict[Future[list[Outcome]], Devices] = {}  # by the tasks that run

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        killing = threading.Timer(self.end_seconds, _kill_children)
        if kind:  # interrupted: each run journals it and keeps its checkpoint
            for process in multiprocessing.active_children():
                process.terminate()
            killing.start()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        killing.cancel()

    def events(self) -> Iterator[tuple[Path, Event]]:
        while not self._events.empty():
            yield self._events.get()

    def start(self, task: Task) -> Future[list[Outcome]]:
        devices = self._idle_devices(task.spec)
        assert devices
        future = self._submit(devices, _with_sink, self._execute, task, self.place)
        self._seen = {each: seen for each, seen in self._seen.items() if each in self._active} | {future: devices}
        return future

    def fits(self, spec: RunSpec) -> bool:
        return self._idle_devices(spec) is not None

    def _idle_devices(self, spec: RunSpec) -> Devices | None:
        """The devices for a run of `spec`, those with the most idle workers first; None: too few are idle."""
        num, idle = self._num_devices(spec), dict.fromkeys(self.devices, self.per_device)
        for future, task in self._active.items():
            for device in self._seen[future]:
                idle[device] -= self.cores(task.spec) // len(self._seen[future])
        free = [device for device in self.devices if idle[device] * num >= self.cores(spec)]
        chosen = sorted(free, key=lambda device: -idle[device])[:num]
        return tuple(chosen) if len(chosen) == num else None

    def _num_devices(self, spec: RunSpec) -> int:
        """How many of `devices` a run of `spec` takes."""
        return min(self.place.devices or len(self.devices), len(self.devices)) if engine_of(spec).on_many_devices else 1

    def cores(self, spec: RunSpec) -> int:
        """Number of workers that a run of `spec` takes; an evaluation decodes its photographs on all cores."""
        if engine_of(spec).takes_all_cores or not (self.place.device_kind == "cpu" or _searches_lines(spec)):
            return self.per_device * self._num_devices(spec)
        num_processes = self.place.devices or 1 if engine_of(spec).on_many_devices else 1
        return min(spec.cpu_threads * num_processes, self.per_device)

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        """Seconds of each of `num_seeds` seeds, timed side by side as they will run; raises what a worker raises."""
        side_by_side = min(self.num // self.cores(spec), num_seeds)
        num = self._num_devices(spec)
        groups = [self.devices[start : start + num] for start in range(0, len(self.devices) - num + 1, num)]
        places = itertools.islice(itertools.cycle(groups), side_by_side)
        timings = [self._submit(devices, self._time_seed, spec, place=self.place) for devices in places]
        return max(timing.result() for timing in timings)

    def _started(self, devices: Devices) -> Pool:
        """A pool whose workers see these devices; of several devices it has one worker."""
        with naming(SEMAPHORES):
            num = self.per_device if len(devices) == 1 else 1
            return self._new_pool(num, initargs=(self._events, os.getpid(), devices))

    def _submit(self, devices: Devices, function: Callable[P, R], *args: P.args, **named: P.kwargs) -> Future[R]:
        call = partial(_until_terminated, partial(function, *args, **named))
        with _interrupts_held():
            if devices not in self._pools:
                self._pools[devices] = self._started(devices)
            try:
                return self._pools[devices].submit(call)
            except BrokenProcessPool:  # a worker was killed, which failed its own task only
                self._pools[devices] = self._started(devices)
                return self._pools[devices].submit(call)


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block signals. A process started here inherits the mask, so that Ctrl-C cannot end it before `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SINK: Any = None  # this worker's end of the event queue


def _begin(events: "SimpleQueue[tuple[Path, Event]]", parent: int, devices: Devices) -> None:
    """Initialise a worker: see these devices alone, ignore Ctrl-C and a closed terminal, end the run on SIGTERM, and
    end the worker with its parent.
    """
    global _SINK
    if devices != (AS_HERE,):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)  # CUDA reads it when it starts, which is later
    _SINK = events
    for number in (signal.SIGINT, signal.SIGHUP):  # the whole terminal gets them; the parent then sends SIGTERM
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # a pending one ends the worker here, silently
    signal.signal(signal.SIGTERM, _terminated)
    startup.end_with(parent)
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


def _with_sink(execute: Callable[[Task, Place, Sink], R], task: Task, place: Place) -> R:
    return execute(task, place, lambda directory, event: _SINK.put((directory, event)))
