"""One seed trained in NumPy (engine=numpy): forward pass, loss, backward pass, clipping and optimiser.

Initial weights and image order are those of the serial engine: if both engines are correct, they end at the same
weights up to rounding. Lightning's loop, checkpoints and scores are the same.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from remeasure.models.scratch import losses, optimizers
from remeasure.models.scratch.activations import ACTIVATIONS, Array
from remeasure.models.scratch.layers import Activate, Dense, Layer
from remeasure.models.scratch.network import Network
from remeasure.spec.base import InputError
from remeasure.spec.recipe import Optimizer
from remeasure.training.engines.serial import SerialJob, Training
from remeasure.training.engines.steps import What


class NumpyTraining(Training):
    """`Training` of a multilayer perceptron or a logistic regression, on the CPU. InputError: another network."""

    def __init__(self, network: nn.Module, **more: Any) -> None:
        super().__init__(network, **more)
        layers(network)  # raises InputError for other networks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return NumpyOptimizer(self._trained, optimizer=self.recipe.optimizer)

    def take(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """The step of `take_step` in NumPy: forward, loss, backward, clip, update."""
        images, labels = self.batch(chosen, step=step, generator=generator)
        network = layers(self.network)
        with np.errstate(all="ignore"):  # a value that is not finite ends the run anyway
            logits = images.flatten(1).numpy()
            for name, layer in network.items():
                logits = layer.forward(logits)
                self._seen("output", name, logits)
            loss, gradient = losses.cross_entropy(logits, labels.numpy())
            self._seen("loss", "", np.array(loss))
            for name, layer in reversed(network.items()):
                gradient = layer.backward(gradient)
                for kind, values in zip(("weight", "bias"), layer.gradients, strict=False):  # an activation has neither
                    self._seen("gradient", f"{name}.{kind}", values)
            gradients = [values for layer in network.values() for values in layer.gradients]
            if self.recipe.clip_norm is not None:
                optimizers.clip(gradients, max_norm=self.recipe.clip_norm)
            for parameter, by_hand in zip(self._trained, gradients, strict=True):
                parameter.grad = torch.from_numpy(by_hand)
            optimizer.step()
        return torch.tensor(loss), torch.from_numpy(logits), labels

    def _seen(self, what: What, name: str, values: Array) -> None:
        if self.look:
            self.look(what, name, torch.tensor([bool(np.isfinite(values).all())]))


class FromScratch(nn.Module):
    """The NumPy forward pass with a torch network's weights: (B, C, H, W) float32 to logits (B, num_classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(Network(list(layers(self.network).values())).forward(images.flatten(1).numpy()))


def layers(network: nn.Module) -> dict[str, Layer]:
    """NumPy layers for those of a torch network, by name; both share the weights' memory, so an update changes both.

    Raises InputError for a layer that has no counterpart.
    """
    activations, found = {nn.ReLU: "relu", nn.Tanh: "tanh"}, dict[str, Layer]()
    for name, layer in network.named_children():
        match layer:
            case nn.Flatten():
                pass
            case nn.Linear():
                found[name] = Dense(_array(layer.weight), _array(layer.bias))
            case nn.ReLU() | nn.Tanh():
                found[name] = Activate(ACTIVATIONS[activations[type(layer)]])
            case _:
                raise InputError(
                    f"engine: the numpy engine has no {type(layer).__name__}; it trains dense layers with ReLU or tanh"
                )
    return found


def _array(parameter: Tensor) -> Array:
    """An array that shares the parameter's memory."""
    array: Array = parameter.detach().numpy()
    return array


class NumpyOptimizer(torch.optim.Optimizer):
    """An optimiser in NumPy behind torch's interface, so that checkpoints save and restore its state as any other's."""

    def __init__(self, parameters: list[nn.Parameter], *, optimizer: Optimizer) -> None:
        super().__init__(parameters, {"lr": optimizer.lr_peak})
        arrays = [_array(parameter) for parameter in parameters]
        self._parameters = parameters
        self._scratch: optimizers.Adam | optimizers.Sgd = optimizer.from_scratch(arrays)

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's signature
        gradients = [parameter.grad.numpy() for parameter in self._parameters if parameter.grad is not None]
        self._scratch.step(gradients, self.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        kept = {
            name: [torch.from_numpy(array.copy()) for array in arrays] for name, arrays in self._scratch.means.items()
        }
        return {**super().state_dict(), "means": kept, "num_steps": self._scratch.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._scratch.num_steps = state_dict["num_steps"]
        for name, arrays in self._scratch.means.items():
            for array, kept in zip(arrays, state_dict["means"][name], strict=True):
                array[...] = kept.numpy()


class NumpyJob(SerialJob):
    """One seed in NumPy."""

    module = NumpyTraining

    def forward(self, network: nn.Module) -> nn.Module:
        return FromScratch(network)
