"""The optimisers: each is a class with its arguments as fields and the builder of torch's optimiser.

A new one is a class here; its arguments are then keys of `recipe.optimizer`, and nothing else names it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from remeasure.models.scratch import optimizers as scratch
from remeasure.models.scratch.activations import Array
from remeasure.spec.base import NotNegative, Positive, Precision, Within
from remeasure.spec.recipe import Optimizer
from remeasure.training import muon

Share = Annotated[float | None, Within("a number in [0, 1)", lambda value: 0 <= value < 1)]
Betas = Annotated[
    tuple[float, float] | None,
    Within("two numbers in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas)),
]
EVERY_ENGINE = ("serial", "batched", "numpy", "photographs")


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    optimizer: Optimizer,
    captured_rate: Tensor | None = None,
    precision: Precision = "float32",
) -> torch.optim.Optimizer:
    """The torch optimiser. `captured_rate`: the learning rate () on the device, for steps that a CUDA graph captures.

    Raises InputError for muon if the network has no kernels.
    """
    rate = optimizer.lr_peak if captured_rate is None else captured_rate
    built: torch.optim.Optimizer = optimizer.build(parameters, rate=rate, precision=precision)
    return built


@dataclass(frozen=True, kw_only=True)
class _OfMoments(Optimizer):
    """What Adam and AdamW have in common."""

    weight_decay: NotNegative | None = None
    betas: Betas = None
    eps: Positive | None = None
    capturable = True
    made: ClassVar[type[torch.optim.Adam]]

    def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
        return self.made(parameters, lr=rate, **self.arguments(), fused=True, capturable=isinstance(rate, Tensor))


@dataclass(frozen=True, kw_only=True)
class Adam(_OfMoments):
    """Kingma and Ba 2015, "Adam". `weight_decay` is added to the gradient."""

    name: Literal["adam"] = "adam"
    engines = EVERY_ENGINE
    made = torch.optim.Adam

    def from_scratch(self, arrays: list[Array]) -> scratch.Adam:
        return scratch.Adam(arrays, betas=self.betas or (0.9, 0.999), eps=self.eps or 1e-8)  # torch's defaults

    def unsupported(self, engine: str) -> Iterable[str]:
        yield from super().unsupported(engine)
        if engine == "numpy" and self.weight_decay:
            yield "has adam without weight decay (recipe.optimizer.weight_decay: null)"


@dataclass(frozen=True, kw_only=True)
class AdamW(_OfMoments):
    """Loshchilov and Hutter 2019, "Decoupled weight decay regularization"."""

    name: Literal["adamw"] = "adamw"
    engines = ("serial", "batched", "photographs")
    made = torch.optim.AdamW


@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Stochastic gradient descent, with torch's momentum. `weight_decay` is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    momentum: Share = None
    nesterov: bool | None = None
    weight_decay: NotNegative | None = None
    engines = EVERY_ENGINE
    capturable = True

    def _faults(self) -> Iterable[str]:
        if self.nesterov and not self.momentum:
            yield "nesterov: needs a momentum above 0"

    def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate, **self.arguments(), fused=True)

    def from_scratch(self, arrays: list[Array]) -> scratch.Sgd:
        return scratch.Sgd(arrays, momentum=self.momentum or 0.0)

    def unsupported(self, engine: str) -> Iterable[str]:
        yield from super().unsupported(engine)
        if engine == "numpy" and (self.weight_decay or self.nesterov):
            yield "has SGD with momentum, without weight decay and nesterov (null)"


@dataclass(frozen=True, kw_only=True)
class RmsProp(Optimizer):
    """Tieleman and Hinton 2012, lecture 6.5. `alpha`: how much the mean square keeps each step (Keras's rho)."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Share = None
    eps: Positive | None = None
    momentum: Share = None
    weight_decay: NotNegative | None = None
    engines = ("serial", "batched", "photographs")
    capturable = True

    def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=rate, **self.arguments(), capturable=isinstance(rate, Tensor))


@dataclass(frozen=True, kw_only=True)
class Lbfgs(Optimizer):
    """L-BFGS (Nocedal and Wright 2006, chapter 7): one iteration a step, with a strong Wolfe line search."""

    name: Literal["lbfgs"] = "lbfgs"
    history_size: Annotated[int | None, Within("1 or more", lambda size: size >= 1)] = None
    searches_lines = True

    def build(self, parameters: Any, *, rate: float | Tensor, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            parameters, lr=rate, **self.arguments(), max_iter=1, max_eval=25, line_search_fn="strong_wolfe"
        )


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Jordan et al. 2024 (training/muon.py). `sgd_lr_peak`: the peak rate of the parameters that it updates by SGD;
    both rates follow the schedule.
    """

    name: Literal["muon"] = "muon"
    momentum: Annotated[float, Within("a number in (0, 1)", lambda value: 0 < value < 1)]
    sgd_lr_peak: Positive
    weight_decay: NotNegative | None = None
    capturable = True

    def build(self, parameters: Any, *, rate: float | Tensor, precision: Precision) -> torch.optim.Optimizer:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return muon.Muon(parameters, lr=rate, **self.arguments(), dtype=dtype)
