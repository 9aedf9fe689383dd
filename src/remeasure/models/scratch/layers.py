"""Layers of a network: `forward` stores what `backward` needs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from remeasure.models.scratch.activations import Activation, Array, softmax


class Layer(ABC):
    """From inputs (B, …) to outputs (B, …), and from ∂L/∂outputs back to ∂L/∂inputs.

    `gradients`: after a backward pass ∂L/∂p of each of the `parameters`, in their order.
    """

    parameters: Sequence[Array] = ()
    gradients: Sequence[Array] = ()

    @abstractmethod
    def forward(self, inputs: Array) -> Array: ...

    @abstractmethod
    def backward(self, gradient: Array) -> Array: ...


class Dense(Layer):
    """z = a·Wᵀ + b, for weights (fan_out, fan_in) and biases (fan_out,)."""

    def __init__(self, weights: Array, biases: Array) -> None:
        self.parameters = [weights, biases]

    def forward(self, inputs: Array) -> Array:
        """(B, fan_in) → (B, fan_out)."""
        self._inputs = inputs
        weights, biases = self.parameters
        return inputs @ weights.T + biases

    def backward(self, gradient: Array) -> Array:
        """∂L/∂W = δᵀ·a, ∂L/∂b = Σ δ over the batch; returns ∂L/∂a = δ·W."""
        self.gradients = [gradient.T @ self._inputs, gradient.sum(axis=0)]
        return gradient @ self.parameters[0]


class Activate(Layer):
    """a = f(z), elementwise; backward ∂L/∂z = ∂L/∂a ⊙ f'(z)."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def forward(self, inputs: Array) -> Array:
        self._inputs = inputs
        return self.activation.function(inputs)

    def backward(self, gradient: Array) -> Array:
        return gradient * self.activation.derivative(self._inputs)


class Softmax(Layer):
    """p = softmax(z) of each row; backward by its Jacobian, ∂pᵢ/∂zⱼ = pᵢ·(δᵢⱼ - pⱼ).

    Not needed before a cross-entropy: `losses.cross_entropy` takes logits and includes the softmax.
    """

    def forward(self, inputs: Array) -> Array:
        self._outputs = softmax(inputs)
        return self._outputs

    def backward(self, gradient: Array) -> Array:
        along: Array = (gradient * self._outputs).sum(axis=-1, keepdims=True)
        return self._outputs * (gradient - along)
