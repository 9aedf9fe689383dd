"""The device that trains, and the precision that it computes in."""

import torch

from remeasure.spec.base import DeviceKind, InputError, Precision


def resolve_device(device: str) -> DeviceKind:
    """The kind of the named device; `auto`: the first of cuda, mps, cpu. Raises InputError if this machine lacks it."""
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
