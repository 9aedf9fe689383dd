"""Steps of the optimisers from scratch are torch's; weights are drawn with the variance that is claimed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from remeasure.models.scratch.network import dense, mlp, std
from remeasure.models.scratch.optimizers import Adam, Sgd, clip

OPTIMIZERS: dict[str, tuple[Callable[..., Adam | Sgd], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (Sgd, torch.optim.SGD),
    "sgd with momentum": (lambda p: Sgd(p, momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
    "adam": (Adam, torch.optim.Adam),
    "adam, other means": (
        lambda p: Adam(p, betas=(0.8, 0.95), eps=1e-3),
        lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.8, 0.95), eps=1e-3),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_are_torchs(name: str) -> None:
    rng = np.random.default_rng(0)
    parameters = [rng.standard_normal((4, 3)), rng.standard_normal(4)]
    twins = [nn.Parameter(torch.tensor(parameter)) for parameter in parameters]
    ours, theirs = OPTIMIZERS[name][0](parameters), OPTIMIZERS[name][1](twins, lr=0.1)
    for step in range(20):
        gradients = [rng.standard_normal(parameter.shape) for parameter in parameters]
        for group in theirs.param_groups:
            group["lr"] = 0.1 / (1 + step)
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = torch.tensor(gradient)
        ours.step(gradients, 0.1 / (1 + step))
        theirs.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        np.testing.assert_allclose(parameter, twin.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_gradients_are_clipped_together(max_norm: float, expected: list[float]) -> None:
    gradients = [np.array([3.0]), np.array([4.0])]
    assert clip(gradients, max_norm=max_norm) == 5.0
    np.testing.assert_allclose(np.concatenate(gradients), expected)


def test_he_and_xavier_draw_with_their_own_variance() -> None:
    assert std("he", fan_in=512, fan_out=10) == math.sqrt(2 / 512) == 0.0625
    assert std("xavier", fan_in=512, fan_out=1536) == math.sqrt(2 / 2048) == 0.03125
    layer = dense(1000, 1000, std=0.0625, rng=np.random.default_rng(0))
    weights, biases = layer.parameters
    assert weights.std() == pytest.approx(0.0625, rel=0.005)  # a million draws: five standard errors are 0.0035
    assert abs(weights.mean()) < 0.0625 * 0.005
    assert weights.dtype == biases.dtype == np.float32
    assert not biases.any()


@pytest.mark.parametrize(("sizes", "num_params"), [([784, 10], 7850), ([784, 256, 10], 203_530)])
def test_the_articles_networks_have_its_numbers_of_parameters(sizes: list[int], num_params: int) -> None:
    network = mlp(sizes, activation="relu", scale="he", rng=np.random.default_rng(0))
    assert sum(parameter.size for parameter in network.parameters) == num_params
