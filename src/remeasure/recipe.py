"""A recipe's parts as functions: learning rate, optimiser, loss, distortions. No Lightning, no files, no clock."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.spec import Augmentation, Loss, Normalisation, Optimizer, Schedule

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "lbfgs": torch.optim.LBFGS,
}


FUSED = ("adam", "adamw", "sgd")  # one kernel for all parameters, on CPUs, too


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


def build_optimizer(parameters: Iterable[nn.Parameter], *, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The torch optimiser. L-BFGS makes one iteration a step, with a strong Wolfe line search."""
    lbfgs = {"max_iter": 1, "max_eval": 25, "line_search_fn": "strong_wolfe"}
    extra: dict[str, Any] = lbfgs if optimizer.name == "lbfgs" else {"fused": True} if optimizer.name in FUSED else {}
    build: Any = OPTIMIZERS[optimizer.name]  # no two have the same arguments
    built: torch.optim.Optimizer = build(parameters, lr=optimizer.lr_peak, **optimizer.arguments(), **extra)
    return built


def normalise(images: Tensor, *, normalisation: Normalisation) -> Tensor:
    """(N, C, H, W) uint8 in 0..255 → float32 (x/255 - mean) / std."""
    shape = (1, -1, 1, 1)
    mean = 255 * torch.tensor(normalisation.mean, device=images.device).view(shape)
    scale = 1 / (255 * torch.tensor(normalisation.std, device=images.device).view(shape))
    return images.to(torch.float32, copy=True).sub_(mean).mul_(scale)


def training_loss(logits: Tensor, labels: Tensor, *, loss: Loss, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Mean cross-entropy over the batch, plus the penalty ½·l2·Σw² over weight matrices and kernels."""
    value = functional.cross_entropy(logits, labels, label_smoothing=loss.label_smoothing)
    if loss.l2_penalty:
        value = value + 0.5 * loss.l2_penalty * sum(weight.square().sum() for weight in parameters if weight.ndim > 1)
    return value


def augment(images: Tensor, *, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Distorted images, shape and range as given; the background, 0 before normalisation, fills what comes in.

    images: (N, C, H, W) uint8 or float32 in 0..255. Returns the same for `none`, else float32.
    """
    if augmentation.name == "none":
        return images
    maps = affine_maps(len(images), augmentation=augmentation, size=images.shape[-1], generator=generator)
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_maps(num: int, *, augmentation: Augmentation, size: int, generator: torch.Generator) -> Tensor:
    """Random planar affine maps (num, 2, 3) float32, from output to input coordinates in [-1, 1] (torch's affine_grid).

    Translation, scaling, squeezing, horizontal shear: LeCun et al. 1998, section III-C.
    """
    scaling, squeezing, shear, shift_x, shift_y = 2 * torch.rand(5, num, generator=generator) - 1
    kept = torch.rand(num, generator=generator) >= (augmentation.probability or 0.0)
    pixels = 2 * (augmentation.translation_pixels or 0.0) / size
    common, ratio = scaling * (augmentation.scaling or 0.0), squeezing * (augmentation.squeezing or 0.0)
    stretch_x, stretch_y = torch.exp(common + ratio), torch.exp(common - ratio)
    rows = [stretch_x, shear * (augmentation.shear or 0.0), shift_x * pixels]
    rows += [torch.zeros(num), stretch_y, shift_y * pixels]
    maps = torch.stack(rows, dim=1).view(num, 2, 3)
    maps[kept] = torch.eye(2, 3)
    return maps
