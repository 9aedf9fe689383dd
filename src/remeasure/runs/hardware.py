"""The device that trains, and what is set on the processor while it does."""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from remeasure.spec.base import DeviceKind, InputError, Precision
from remeasure.spec.config import Config
from remeasure.spec.run import RunSpec


def settle() -> None:
    """Set what torch leaves open on a GPU: float32 means float32, as cuDNN's convolutions may otherwise take TF32; and
    deterministic mode need not fill fresh memory with NaN, which costs a ResNet-18's step an eighth of its time.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def resolve_device(device: str) -> DeviceKind:
    """`auto` takes the best device that is there. Raises InputError for one that is not."""
    there: list[DeviceKind] = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    chosen = there[0] if device == "auto" else device
    for kind in there:
        if kind == chosen:
            return kind
    raise InputError(f"device: this machine has no {device!r}; it has {', '.join(there)} (or say auto)")


def native_precision(device_kind: DeviceKind) -> Precision:
    """bfloat16 where the device computes in it, else float32.

    A CPU without AVX-512 and a GPU older than Ampere only emulate bfloat16, many times slower than float32.
    """
    if device_kind == "cpu":
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        native = device_kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def with_native_precision(config: Config, *, device_kind: DeviceKind) -> Config:
    """The config with precision auto settled for the device."""
    return replace(config, precision=native_precision(device_kind)) if config.precision == "auto" else config


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


@contextlib.contextmanager
def processor(spec: RunSpec) -> Iterator[None]:
    """The spec's number of threads, and no denormal numbers, as before afterwards; and `hardware.settle`."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(spec.cpu_threads)
    settle()
    torch.set_flush_denormal(True)  # a confident LeNet-5 has denormal gradients, and its steps take twice as long
    try:
        with blas_threads(spec.cpu_threads) if spec.engine == "numpy" else contextlib.nullcontext():
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(num_threads)


@functools.cache
def keep_freed_memory() -> None:
    """glibc gives freed tensors back to the kernel, which clears their pages anew at each step of a ResNet-18.

    Without that, such a step takes 0.7 to 0.8 times as long on a CPU. To be called once the data are read: what reading
    them frees would be kept, too.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def blas_threads(num: int) -> AbstractContextManager[object]:
    """NumPy's matrix products on so many threads: sums of other parts round otherwise."""
    from threadpoolctl import threadpool_limits  # a machine that trains with torch alone need not have it

    limits: AbstractContextManager[object] = threadpool_limits(num, user_api="blas")
    return limits
