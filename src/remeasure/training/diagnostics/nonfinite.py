"""Finds where a run became non-finite: step, layer and batch, saved so that anyone can repeat that step.

Training checks its loss once a block, which costs nothing. If it is not finite, the training is replayed bit for bit
with a check of every layer: a single seed from its last checkpoint; seeds that train together from the start, since
their checkpoint may hold weights that are not finite. `train.WatchedStreamTraining` does so on photographs.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from remeasure.models.scratch.activations import Array
from remeasure.models.scratch.layers import Layer
from remeasure.models.scratch.network import Network
from remeasure.spec.recipe import Loss
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import write_atomic
from remeasure.training.engines.batched import BatchedTraining, Stacked
from remeasure.training.engines.loop import CheckpointCallback, fit
from remeasure.training.engines.numpy_engine import NumpyTraining, layers
from remeasure.training.engines.serial import DivergenceError, Training

FAULT_FILE, WEIGHTS_FILE = "divergence.json", "divergence.safetensors"
What = Literal["output", "loss", "gradient", "weight"]
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


class FaultFoundError(Exception):
    """Raised by a watched training at the first fault. `weights`: the network's, before the step."""

    def __init__(self, fault: Fault, weights: Mapping[str, Tensor]) -> None:
        super().__init__(str(fault))
        self.fault, self.weights = fault, weights


# ---------------------------------------------------------------- checking values


class Looks:
    """Records which values of a step are finite, for each seed of a group; parameters are (seeds, ...)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, num_seeds: int) -> None:
        self._parameters, self._num_seeds = parameters, num_seeds
        self._seen: list[tuple[What, str, Tensor]] = []
        for name, parameter in parameters.items():
            watch: Any = parameter.register_post_accumulate_grad_hook
            watch(lambda owner, name=name: self.add("gradient", name, self.finite(owner.grad)))  # before it is clipped

    def begin(self) -> None:
        self._seen.clear()

    def finite(self, values: Tensor) -> Tensor:
        """Whether all values of each seed are finite: from (seeds, ...) to (seeds,)."""
        return values.detach().isfinite().reshape(self._num_seeds, -1).all(dim=1)

    def add(self, what: What, layer: str, finite: Tensor) -> None:
        """Record one check; `finite`: (seeds,)."""
        self._seen.append((what, layer, finite.reshape(self._num_seeds)))

    def faults(self) -> dict[int, tuple[What, str]]:
        """At the end of a step: seed to the first value that was not finite, and its layer."""
        for name, parameter in self._parameters.items():
            self.add("weight", name, self.finite(parameter))
        if torch.stack([finite for _, _, finite in self._seen]).all():  # the step's one wait for the device
            return {}
        found: dict[int, tuple[What, str]] = {}
        for what, layer, finite in sorted(self._seen, key=lambda look: ORDER.index(look[0])):
            for seed in (~finite).nonzero().flatten().tolist():
                found.setdefault(seed, (what, layer))
        return found


def look_at_outputs(network: nn.Module, look: Callable[[str, Tensor], None]) -> None:
    """Hook each leaf layer to call `look` with its name and whether its output is finite, ()."""

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                look(name, output.detach().isfinite().all())

        return hook

    for name, layer in network.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(watch(name))


class Watch:
    """Checks one network in each step, between `begin` and `end`, up to step `until`."""

    def __init__(self, network: nn.Module, *, until: int) -> None:
        self._network, self.looks, self._until = network, Looks(dict(network.named_parameters()), num_seeds=1), until
        self._before: dict[str, Tensor] = {}
        look_at_outputs(network, lambda name, finite: self.looks.add("output", name, finite))

    def begin(self) -> None:
        self._before = {key: value.detach().clone() for key, value in self._network.state_dict().items()}
        self.looks.begin()

    def end(self, loss: Tensor, *, step: int, steps_per_epoch: int, batch: Callable[[], Sequence[int]]) -> None:
        """Raises FaultFoundError if a value is not finite; else, from step `until` on, DivergenceError.

        `batch`: returns the indices of the step's images.
        """
        epoch = step // steps_per_epoch
        self.looks.add("loss", "", self.looks.finite(loss))
        for what, layer in self.looks.faults().values():
            fault = Fault(epoch=epoch, step=step, layer=layer, what=what, batch=tuple(batch()))
            raise FaultFoundError(fault, self._before)
        if step >= self._until:
            raise DivergenceError(epoch=epoch, step=step)


class WatchedTraining(Training):
    """Training, bit-identical up to step `until`, with a check of every layer's output, gradient and weight."""

    def __init__(self, network: nn.Module, *, until: int, **more: Any) -> None:
        super().__init__(network, **more)
        self._watch = Watch(network, until=until)

    @property
    def _captures(self) -> bool:
        return False

    def _optimiser_step(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        self._watch.begin()
        seen = super()._optimiser_step(chosen, step=step, generator=generator)
        self._watch.end(seen[0], step=step, steps_per_epoch=self.steps_per_epoch, batch=chosen.tolist)
        return seen


class WatchedLayer:
    """A NumPy layer that passes its outputs and gradients to `look`."""

    def __init__(self, layer: Layer, look: Callable[[What, str, Array], None], *, name: str) -> None:
        self._layer, self._look, self._name, self.parameters = layer, look, name, layer.parameters

    @property
    def gradients(self) -> list[Array]:
        return self._layer.gradients

    def forward(self, inputs: Array) -> Array:
        outputs = self._layer.forward(inputs)
        self._look("output", self._name, outputs)
        return outputs

    def backward(self, gradient: Array) -> Array:
        before = self._layer.backward(gradient)
        for kind, values in zip(("weight", "bias"), self.gradients, strict=False):  # an activation has neither
            self._look("gradient", f"{self._name}.{kind}", values)
        return before


class WatchedNumpyTraining(WatchedTraining, NumpyTraining):
    """WatchedTraining for the numpy engine."""

    def _from_scratch(self) -> Network:
        def look(what: What, name: str, values: Array) -> None:
            self._watch.looks.add(what, name, torch.tensor(bool(np.isfinite(values).all())))

        return Network([WatchedLayer(layer, look, name=name) for name, layer in layers(self.network).items()])


# ---------------------------------------------------------------- several seeds as one


class WatchedStacked(Stacked):
    """Records whether each layer's outputs are finite. vmap hides values, so `_one` returns flags beside logits."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__(networks)
        self.outputs: list[tuple[str, Tensor]] = []  # of the last forward pass: layer name, and flags (S,)
        look_at_outputs(self._kind[0], lambda name, finite: self.outputs.append((name, finite)))

    def _one(self, weights: list[Tensor], batch: Tensor) -> Any:
        self.outputs = []
        return super()._one(weights, batch), [finite for _, finite in self.outputs]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor
        logits, finite = super().forward(images)
        self.outputs = list(zip([name for name, _ in self.outputs], finite, strict=True))
        return logits


class WatchedBatchedTraining(BatchedTraining):
    """Bit-identical training, without CUDA graphs, until each seed in `wanted` has a fault in `found`.

    Both hold seeds by their position in the group. Training ends after step `until` in any case.
    """

    network: WatchedStacked
    stack = WatchedStacked

    def __init__(self, networks: Sequence[nn.Module], *, until: int, **more: Any) -> None:
        super().__init__(networks, **more)
        self.until, self.wanted, self.found = until, set(range(len(networks))), dict[int, FaultFoundError]()
        self._networks = list(networks)  # with the weights before the step
        self._looks = Looks(self.network.parameters_by_name(), num_seeds=len(networks))

    @property
    def _captures(self) -> bool:
        return False

    def _optimiser_step(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        for index in self.wanted - self.found.keys():
            self.network.unstack(index, into=self._networks[index])
        self._looks.begin()
        seen = super()._optimiser_step(chosen, step=step, generator=generator)
        for index, (what, layer) in self._looks.faults().items():
            if index in self.wanted - self.found.keys():
                batch, epoch = tuple(chosen[:, index].tolist()), step // self.steps_per_epoch
                fault = Fault(epoch=epoch, step=step, layer=layer, what=what, batch=batch)
                self.found[index] = FaultFoundError(fault, self._networks[index].state_dict())
        if self.found.keys() == self.wanted or step >= self.until:
            raise DivergenceError(epoch=step // self.steps_per_epoch, step=step)
        return seen

    def _losses(self, logits: Tensor, labels: Tensor, *, loss: Loss) -> Tensor:
        losses = super()._losses(logits, labels, loss=loss)
        for name, finite in self.network.outputs:
            self._looks.add("output", name, finite)
        self._looks.add("loss", "", self._looks.finite(losses))
        return losses


# ---------------------------------------------------------------- replaying


class Replay(CheckpointCallback):
    """Callback of a replay from the start: reads no checkpoint, since the run's is of a later step, and writes none."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull) / "none", report=lambda _: None)

    def _save_when_due(self, trainer: Trainer) -> None:
        pass


def diagnosed(error: DivergenceError, *, replay: Callable[[], object], folder: Path) -> DivergenceError:
    """The error with the fault that `replay`, a watched training, finds; the unchanged error if all was finite.

    The fault is saved in the folder (`divergence.json`), with the weights before its step (`divergence.safetensors`).
    """
    try:
        replay()
    except FaultFoundError as found:
        return _kept(found, folder=folder)
    except DivergenceError:
        pass
    return error


def diagnosed_together(
    watched: WatchedBatchedTraining, *, spec: RunSpec, device_kind: str, folders: Mapping[int, Path]
) -> dict[int, DivergenceError]:
    """`diagnosed` for the seeds of a group in `folders`, by position in the group; only those with a fault."""
    watched.wanted, blocks = set(folders), range(watched.blocks_per_epoch)
    with contextlib.suppress(DivergenceError):
        fit(watched, spec=spec, device_kind=device_kind, keeper=Replay(), batches=blocks, devices=1)
    return {index: _kept(found, folder=folders[index]) for index, found in watched.found.items()}


def _kept(found: FaultFoundError, *, folder: Path) -> DivergenceError:
    weights = {name: value.cpu().contiguous() for name, value in found.weights.items()}
    write_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    write_atomic(folder / FAULT_FILE, json.dumps(asdict(found.fault)).encode())
    return DivergenceError(epoch=found.fault.epoch, step=found.fault.step, reason=str(found.fault))
