"""Finds where a run became non-finite: step, layer and batch, saved so that anyone can repeat that step.

Training checks its loss once a block, which costs nothing. If it is not finite, the training is replayed bit for bit
with a `Tracer`, which checks every layer: a single seed from its last checkpoint; seeds that train together from the
start, since their checkpoint may hold weights that are not finite.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from remeasure.spec.base import DivergenceError
from remeasure.system.atomic import write_atomic
from remeasure.training.engines.steps import StepCallback, What, finite_seeds

FAULT_FILE, WEIGHTS_FILE = "divergence.json", "divergence.safetensors"
ORDER: tuple[What, ...] = ("output", "loss", "gradient", "weight")  # in which a step computes them


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first value that is not finite. `step` counts from 0; `layer`: its name in the network, "" for the loss.

    `batch`: the indices of the step's images in the training split, in their order.
    """

    epoch: int
    step: int
    layer: str
    what: What
    batch: tuple[int, ...]

    def __str__(self) -> str:
        place = f"the {self.what} of {self.layer}" if self.layer else "the loss"
        return f"{place} is not finite in step {self.step} (epoch {self.epoch + 1})"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A fault, and the network's weights before its step."""

    fault: Fault
    weights: dict[str, Tensor]


class Tracer(StepCallback):
    """Checks each step's outputs, losses, gradients and weights of `seeds`, by their position among those that train
    together, and keeps the first fault of each in `found`.

    It changes no number. Raises DivergenceError once each seed has its fault, and after step `until`.
    """

    def __init__(self, seeds: Collection[int], *, until: int) -> None:
        self.found: dict[int, Found] = {}
        self._waiting, self._until = set(seeds), until
        self._seen: list[tuple[What, str, Tensor]] = []  # of this step: what, its layer, and whether it is finite, (S,)
        self._before: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.module.trace(self._look)

    def _look(self, what: What, layer: str, finite: Tensor) -> None:
        self._seen.append((what, layer, finite.reshape(len(self.module.seeds))))

    def before_step(self, step: int) -> None:  # noqa: ARG002
        self._seen.clear()
        self._before = {index: self.module.state_of(index) for index in self._waiting}

    def after_step(self, step: int) -> None:
        epoch = step // self.module.steps_per_epoch
        for name, weight in self.module.named_weights().items():
            self._look("weight", name, finite_seeds(weight, num=len(self.module.seeds)))
        if not torch.stack([finite for _, _, finite in self._seen]).all():  # the step's one wait for the device
            for what, layer, finite in sorted(self._seen, key=lambda look: ORDER.index(look[0])):
                for index in self._waiting & set((~finite).nonzero().flatten().tolist()):
                    batch = tuple(self.module.batch_of(step)[index])
                    fault = Fault(epoch=epoch, step=step, layer=layer, what=what, batch=batch)
                    self.found[index] = Found(fault=fault, weights=self._before[index])
                    self._waiting.remove(index)
        if not self._waiting or step >= self._until:
            raise DivergenceError(epoch=epoch, step=step)


def kept(found: Found, *, folder: Path) -> DivergenceError:
    """Save the fault in the folder (`divergence.json`), with the weights before its step (`divergence.safetensors`)."""
    weights = {name: value.cpu().contiguous() for name, value in found.weights.items()}
    write_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    write_atomic(folder / FAULT_FILE, json.dumps(asdict(found.fault)).encode())
    return DivergenceError(epoch=found.fault.epoch, step=found.fault.step, reason=str(found.fault))
