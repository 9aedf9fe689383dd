"""A multilayer perceptron as a list of layers, and how its weights are drawn."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from remeasure.models.scratch.activations import ACTIVATIONS, Array
from remeasure.models.scratch.layers import Activate, Dense, Layer

Scale = Literal["he", "xavier"]


class Network:
    """Layers applied in sequence: (B, fan_in) → (B, num_classes)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    @property
    def parameters(self) -> list[Array]:
        return [parameter for layer in self.layers for parameter in layer.parameters]

    @property
    def gradients(self) -> list[Array]:
        return [gradient for layer in self.layers for gradient in layer.gradients]

    def forward(self, inputs: Array) -> Array:
        for layer in self.layers:
            inputs = layer.forward(inputs)
        return inputs

    def backward(self, gradient: Array) -> Array:
        """From ∂L/∂outputs to ∂L/∂inputs; each layer keeps its parameters' gradients."""
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient


def std(scale: Scale, *, fan_in: int, fan_out: int) -> float:
    """√(2/fan_in) (He et al. 2015, eq. 10) keeps the variance through ReLUs; √(2/(fan_in + fan_out)) is Xavier's.

    Xavier: Glorot and Bengio 2010, eq. 12. The article gives He's formula and calls it Xavier's.
    """
    return math.sqrt(2 / fan_in) if scale == "he" else math.sqrt(2 / (fan_in + fan_out))


def dense(
    fan_in: int, fan_out: int, *, std: float, rng: np.random.Generator, dtype: npt.DTypeLike = np.float32
) -> Dense:
    """A layer with weights from N(0, std²) and biases 0."""
    weights = (std * rng.standard_normal((fan_out, fan_in))).astype(dtype)
    return Dense(weights, np.zeros(fan_out, dtype=dtype))


def mlp(sizes: Sequence[int], *, activation: str, scale: Scale, rng: np.random.Generator) -> Network:
    """Dense layers of these sizes, float32, with the activation between them; two sizes give a logistic regression."""
    layers: list[Layer] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [Activate(ACTIVATIONS[activation])] if layers else []
        layers.append(dense(fan_in, fan_out, std=std(scale, fan_in=fan_in, fan_out=fan_out), rng=rng))
    return Network(layers)
