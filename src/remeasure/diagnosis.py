"""Where a run ceased to be finite: the step, the layer and the batch, kept so that anyone can take that step again.

Training looks at its loss once a block, which costs nothing; when that is not finite, the steps since the last
checkpoint are trained again, bit for bit, with a look at every layer.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from remeasure.rundir import write_whole
from remeasure.spec import RunSpec
from remeasure.training import DivergenceError, Keeper, Training, fit

FAULT_FILE, WEIGHTS_FILE = "divergence.json", "divergence.safetensors"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first value that is not finite. `step` counts from 0; `layer`: its name in the network, "" for the loss.

    `batch`: the indices of the step's images in the training split, in their order.
    """

    epoch: int
    step: int
    layer: str
    what: Literal["output", "loss", "gradient", "weight"]
    batch: tuple[int, ...]

    def __str__(self) -> str:
        place = f"the {self.what} of {self.layer}" if self.layer else "the loss"
        return f"{place} is not finite in step {self.step} (epoch {self.epoch + 1})"


class FaultFoundError(Exception):
    """Ends the training that looks for it. `weights`: the network's, before the step."""

    def __init__(self, fault: Fault, weights: dict[str, Tensor]) -> None:
        super().__init__(str(fault))
        self.fault, self.weights = fault, weights


class WatchedTraining(Training):
    """The same training to the bit, with a look at every layer's output, every gradient and weight in every step."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._output = self._gradient = ""  # this step's first layer and parameter of which they are not finite
        for name, layer in self.network.named_modules():
            if not list(layer.children()):
                layer.register_forward_hook(self._watch_output(name))
        for name, parameter in self.network.named_parameters():
            watch: Any = parameter.register_post_accumulate_grad_hook
            watch(self._watch_gradient(name))  # before they are clipped

    def _watch_output(self, name: str) -> Callable[..., None]:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            if not self._output and isinstance(output, Tensor) and not output.isfinite().all():
                self._output = name

        return look

    def _watch_gradient(self, name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:
            if not self._gradient and parameter.grad is not None and not parameter.grad.isfinite().all():
                self._gradient = name

        return look

    def _optimiser_step(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        before = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        self._output = self._gradient = ""
        seen = super()._optimiser_step(chosen, step=step, generator=generator)
        if found := self._found(seen[0]):
            what, layer = found
            batch = tuple(chosen.tolist())
            fault = Fault(epoch=step // self.steps_per_epoch, step=step, layer=layer, what=what, batch=batch)
            raise FaultFoundError(fault, before)
        return seen

    def _found(self, loss: Tensor) -> tuple[Literal["output", "loss", "gradient", "weight"], str] | None:
        if self._output:
            return "output", self._output
        if not loss.isfinite():
            return "loss", ""
        if self._gradient:
            return "gradient", self._gradient
        weights = self.network.named_parameters()
        return next((("weight", name) for name, weight in weights if not weight.isfinite().all()), None)


def diagnosed(
    error: DivergenceError, watched: Training, *, spec: RunSpec, device_kind: str, checkpoint: Path, folder: Path
) -> DivergenceError:
    """The error with what was found, by training again from the checkpoint; the error as it was where all was finite.

    The folder keeps the fault (`divergence.json`) and the weights before its step (`divergence.safetensors`).
    """
    keeper, blocks = Keeper(checkpoint, report=lambda _: None), range(watched.blocks_per_epoch)
    try:
        fit(watched, spec=spec, device_kind=device_kind, keeper=keeper, batches=blocks, devices=1)
    except FaultFoundError as found:
        write_whole(folder / WEIGHTS_FILE, safetensors.torch.save({k: v.cpu() for k, v in found.weights.items()}))
        write_whole(folder / FAULT_FILE, json.dumps(asdict(found.fault)).encode())
        return DivergenceError(epoch=found.fault.epoch, step=found.fault.step, reason=str(found.fault))
    except DivergenceError:
        pass
    return error
