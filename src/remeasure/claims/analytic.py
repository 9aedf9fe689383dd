"""Experiments without training: formulas, extremes, sums over all masks, random matrices, committed records.

Each maps its parameters and a seed to its numbers. They use the network from scratch, and torch to check it where
torch has the same function.
"""

import itertools
import math
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from remeasure.claims.context import Lab, Numbers
from remeasure.claims.ledger import (
    SIX,
    Activations,
    Committed,
    DepthVariance,
    DropoutExpectation,
    InitialisationName,
    LinearMap,
    Losses,
)
from remeasure.judging import reader
from remeasure.models.scratch import losses
from remeasure.models.scratch.activations import ACTIVATIONS, Activation, Array
from remeasure.models.scratch.layers import Activate, Dense
from remeasure.models.scratch.network import Network, dense, std
from remeasure.spec.base import InputError

FAR = 40.0  # beyond |z| = 40 no activation differs from its limit in float64


def activations(parameters: Activations, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    return {f"{name}.{kind}": value for name in SIX for kind, value in _activation(ACTIVATIONS[name]).items()}


def _activation(activation: Activation) -> dict[str, float]:
    """Largest error against torch's, extremes over [-FAR, FAR], and whether the slope is 0 on a whole half-line."""
    z = np.linspace(-FAR, FAR, 80_001)
    theirs = getattr(torch, activation.name, None) or getattr(functional, activation.name)
    values, slopes = activation.function(z), activation.derivative(z)
    return {
        "formula_error": float(np.abs(values - theirs(torch.from_numpy(z)).numpy()).max()),
        "lowest": _lowest(activation, z=z, values=values),
        "highest": float(values.max()),
        "can_die": float(not slopes[z < -1e-6].any() or not slopes[z > 1e-6].any()),
    }


def _lowest(activation: Activation, *, z: Array, values: Array) -> float:
    """The minimum, by minimisation around the lowest point of the grid."""
    index = int(values.argmin())
    around = (float(z[max(index - 1, 0)]), float(z[min(index + 1, len(z) - 1)]))
    found = minimize_scalar(
        lambda at: float(activation.function(np.array(at))), bounds=around, method="bounded", options={"xatol": 1e-12}
    )
    return min(float(found.fun), float(values[index]))


def linear_map(parameters: LinearMap, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    """Relative difference of a deep net's outputs from those of the one linear map that its layers multiply to."""
    rng = np.random.default_rng(seed)
    layers = [_layer(*sizes, rng=rng) for sizes in pairwise(parameters.sizes)]
    inputs = rng.standard_normal((100, parameters.sizes[0]))
    matrix, bias = np.eye(parameters.sizes[0]), np.zeros(parameters.sizes[0])
    for layer in layers:
        weights, biases = layer.parameters
        matrix, bias = weights @ matrix, weights @ bias + biases
    one = inputs @ matrix.T + bias
    relus = [each for layer in layers for each in (layer, Activate(ACTIVATIONS["relu"]))][:-1]
    return {
        f"{name}.relative_error": float(np.abs(Network(net).forward(inputs) - one).max() / np.abs(one).max())
        for name, net in (("linear", layers), ("relu", relus))
    }


def _layer(fan_in: int, fan_out: int, *, rng: np.random.Generator) -> Dense:
    """A dense layer in float64 with He weights and random biases."""
    layer = dense(fan_in, fan_out, std=std("he", fan_in=fan_in, fan_out=fan_out), rng=rng, dtype=np.float64)
    layer.parameters[1][...] = rng.standard_normal(fan_out)
    return layer


def depth_variance(parameters: DepthVariance, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    """log10 of the activations' mean square after the last layer over that after the first, for each scale."""
    width = parameters.width
    of = {
        "he": (std("he", fan_in=width, fan_out=width), "relu"),
        "xavier": (std("xavier", fan_in=width, fan_out=width), "relu"),
        "small": (parameters.small_std, "relu"),
        "large": (parameters.large_std, "relu"),
        "he_tanh": (std("he", fan_in=width, fan_out=width), "tanh"),
        "xavier_tanh": (std("xavier", fan_in=width, fan_out=width), "tanh"),
    }
    return {
        f"{name}.decades": _decades(parameters, scale=scale, activation=activation, seed=seed)
        for name, (scale, activation) in of.items()
    }


def _decades(parameters: DepthVariance, *, scale: float, activation: str, seed: int) -> float:
    rng, width = np.random.default_rng(seed), parameters.width
    values: Array = rng.standard_normal((parameters.num_inputs, width))
    squares = []
    for _ in range(parameters.num_layers):
        layer = dense(width, width, std=scale, rng=rng, dtype=np.float64)
        values = Network([layer, Activate(ACTIVATIONS[activation])]).forward(values)
        squares.append(float((values**2).mean()))
    return math.log10(squares[-1] / squares[0])


def initialisation_name(parameters: InitialisationName, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    """The article's √(2/fan_in) over the sd of weights that torch draws by He's and by Xavier's rule."""
    generator = torch.Generator().manual_seed(seed)
    weights, article = torch.empty(parameters.fan_out, parameters.fan_in), math.sqrt(2 / parameters.fan_in)
    he = torch.nn.init.kaiming_normal_(weights, nonlinearity="relu", generator=generator).std().item()
    xavier = torch.nn.init.xavier_normal_(weights, generator=generator).std().item()
    return {"article_over_he": article / he, "article_over_xavier": article / xavier}


def dropout_expectation(parameters: DropoutExpectation, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    """Errors of z = W·a + b at inference against its expectation over all 2ⁿ masks of a in training.

    scaled: training masks a, inference multiplies a by the keep probability. inverted: training masks a and divides it
    by that, inference uses a. unscaled: training masks a, inference uses a. torch: error of the factor of kept units.
    """
    rng, keep = np.random.default_rng(seed), parameters.keep
    layer, units = _layer(parameters.num_units, 5, rng=rng), rng.standard_normal((1, parameters.num_units))
    masks = np.array(list(itertools.product((0.0, 1.0), repeat=parameters.num_units)))
    chances = np.prod(np.where(masks == 1, keep, 1 - keep), axis=1)
    masked, inverted = (chances @ layer.forward(masks * units * factor) for factor in (1.0, 1 / keep))
    scaled_down, plain = layer.forward(keep * units)[0], layer.forward(units)[0]
    torch.manual_seed(seed)
    dropped = functional.dropout(torch.ones(10_000, dtype=torch.float64), p=1 - keep)
    return {
        "scaled_error": float(np.abs(masked - scaled_down).max()),
        "inverted_error": float(np.abs(inverted - plain).max()),
        "unscaled_error": float(np.abs(masked - plain).max()),
        "torch_factor_error": float((dropped[dropped > 0] - 1 / keep).abs().max()),
    }


def loss_values(parameters: Losses, *, seed: int, lab: Lab) -> Numbers:  # noqa: ARG001
    zero, numbers = np.zeros(1), Numbers()
    for name, loss in (("mse", losses.mean_squared_error), ("huber", losses.huber)):
        (ten, slope_of_ten), (one, slope_of_one) = (loss(np.array([error]), zero) for error in (10.0, 1.0))
        numbers[f"{name}.cost_ratio"] = ten / one
        numbers[f"{name}.slope_ratio"] = float(slope_of_ten[0] / slope_of_one[0])
    logits = np.linspace(-30, 30, 601)
    binary = [losses.binary_cross_entropy(np.array([z]), np.array([y]))[0] for y in (0.0, 1.0) for z in logits]
    categorical = [losses.cross_entropy(np.array([[0.0, z]]), np.array([y]))[0] for y in (0, 1) for z in logits]
    return {**numbers, "cross_entropies.difference": float(np.abs(np.subtract(binary, categorical)).max()), **_wrong()}


def _wrong() -> Numbers:
    """|∂L/∂z| of the true class at logit z = -10: of the cross-entropy, and of the squared error of σ(z)."""
    logit, one = np.array([-10.0]), np.array([1.0])
    sigmoid = Activate(ACTIVATIONS["sigmoid"])
    squared = sigmoid.backward(losses.mean_squared_error(sigmoid.forward(logit), one)[1])
    by_cross_entropy = losses.binary_cross_entropy(logit, one)[1]
    return {"wrong.cross_entropy_slope": abs(float(by_cross_entropy[0])), "wrong.mse_slope": abs(float(squared[0]))}


def committed(parameters: Committed, *, seed: int, lab: Lab) -> Numbers:
    """The seed's accuracy in the committed record of each row. InputError: a record has no such seed."""
    numbers: Numbers = {}
    for row in parameters.rows:
        by_seed = {record.seed: record for record in reader.read_runs(lab.results, row=row)}
        if seed not in by_seed:
            raise InputError(f"{row}: no committed record of seed {seed}; `make reproduce ROWS={row}` measures it")
        lab.specs[f"{row}, committed"] = by_seed[seed].spec_sha256
        lab.data_sha256[row] = by_seed[seed].data_sha256
        numbers[f"{row}.score_percent"] = by_seed[seed].accuracy_percent
    return numbers
