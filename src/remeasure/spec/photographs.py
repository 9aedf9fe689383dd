"""Parts of recipes for photographs that are read from their files on demand: the transform, and the training."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from remeasure.spec.base import Strict


@dataclass(frozen=True, kw_only=True)
class Transform(Strict):
    """From a photograph to the net's input: resize the shorter side to crop_pixels / crop_pct (rounded down), then keep
    the central crop_pixels x crop_pixels. Names and arithmetic are timm's (`timm.data.create_transform`).
    """

    crop_pixels: int
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear"]

    def _faults(self) -> Iterable[str]:
        if self.crop_pixels < 1:
            yield f"crop_pixels: expected 1 or more, got {self.crop_pixels}"
        if not 0 < self.crop_pct <= 1:
            yield f"crop_pct: expected a fraction in (0, 1], got {self.crop_pct}"


@dataclass(frozen=True, kw_only=True)
class Streaming(Strict):
    """Training on photographs that are decoded on demand, with timm's augmentation (Touvron et al. 2021, DeiT).

    Training photographs get a random crop of `transform`'s crop_pixels and a random mirror, timm's defaults; test
    photographs get the whole transform. `rand_augment`: a policy in timm's notation, null for none.
    `erase_probability`: that a random rectangle is replaced by per-pixel noise. `mixup_alpha`, `cutmix_alpha`: each
    batch gets one of the two; 0 disables it. `num_repeats`: with 3, an epoch shows a third of the images, three times
    each. `drop_path`: the probability that an image skips the last block's branches; it rises linearly from 0 in the
    first block. `ema_decay`: of the weights' moving average, per step; null for none. `scored`: the weights to score.
    """

    transform: Transform
    rand_augment: str | None
    erase_probability: float
    mixup_alpha: float
    cutmix_alpha: float
    num_repeats: int
    drop_path: float
    ema_decay: float | None
    scored: Literal["model", "ema"]

    def _faults(self) -> Iterable[str]:
        if self.rand_augment is not None and not self.rand_augment.startswith("rand-"):
            yield f"rand_augment: expected a policy such as rand-m9-mstd0.5-inc1, or null, got {self.rand_augment!r}"
        for key in ("erase_probability", "drop_path"):
            if not 0 <= getattr(self, key) < 1:
                yield f"{key}: expected a fraction in [0, 1), got {getattr(self, key)}"
        for key in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, key) >= 0:
                yield f"{key}: expected 0 or more, got {getattr(self, key)}"
        if self.num_repeats < 1:
            yield f"num_repeats: expected 1 or more, got {self.num_repeats}"
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            yield f"ema_decay: expected a fraction in (0, 1) or null, got {self.ema_decay}"
        if self.scored == "ema" and self.ema_decay is None:
            yield "scored: the moving average can be scored only where ema_decay says how it is made"
