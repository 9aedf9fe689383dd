"""Parts of recipes for photographs that are read from their files on demand: the transform, and the training."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from remeasure.spec.base import Count, NotNegative, Strict, Within

Probability = Annotated[float, Within("a fraction in [0, 1)", lambda value: 0 <= value < 1)]


@dataclass(frozen=True, kw_only=True)
class Transform(Strict):
    """From a photograph to the net's input: resize the shorter side to crop_pixels / crop_pct (rounded down), then keep
    the central crop_pixels x crop_pixels. Names and arithmetic are timm's (`timm.data.create_transform`).
    """

    crop_pixels: Count
    crop_pct: Annotated[float, Within("a fraction in (0, 1]", lambda value: 0 < value <= 1)]
    interpolation: Literal["bicubic", "bilinear"]


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
    erase_probability: Probability
    mixup_alpha: NotNegative
    cutmix_alpha: NotNegative
    num_repeats: Count
    drop_path: Probability
    ema_decay: Annotated[float | None, Within("a fraction in (0, 1) or null", lambda value: 0 < value < 1)]
    scored: Literal["model", "ema"]

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def _faults(self) -> Iterable[str]:
        if self.rand_augment is not None and not self.rand_augment.startswith("rand-"):
            yield f"rand_augment: expected a policy such as rand-m9-mstd0.5-inc1, or null, got {self.rand_augment!r}"
        if self.scored == "ema" and self.ema_decay is None:
            yield "scored: the moving average can be scored only where ema_decay says how it is made"
