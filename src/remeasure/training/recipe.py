"""A recipe's parts as functions: learning rate, optimiser, loss. No Lightning, no files, no clock."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.spec.base import Precision
from remeasure.spec.recipe import Loss, Optimizer, Recipe, Schedule
from remeasure.training.muon import Muon

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "lbfgs": torch.optim.LBFGS,
    "muon": Muon,
}


FUSED = ("adam", "adamw", "sgd")  # one kernel for all parameters, on CPUs, too
# Optimisers whose step a CUDA graph can capture, and the arguments that this needs.
CAPTURABLE: dict[str, dict[str, Any]] = {
    "adam": {"capturable": True},
    "adamw": {"capturable": True},
    "rmsprop": {"capturable": True},
    "sgd": {},
    "muon": {},
}


def learning_rate(step: int, *, lr_peak: float, schedule: Schedule, steps_per_epoch: int, epochs_total: int) -> float:
    """The rate of optimiser step `step` (from 0), a pure function: there is no scheduler state to lose or resume."""
    steps_warmup = schedule.epochs_warmup * steps_per_epoch
    if step < steps_warmup:
        return lr_peak * (schedule.lr_start_factor + (1 - schedule.lr_start_factor) * step / steps_warmup)
    done = (step - steps_warmup) / (epochs_total * steps_per_epoch - steps_warmup)  # of the decay, in [0, 1)
    end = schedule.lr_end_factor
    match schedule.name:
        case "linear":
            return lr_peak * (1 - (1 - end) * done)
        case "cosine":
            return lr_peak * (end + (1 - end) * (1 + math.cos(math.pi * done)) / 2)
        case "milestones":
            assert schedule.gamma is not None
            return lr_peak * schedule.gamma ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
        case "constant":
            return lr_peak


def rate_of(recipe: Recipe, *, step: int, steps_per_epoch: int) -> float:
    """`learning_rate` with the recipe's arguments."""
    return learning_rate(
        step,
        lr_peak=recipe.optimizer.lr_peak,
        schedule=recipe.schedule,
        steps_per_epoch=steps_per_epoch,
        epochs_total=recipe.epochs_total,
    )


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    optimizer: Optimizer,
    captured_rate: Tensor | None = None,
    precision: Precision = "float32",
) -> torch.optim.Optimizer:
    """The torch optimiser. L-BFGS makes one iteration a step, with a strong Wolfe line search.

    `captured_rate`: the learning rate () on the device, for steps that a CUDA graph captures. `precision`: of Muon's
    matrix products. Raises InputError for muon if the network has no kernels.
    """
    lbfgs = {"max_iter": 1, "max_eval": 25, "line_search_fn": "strong_wolfe"}
    extra: dict[str, Any] = lbfgs if optimizer.name == "lbfgs" else {"fused": True} if optimizer.name in FUSED else {}
    if optimizer.name == "muon":
        extra = {"dtype": torch.bfloat16 if precision == "bfloat16" else torch.float32}
    build: Any = OPTIMIZERS[optimizer.name]  # no two have the same arguments
    rate: float | Tensor = optimizer.lr_peak
    if captured_rate is not None:
        rate, extra = captured_rate, {**extra, **CAPTURABLE[optimizer.name]}
    built: torch.optim.Optimizer = build(parameters, lr=rate, **optimizer.arguments(), **extra)
    return built


def training_loss(logits: Tensor, labels: Tensor, *, loss: Loss, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Mean cross-entropy over the batch, plus the penalty ½·l2·Σw² over weight matrices and kernels."""
    value = functional.cross_entropy(logits, labels, label_smoothing=loss.label_smoothing)
    if loss.l2_penalty:
        value = value + 0.5 * loss.l2_penalty * sum(weight.square().sum() for weight in parameters if weight.ndim > 1)
    return value


def reflected(positions: Tensor, *, size: int) -> Tensor:
    """Positions up to `size` - 1 beyond either end of 0 … size - 1, mirrored back at the first and last pixel."""
    return size - 1 - (size - 1 - positions.abs()).abs()
