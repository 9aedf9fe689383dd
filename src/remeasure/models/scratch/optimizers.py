"""Optimisers: `step(gradients, rate)` updates the optimiser's parameters in place.

`means` and `num_steps` are an optimiser's whole state.
"""

from collections.abc import Sequence

import numpy as np

from remeasure.models.scratch.activations import Array


class Sgd:
    """p ← p - rate·v with v ← momentum·v + g; without momentum, plain gradient descent."""

    def __init__(self, parameters: Sequence[Array], *, momentum: float = 0.0) -> None:
        self.parameters, self.momentum, self.num_steps = parameters, momentum, 0
        self.means = {"velocity": [np.zeros_like(parameter) for parameter in parameters]}

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        self.num_steps += 1
        for parameter, velocity, gradient in zip(self.parameters, self.means["velocity"], gradients, strict=True):
            velocity *= self.momentum
            velocity += gradient
            parameter -= rate * velocity


class Adam:
    """p ← p - rate·m̂/(√v̂ + ε) (Kingma and Ba 2015, algorithm 1), m̂ and v̂ corrected for their start at 0.

    m ("first") is the moving mean of the gradient g, v ("second") that of g².
    """

    def __init__(
        self, parameters: Sequence[Array], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.parameters, self.betas, self.eps, self.num_steps = parameters, betas, eps, 0
        self.means = {name: [np.zeros_like(parameter) for parameter in parameters] for name in ("first", "second")}

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        self.num_steps += 1
        one, two = self.betas
        of_first, of_second = 1 - one**self.num_steps, 1 - two**self.num_steps
        for parameter, m, v, g in zip(
            self.parameters, self.means["first"], self.means["second"], gradients, strict=True
        ):
            m *= one
            m += (1 - one) * g
            v *= two
            v += (1 - two) * (g * g)
            parameter -= (rate / of_first) * m / (np.sqrt(v / of_second) + self.eps)


def clip(gradients: Sequence[Array], *, max_norm: float) -> float:
    """Scale all gradients together, in place, to a norm of at most `max_norm`; returns the norm before.

    Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    norm = float(np.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients)))
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm
