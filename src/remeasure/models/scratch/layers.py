"""Layers of a network: `forward` stores what `backward` needs."""

from typing import Protocol

import numpy as np

from remeasure.models.scratch.activations import Activation, Array, softmax


class Layer(Protocol):
    """From inputs (B, …) to outputs (B, …), and from ∂L/∂outputs back to ∂L/∂inputs.

    `gradients`: after a backward pass ∂L/∂p of each of the `parameters`, in their order.
    """

    parameters: list[Array]

    @property
    def gradients(self) -> list[Array]: ...

    def forward(self, inputs: Array) -> Array: ...

    def backward(self, gradient: Array) -> Array: ...


class Dense:
    """z = a·Wᵀ + b, for weights (fan_out, fan_in) and biases (fan_out,)."""

    def __init__(self, weights: Array, biases: Array) -> None:
        self.parameters: list[Array] = [weights, biases]
        self.gradients: list[Array] = []

    def forward(self, inputs: Array) -> Array:
        """(B, fan_in) → (B, fan_out)."""
        self._inputs = inputs
        weights, biases = self.parameters
        return inputs @ weights.T + biases

    def backward(self, gradient: Array) -> Array:
        """∂L/∂W = δᵀ·a, ∂L/∂b = Σ δ over the batch; returns ∂L/∂a = δ·W."""
        self.gradients = [gradient.T @ self._inputs, gradient.sum(axis=0)]
        return gradient @ self.parameters[0]


class Activate:
    """a = f(z), elementwise; backward ∂L/∂z = ∂L/∂a ⊙ f'(z)."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.parameters: list[Array] = []
        self.gradients: list[Array] = []

    def forward(self, inputs: Array) -> Array:
        self._inputs = inputs
        return self.activation.function(inputs)

    def backward(self, gradient: Array) -> Array:
        return gradient * self.activation.derivative(self._inputs)


class Softmax:
    """p = softmax(z) of each row; backward by its Jacobian, ∂pᵢ/∂zⱼ = pᵢ·(δᵢⱼ - pⱼ).

    Not needed before a cross-entropy: `losses.cross_entropy` takes logits and includes the softmax.
    """

    def __init__(self) -> None:
        self.parameters: list[Array] = []
        self.gradients: list[Array] = []

    def forward(self, inputs: Array) -> Array:
        self._outputs = softmax(inputs)
        return self._outputs

    def backward(self, gradient: Array) -> Array:
        along: Array = (gradient * self._outputs).sum(axis=-1, keepdims=True)
        return self._outputs * (gradient - along)


class Dropout:
    """Each unit is 0 with probability p, else scaled by 1/(1-p), so that its expectation is unchanged.

    Srivastava et al. 2014, section 10 ("inverted"). With `rng` None nothing is dropped, as at inference.
    """

    def __init__(self, p: float, *, rng: np.random.Generator | None) -> None:
        self.p, self.rng = p, rng
        self.parameters: list[Array] = []
        self.gradients: list[Array] = []

    def forward(self, inputs: Array) -> Array:
        if self.rng is None or not self.p:
            self._mask = np.ones_like(inputs)
        else:
            kept = self.rng.random(inputs.shape, dtype=np.float32) >= self.p
            self._mask = kept.astype(inputs.dtype) / inputs.dtype.type(1 - self.p)
        return inputs * self._mask

    def backward(self, gradient: Array) -> Array:
        return gradient * self._mask
