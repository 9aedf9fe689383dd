"""Measures a run's memory, stage by stage, in a separate process; and computes what it should be.

    python -m remeasure.bench.memory FOLDER [key=value …]

It runs `python src/train.py key=value …` under FOLDER and prints a Footprint as JSON. Linux only: /proc.
"""

import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from remeasure.bench.baselines.processes import own_process
from remeasure.config import compose, errors
from remeasure.data import fingerprint
from remeasure.models import registry
from remeasure.runs.execute import execute
from remeasure.runs.folder import Place
from remeasure.spec.config import Config
from remeasure.spec.recipe import Recipe
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training.augment import normalise
from remeasure.training.inference import memory_format
from remeasure.training.optimizers import build_optimizer

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """MiB. `imported`: resident after the imports.

    `built`, `trained`, `scored`: the peak beyond that, from the end of one stage to the end of the next.
    `code`: pages of the libraries' files that training loads (RssFile).
    `data`, `net`, `batch`: what training should need: uint8 images and labels; weights, gradients, the optimiser's
    tensors and buffers; one batch as float32 and what its forward pass saves.
    """

    imported: float
    built: float
    trained: float
    scored: float
    code: float
    data: float
    net: float
    batch: float

    @property
    def accounted(self) -> float:
        return self.code + self.data + self.net + self.batch


def main(arguments: Sequence[str]) -> int:
    folder, *overrides = arguments
    place = Place(runs=Path(folder), project=Path(folder), data_root=paths.data_root(), device_kind="cpu")
    config = compose.compose(overrides)
    spec = config.spec(data_sha256=_fingerprint(config))
    imported, mapped = _status("VmRSS"), _status("RssFile")
    stages = _stages(spec, place=place)
    code = _status("RssFile") - mapped
    print(json.dumps(asdict(_footprint(spec, stages=stages, imported=imported, code=code))))
    return 0


def _fingerprint(config: Config) -> str:
    """Computed in another process: here it would read the data before the run does."""
    with own_process(threads=1) as process:
        return process.submit(fingerprint.fingerprint, config.data, root=paths.data_root()).result().data_sha256


def _stages(spec: RunSpec, *, place: Place) -> dict[str, float]:
    """Run it; returns peak resident memory in MiB by event of its journal, from the event before."""
    peaks: dict[str, float] = {}

    def note(directory: Path, event: Event) -> None:  # noqa: ARG001
        peaks.setdefault(event.get("split") or event["event"], _peak())
        _forget_peak()

    _forget_peak()
    execute(spec, seed=0, row="", place=place, sink=note, fresh=True)
    return peaks


def _footprint(spec: RunSpec, *, stages: dict[str, float], imported: float, code: float) -> Footprint:
    assert isinstance(spec.recipe, Recipe)
    network = registry.build(
        spec.model, image_shape=spec.input_shape, num_classes=spec.data.num_classes, generator_seed=0
    )
    num_train = spec.data.num_train  # held-back images are read, too
    return Footprint(
        imported=imported,
        built=stages["started"] - imported,
        trained=stages["train"] - imported,
        scored=stages["test"] - imported,
        code=code,
        data=data_bytes(num_train, image_shape=spec.data.image_shape) / MIB,
        net=net_bytes(network, optimizer=build_optimizer(network.parameters(), optimizer=spec.recipe.optimizer)) / MIB,
        batch=batch_bytes(network, spec=spec) / MIB,
    )


# ---------------------------------------------------------------- expected memory


def data_bytes(num: int, *, image_shape: Sequence[int]) -> int:
    """Bytes of `num` images (C, H, W) uint8 with int64 labels."""
    return num * (math.prod(image_shape) + 8)


def net_bytes(network: nn.Module, *, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients, buffers and, after a step, what the optimiser keeps in each parameter's shape."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: 0.0)
    state = [(parameter, kept) for parameter, states in optimizer.state.items() for kept in states.values()]
    moments: int = sum(kept.nbytes for parameter, kept in state if getattr(kept, "shape", None) == parameter.shape)
    weights = sum(each.nbytes for each in network.parameters())
    return 2 * weights + moments + sum(each.nbytes for each in network.buffers())


def batch_bytes(network: nn.Module, *, spec: RunSpec) -> int:
    """Bytes of one training batch as the network gets it, and of what its forward pass saves for the backward pass."""
    pixels = torch.zeros((spec.recipe.batch_size, *spec.input_shape), dtype=torch.uint8)
    images = normalise(pixels, normalisation=spec.recipe.normalisation).contiguous(memory_format=memory_format(spec))
    network = network.to(memory_format=memory_format(spec))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.precision == "bfloat16"):
        return images.nbytes + saved_bytes(network, images)


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes that network(images) saves for the backward pass, each storage once; without images and parameters."""
    known = {each.untyped_storage().data_ptr() for each in (images, *network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}  # kept alive, so that no address is reused

    def note(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in known:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(images)
    return sum(each.untyped_storage().nbytes() for each in saved.values())


# ---------------------------------------------------------------- measured memory


def _peak() -> float:
    """Peak resident memory in MiB. Not from getrusage, whose peak includes that of the parent process."""
    return _status("VmHWM")


def _status(key: str) -> float:
    """The value of a line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def _forget_peak() -> None:
    """Reset the peak to what is resident now; where the kernel forbids it, the peak stays that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):  # stdout is for figures, stderr for errors
        sys.exit(errors.guarded(lambda: main(sys.argv[1:])))
