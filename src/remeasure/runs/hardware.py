"""Options of the CPU and the GPU while a run trains."""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from remeasure.spec.run import RunSpec
from remeasure.training.engines.base import engine_of


def settle() -> None:
    """Set two options of torch on a GPU: no TF32 in cuDNN's convolutions, so that float32 means float32; and no NaN
    filling of new memory in deterministic mode, which takes an eighth of a ResNet-18's step.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt


@contextlib.contextmanager
def processor(spec: RunSpec) -> Iterator[None]:
    """Context with the spec's number of threads and denormals flushed to zero, reset afterwards; calls `settle`."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(spec.cpu_threads)
    settle()
    torch.set_flush_denormal(True)  # a confident LeNet-5 has denormal gradients, and its steps take twice as long
    try:
        with blas_threads(spec.cpu_threads) if engine_of(spec).computes_in_numpy else contextlib.nullcontext():
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(num_threads)


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc), instead of returning it to the kernel.

    Otherwise the kernel clears the pages of freed tensors again at each step; without that, a ResNet-18's step takes
    0.7 to 0.8 times as long on a CPU. Call it after the data are read, or memory freed by reading is kept, too.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def blas_threads(num: int) -> AbstractContextManager[object]:
    """Context with NumPy's matrix products on `num` threads: another number splits sums, and so rounds, differently."""
    from threadpoolctl import threadpool_limits  # a machine that trains with torch alone need not have it

    limits: AbstractContextManager[object] = threadpool_limits(num, user_api="blas")
    return limits
