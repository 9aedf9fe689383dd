"""The six activations of the article, with their derivatives: elementwise functions of arrays of any shape.

σ is the logistic function, Φ the distribution function of the standard normal and φ its density.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

Array = npt.NDArray[np.floating]
LEAK = 0.01  # Maas, Hannun and Ng 2013, section 2


@dataclass(frozen=True)
class Activation:
    """`function` f(z), and `derivative` f'(z); where f has a corner, the derivative from the left, as in torch."""

    name: str
    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def sigmoid(z: Array) -> Array:
    """1 / (1 + e⁻ᶻ), in (0, 1)."""
    value: Array = expit(z)
    return value


def softmax(z: Array) -> Array:
    """eᶻ / Σ eᶻ over the last axis, which sums to 1; shifted by the greatest z, so that nothing overflows."""
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    value: Array = powers / powers.sum(axis=-1, keepdims=True)
    return value


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


def _leaky_relu(z: Array) -> Array:
    return np.where(z > 0, z, _like(LEAK, z) * z)


def _cumulative(z: Array) -> Array:
    """Φ(z) = ½·(1 + erf(z/√2))."""
    value: Array = _like(0.5, z) * (1 + erf(z / _like(math.sqrt(2), z)))
    return value


def _density(z: Array) -> Array:
    """φ(z) = e^(-z²/2) / √(2π)."""
    value: Array = np.exp(-z * z / 2) / _like(math.sqrt(2 * math.pi), z)
    return value


def _like(value: float, z: Array) -> np.floating:
    """A constant in the precision of z."""
    return z.dtype.type(value)


ACTIVATIONS = {
    entry.name: entry
    for entry in (
        Activation("sigmoid", sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
        Activation("tanh", np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        Activation("relu", _relu, lambda z: (z > 0).astype(z.dtype)),  # Nair and Hinton 2010
        Activation("leaky_relu", _leaky_relu, lambda z: np.where(z > 0, _like(1.0, z), _like(LEAK, z))),
        # Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2: z·Φ(z).
        Activation("gelu", lambda z: z * _cumulative(z), lambda z: _cumulative(z) + z * _density(z)),
        # Elfwing, Uchibe and Doya 2018, section 2: z·σ(z); Ramachandran et al. 2017 call it Swish.
        Activation("silu", lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    )
}
