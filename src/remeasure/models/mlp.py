"""Softmax regression and multilayer perceptrons, on images as flat vectors.

On MNIST: 784-10 has 7,850 parameters, 784-256-10 has 203,530, and 784-512-512-10 (the net of Keras's
examples/mnist_mlp.py) has 669,706, all as published.

Dropout masks come from torch's global generator, as everywhere in torch; the training seeds it.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from remeasure.spec.base import InputError

Layer = TypeVar("Layer", bound=nn.Module)
Initialisation = Literal["torch_default", "keras_default"]
ActivationName = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "none"]
ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "none": nn.Identity,
}


def logistic_regression(
    *, image_shape: tuple[int, int, int], num_classes: int, generator: Generator, initialisation: Initialisation
) -> nn.Module:
    """Multinomial logistic regression: logits = W x + b over the flat pixels x."""
    layer = linear(math.prod(image_shape), num_classes, initialisation=initialisation, generator=generator)
    return nn.Sequential(nn.Flatten(), layer)


def mlp(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    generator: Generator,
    hidden_sizes: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)],
    activation: ActivationName,
    dropout: list[Annotated[float, Field(ge=0, lt=1)]],
    dropout_masks: Literal["bernoulli", "uniform"],
    batch_norm: bool,
    initialisation: Initialisation,
) -> nn.Module:
    """Dense hidden layers, each followed by the activation and then by dropout, and a linear output.

    `batch_norm`: batch normalisation before each activation (Ioffe and Szegedy 2015, section 3.2). `activation`: none
    makes the whole net one linear map.
    `dropout`: the fraction of units to drop, one for each hidden layer, or [] for none. `dropout_masks`: bernoulli is
    torch's dropout; uniform is UniformDropout, with other masks, which makes the article's step an eighth faster on a
    CPU. InputError: not one dropout fraction for each hidden layer.
    """
    if len(dropout) not in (0, len(hidden_sizes)):
        raise InputError(
            f"model.options.dropout: expected [] or one fraction for each of the {len(hidden_sizes)} hidden layers, "
            f"got {dropout}"
        )
    sizes = [math.prod(image_shape), *hidden_sizes]
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (num_in, num_out) in enumerate(pairwise(sizes)):
        layers.append(linear(num_in, num_out, initialisation=initialisation, generator=generator))
        if batch_norm:
            layers.append(nn.BatchNorm1d(num_out))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(_DROPOUTS[dropout_masks](dropout[index]))
    layers.append(linear(sizes[-1], num_classes, initialisation=initialisation, generator=generator))
    return nn.Sequential(*layers)


class UniformDropout(nn.Dropout):
    """Dropout with masks from uniform numbers compared with p; on a CPU, torch's masks take four times as long.

    A unit is kept with probability 1 - p, to 2⁻²⁴, and then scaled by 1 / (1 - p) (Srivastava et al. 2014, section 10,
    "inverted").
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p or input.device.type != "cpu":
            return super().forward(input)
        uniform = torch.rand_like(input, dtype=torch.float32)  # bfloat16 has 8 bits, and would move the probability
        return input * uniform.ge_(self.p).mul_(1 / (1 - self.p)).to(input.dtype)


_DROPOUTS: dict[str, type[nn.Dropout]] = {"bernoulli": nn.Dropout, "uniform": UniformDropout}


def linear(num_in: int, num_out: int, *, initialisation: Initialisation, generator: Generator) -> nn.Linear:
    """A linear layer drawn from `generator`.

    torch_default: weights and biases from U(±1/√num_in), as torch.nn.Linear draws them from global state.
    keras_default: weights from U(±√(6/(num_in + num_out))) (Glorot and Bengio 2010, eq. 16), biases 0.
    """
    layer = nn.Linear(num_in, num_out, device="meta")
    if initialisation == "torch_default":
        return drawn(layer, bound=1 / math.sqrt(num_in), generator=generator)
    layer = drawn(layer, bound=math.sqrt(6 / (num_in + num_out)), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def drawn(layer: Layer, *, bound: float, generator: Generator) -> Layer:
    """The layer on the CPU, every parameter drawn from U(±bound).

    Pass a layer on the meta device: elsewhere torch's layers draw their initial weights from global state.
    """
    layer = layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
