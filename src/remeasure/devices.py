"""Which device trains."""

from dataclasses import replace

import torch

from remeasure.spec import Config, DeviceKind, InputError, Precision


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
