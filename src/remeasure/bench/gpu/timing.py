"""The clock, the modes that a run trains in, and a separate process for calls that may damage theirs."""

import functools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from remeasure.runs.hardware import settle

R = TypeVar("R")


def wait(device: torch.device) -> None:
    """Wait for the work that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(call: Callable[[], object], *, device: torch.device, times: int = 1) -> float:
    """Seconds of so many calls, including their work on the device."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return time.perf_counter() - began


def median_seconds(call: Callable[[], object], *, device: torch.device, repeats: int) -> tuple[float, float]:
    """(seconds of the first call, which may compile; median seconds of a later call, over five equal groups)."""
    first = _seconds(call, device=device)
    call()
    group = max(1, repeats // 5)
    groups = [_seconds(call, device=device, times=group) for _ in range(min(5, repeats))]
    return first, statistics.median(groups) / group


@contextmanager
def modes(*, deterministic: bool, fill: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Set torch's options in the block; a run on CUDA trains with `deterministic` only."""
    settle()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark = fill, benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark = False, False


class Apart(ExitStack):
    """A separate process, restarted after an exception: a failed capture may leave the device's generator unusable."""

    _pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., R], *arguments: Any, **named: Any) -> R:
        """The result of the function in that process; raises what it raises."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked torch can hang
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
            self.callback(self._end, self._pool)
        try:
            return self._pool.submit(functools.partial(function, *arguments, **named)).result()
        except BaseException:
            self.close()
            raise

    def _end(self, pool: ProcessPoolExecutor) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    os.environ["REMEASURE_CAPTURE"] = "1"


def here(function: Callable[..., R], *arguments: Any, **named: Any) -> R:
    """Call the function in this process, with the interface of `Apart`."""
    return function(*arguments, **named)


def fault(error: Exception) -> dict[str, str]:
    """Why something could not be measured, for a line of the report."""
    return {"fault": f"{type(error).__name__}: {error}"[:400]}
