import math

import pytest
import torch
from torch import nn

from remeasure.models.mlp import UniformDropout, linear, logistic_regression, mlp
from remeasure.spec.base import InputError

MNIST = {"image_shape": (1, 28, 28), "num_classes": 10}


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_mlp(**changes: object) -> nn.Module:
    options = {
        "hidden_sizes": [8, 6],
        "activation": "relu",
        "dropout": [],
        "dropout_masks": "bernoulli",
        "batch_norm": False,
        "initialisation": "torch_default",
    }
    return mlp(**MNIST, generator=generator(), **{**options, **changes})


def test_torch_default_draws_what_torch_nn_linear_draws_from_global_state() -> None:
    torch.manual_seed(3)
    expected = nn.Linear(784, 256)
    layer = linear(784, 256, initialisation="torch_default", generator=generator(3))
    torch.testing.assert_close(layer.weight, expected.weight)
    torch.testing.assert_close(layer.bias, expected.bias)
    for parameter in (layer.weight, layer.bias):
        assert 0.98 / 28 < parameter.abs().max() <= 1 / 28  # √784 = 28


def test_keras_default_is_glorot_uniform_with_zero_biases() -> None:
    layer = linear(784, 512, initialisation="keras_default", generator=generator())
    bound = math.sqrt(6) / 36  # 784 + 512 = 36²
    assert 0.999 * bound < layer.weight.abs().max() <= bound
    assert abs(layer.weight.mean()) < 0.001  # its standard deviation is bound/√3/√(784·512) = 0.00006
    assert not layer.bias.any()


def test_a_linear_layer_maps_the_flat_pixels() -> None:
    layer = logistic_regression(**MNIST, generator=generator(), initialisation="torch_default")
    images = torch.randn(3, 1, 28, 28, generator=generator())
    weight, bias = layer.parameters()
    torch.testing.assert_close(layer(images), images.reshape(3, 784) @ weight.T + bias)


ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "gelu": lambda z: z / 2 * (1 + torch.erf(z / 2**0.5)),
    "silu": lambda z: z * torch.sigmoid(z),
    "none": lambda z: z,
}


@pytest.mark.parametrize(("name", "function"), ACTIVATIONS.items())
def test_hidden_layers_apply_the_named_activation(name: str, function: torch.nn.Module) -> None:
    net = small_mlp(activation=name)
    images = torch.randn(3, 1, 28, 28, generator=generator())
    w1, b1, w2, b2, w3, b3 = net.parameters()
    hidden = function(function(images.flatten(1) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(net(images), hidden @ w3.T + b3)


def test_dropout_follows_each_activation_with_its_own_fraction() -> None:
    layers = list(small_mlp(dropout=[0.1, 0.5]))
    kinds = [nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert (layers[3].p, layers[6].p) == (0.1, 0.5)


def test_uniform_masks_drop_as_many_units_as_torch_and_keep_the_expected_value() -> None:
    """Of a million units a share p is 0, to five standard deviations, and the others are 1 / (1 - p)."""
    torch.manual_seed(0)
    for fraction in (0.1, 0.3, 0.8):
        dropped = UniformDropout(fraction).train()(torch.ones(1000, 1000))
        kept = dropped[dropped != 0]
        assert 1 - len(kept) / 1e6 == pytest.approx(fraction, abs=5 * math.sqrt(fraction * (1 - fraction) / 1e6))
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - fraction)))


def test_uniform_masks_drop_that_share_of_bfloat16_units_too() -> None:
    """One in a thousand: of bfloat16's own uniform numbers, which are multiples of 1/256, one in 256 is below it."""
    torch.manual_seed(0)
    dropped = UniformDropout(0.001).train()(torch.ones(1000, 1000, dtype=torch.bfloat16))
    assert dropped.dtype == torch.bfloat16
    assert float((dropped == 0).float().mean()) == pytest.approx(0.001, abs=5 * math.sqrt(0.001 / 1e6))


def test_uniform_masks_scale_gradients_as_they_scale_units() -> None:
    units = torch.ones(10_000, requires_grad=True)
    dropped = UniformDropout(0.5).train()(units)
    dropped.sum().backward()
    assert units.grad is not None
    assert torch.equal(units.grad, dropped)
    assert set(dropped.tolist()) == {0.0, 2.0}


def test_uniform_masks_are_off_when_scoring_and_at_zero() -> None:
    units = torch.rand(100)
    assert torch.equal(UniformDropout(0.9).eval()(units), units)
    assert torch.equal(UniformDropout(0.0).train()(units), units)


def test_masks_are_drawn_as_the_option_says() -> None:
    kinds = [type(list(small_mlp(dropout=[0.1, 0.5], dropout_masks=masks))[3]) for masks in ("bernoulli", "uniform")]
    assert kinds == [torch.nn.Dropout, UniformDropout]


def test_initialisation_moves_the_weights() -> None:
    default, keras = (small_mlp(initialisation=name) for name in ("torch_default", "keras_default"))
    assert all(not torch.equal(one, other) for one, other in zip(default.parameters(), keras.parameters(), strict=True))


def test_a_fraction_for_each_hidden_layer_or_none_at_all() -> None:
    with pytest.raises(InputError, match=r"one fraction for each of the 2 hidden layers, got \[0\.2\]"):
        small_mlp(dropout=[0.2])


def test_dense_models_take_images_of_any_size() -> None:
    net = logistic_regression(
        image_shape=(1, 8, 8), num_classes=10, generator=generator(), initialisation="torch_default"
    )
    assert sum(parameter.numel() for parameter in net.parameters()) == 650  # 64·10 + 10
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_batch_normalisation_stands_before_each_activation() -> None:
    net = small_mlp(batch_norm=True)
    kinds = [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in net] == kinds
    images = torch.randn(50, 1, 28, 28, generator=generator())
    z = net[1](images.flatten(1))
    expected = (z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + 1e-5).sqrt()  # eps is torch's
    torch.testing.assert_close(net[:3](images), expected, rtol=1e-4, atol=1e-5)
