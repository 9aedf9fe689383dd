"""The network from scratch against two others: autograd, and differences of the loss itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.models.scratch import losses
from remeasure.models.scratch.activations import ACTIVATIONS, Array
from remeasure.models.scratch.layers import Activate, Dense, Layer, Softmax
from remeasure.models.scratch.network import Network, mlp

TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
BATCH, FAN_IN, FAN_OUT = 7, 5, 4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def differences(function: Callable[[Array], float], at: Array) -> Array:
    """∂f/∂x of each element by central differences, in float64 good to about 1e-9."""
    slopes, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        before = at[index]
        at[index] = before + step
        above = function(at)
        at[index] = before - step
        slopes[index] = (above - function(at)) / (2 * step)
        at[index] = before
    return slopes


def assert_equal_to_autograd_and_differences(
    layer: Layer, same_in_torch: Callable[..., Tensor], inputs: Array, rng: np.random.Generator
) -> None:
    """Outputs, ∂L/∂inputs and ∂L/∂parameters for a loss L = Σ w·output with random w."""
    tensors = [torch.tensor(array, requires_grad=True) for array in (inputs, *layer.parameters)]
    outputs = layer.forward(inputs)
    expected = same_in_torch(*tensors)
    np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    weights = rng.standard_normal(outputs.shape)
    torch.autograd.backward([(expected * torch.tensor(weights)).sum()])

    def loss(_: Array) -> float:
        return float((layer.forward(inputs) * weights).sum())

    by_hand = [layer.backward(weights), *layer.gradients]
    for gradient, array, tensor in zip(by_hand, (inputs, *layer.parameters), tensors, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(gradient, differences(loss, array), rtol=1e-6, atol=1e-8)


def test_a_dense_layer(rng: np.random.Generator) -> None:
    layer = Dense(rng.standard_normal((FAN_OUT, FAN_IN)), rng.standard_normal(FAN_OUT))
    assert_equal_to_autograd_and_differences(layer, functional.linear, rng.standard_normal((BATCH, FAN_IN)), rng)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation(name: str, rng: np.random.Generator) -> None:
    layer = Activate(ACTIVATIONS[name])
    inputs = 3 * rng.standard_normal((BATCH, FAN_IN))
    assert_equal_to_autograd_and_differences(layer, TORCH_ACTIVATIONS[name], inputs, rng)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero_an_activation_and_its_slope_stay_finite_and_are_torchs(name: str) -> None:
    z = np.array([-1e4, -800.0, -50.0, 0.0, 50.0, 800.0, 1e4])
    tensor = torch.tensor(z, requires_grad=True)
    value = TORCH_ACTIVATIONS[name](tensor)
    torch.autograd.backward([value.sum()])
    assert tensor.grad is not None
    np.testing.assert_allclose(ACTIVATIONS[name].function(z), value.detach().numpy(), atol=1e-15)
    np.testing.assert_allclose(ACTIVATIONS[name].derivative(z), tensor.grad.numpy(), atol=1e-15)


def test_a_softmax(rng: np.random.Generator) -> None:
    inputs = 2 * rng.standard_normal((BATCH, FAN_IN))
    assert_equal_to_autograd_and_differences(Softmax(), lambda z: z.softmax(dim=-1), inputs, rng)


LOSSES: dict[str, tuple[Callable[..., tuple[float, Array]], Callable[..., Tensor]]] = {
    "cross_entropy": (losses.cross_entropy, functional.cross_entropy),
    "binary_cross_entropy": (losses.binary_cross_entropy, functional.binary_cross_entropy_with_logits),
    "mean_squared_error": (losses.mean_squared_error, functional.mse_loss),
    "huber": (losses.huber, functional.huber_loss),
}


def targets_of(name: str, inputs: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if name == "cross_entropy":
        return rng.integers(inputs.shape[1], size=len(inputs))
    return rng.integers(2, size=inputs.shape).astype(np.float64)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 3.0, 800.0])
def test_a_loss(name: str, scale: float, rng: np.random.Generator) -> None:
    """On small, on larger and on absurd inputs, where e^z overflows."""
    loss, in_torch = LOSSES[name]
    inputs = scale * rng.standard_normal((BATCH, FAN_IN))
    targets = targets_of(name, inputs, rng)
    tensor = torch.tensor(inputs, requires_grad=True)
    expected = in_torch(tensor, torch.tensor(targets))
    torch.autograd.backward([expected])
    value, gradient = loss(inputs, targets)
    assert tensor.grad is not None
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-10, atol=1e-14)
    if scale < 10:
        np.testing.assert_allclose(gradient, differences(lambda z: loss(z, targets)[0], inputs), rtol=1e-5, atol=1e-8)


def test_the_huber_loss_takes_another_delta(rng: np.random.Generator) -> None:
    inputs, targets = 5 * rng.standard_normal(50), np.zeros(50)
    expected = functional.huber_loss(torch.tensor(inputs), torch.tensor(targets), delta=2.5).item()
    assert losses.huber(inputs, targets, delta=2.5)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_whole_network(activation: str, rng: np.random.Generator) -> None:
    """784-64-32-10 on a batch: every gradient of the cross-entropy, through all layers, in float64."""
    network = as_float64(mlp([784, 64, 32, 10], activation=activation, scale="he", rng=rng))
    inputs, labels = rng.standard_normal((16, 784)), rng.integers(10, size=16)
    twin = in_torch_of(network)
    expected = functional.cross_entropy(twin(torch.tensor(inputs)), torch.tensor(labels))
    torch.autograd.backward([expected])
    value, gradient = losses.cross_entropy(network.forward(inputs), labels)
    network.backward(gradient)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    for by_hand, parameter in zip(network.gradients, twin.parameters(), strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(by_hand, parameter.grad.numpy(), rtol=1e-9, atol=1e-14)


def as_float64(network: Network) -> Network:
    for layer in network.layers:
        layer.parameters = [parameter.astype(np.float64) for parameter in layer.parameters]
    return network


def in_torch_of(network: Network) -> nn.Sequential:
    """A torch network with the same weights."""
    layers: list[nn.Module] = []
    for layer in network.layers:
        if isinstance(layer, Dense):
            weights, biases = (torch.tensor(parameter) for parameter in layer.parameters)
            linear = nn.Linear(weights.shape[1], weights.shape[0], dtype=weights.dtype)
            linear.weight, linear.bias = nn.Parameter(weights), nn.Parameter(biases)
            layers.append(linear)
        else:
            assert isinstance(layer, Activate)
            layers.append(_Elementwise(TORCH_ACTIVATIONS[layer.activation.name]))
    return nn.Sequential(*layers)


class _Elementwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)
