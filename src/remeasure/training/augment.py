"""The augmentations, and the normalisation and resizing of images in memory. No files, no clock.

An augmentation is a class with its arguments as fields. A new one is a class here; nothing else names it.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from remeasure.spec.base import CountOrZero, NotNegative, Within
from remeasure.spec.recipe import Augmentation, Normalisation
from remeasure.training import seeding

Fraction = Annotated[float, Within("a fraction in [0, 1]", lambda value: 0 <= value <= 1)]
Pixels = CountOrZero
IN_MEMORY = ("serial", "batched", "numpy")  # the engines that get a batch as `augment` makes it


def normalise(images: Tensor, *, normalisation: Normalisation) -> Tensor:
    """(N, C, H, W) uint8 in 0..255 → float32 (x/255 - mean) / std."""
    mean, scale = _mean_and_scale(normalisation, images.device)
    return images.to(torch.float32, copy=True).sub_(mean).mul_(scale)


@functools.cache
def _mean_and_scale(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """255·mean and 1 / (255·std), each (1, C, 1, 1), cached, so that no step waits for a copy to the GPU."""
    with torch.inference_mode(mode=False):  # the first caller may be in it, and autograd refuses its tensors
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (normalisation.mean, normalisation.std)
        )
        return 255 * mean, 1 / (255 * std)


def resized(images: Tensor, *, pixels: int | None) -> Tensor:
    """(N, C, H, W) float32 → (N, C, pixels, pixels), bilinear with antialiasing; None leaves them as they are."""
    if pixels is None or images.shape[-2:] == (pixels, pixels):
        return images
    return functional.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True, kw_only=True)
class NoAugmentation(Augmentation):
    """The images as they are."""

    name: Literal["none"] = "none"
    engines = (*IN_MEMORY, "photographs")

    def apply(self, images: Tensor, *, normalisation: Normalisation, **_: Any) -> Tensor:
        return normalise(images, normalisation=normalisation)


@dataclass(frozen=True, kw_only=True)
class Affine(Augmentation):
    """Random planar affine maps of the training images (LeCun et al. 1998, section III-C).

    `probability`: the share of images that are distorted. Every other argument is the bound of a uniform u in ±:
    `translation_pixels` on each axis; `scaling`, both axes by exp(u); `squeezing`, the axes by exp(u) and exp(-u);
    `shear`, horizontal, pixels a row.
    """

    name: Literal["affine"] = "affine"
    probability: Fraction
    translation_pixels: NotNegative
    scaling: NotNegative
    squeezing: NotNegative
    shear: NotNegative
    engines = IN_MEMORY

    def apply(
        self, images: Tensor, *, normalisation: Normalisation, generator: torch.Generator | None, **_: Any
    ) -> Tensor:
        return normalise(self.distort(images, generator=generator), normalisation=normalisation)

    def distort(self, images: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Images under random affine maps; pixels from outside the image are 0, the background before normalisation.

        images: (N, C, H, W) uint8 or float32 in 0..255. Returns float32 in the same range.
        """
        source = _source(generator, images.device)
        maps = self.maps(len(images), size=images.shape[-1], **source)
        grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
        return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def maps(
        self, num: int, *, size: int, generator: torch.Generator | None, device: torch.device | None = None
    ) -> Tensor:
        """Random maps (num, 2, 3) float32, from output to input coordinates in [-1, 1] (torch's affine_grid)."""
        drawn = 2 * torch.rand(5, num, generator=generator, device=device) - 1
        scaling, squeezing, shear, shift_x, shift_y = drawn
        kept = torch.rand(num, generator=generator, device=device) >= self.probability
        pixels = 2 * self.translation_pixels / size
        common, ratio = scaling * self.scaling, squeezing * self.squeezing
        stretch_x, stretch_y = torch.exp(common + ratio), torch.exp(common - ratio)
        rows = [stretch_x, shear * self.shear, shift_x * pixels]
        rows += [torch.zeros_like(scaling), stretch_y, shift_y * pixels]
        maps = torch.stack(rows, dim=1).view(num, 2, 3)
        return torch.where(kept.view(-1, 1, 1), torch.eye(2, 3, device=maps.device), maps)


@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """A random crop of the image's own size after `pad_pixels` of black on each side (He et al. 2016, section 4.2); a
    left-right mirror with `flip_probability`; then a square of `cutout_pixels` (0: none), clipped at the image's
    border, is set to the mean pixel. Its centre is a pixel of the image (DeVries and Taylor 2017).

    `padding`: `reflect` mirrors the image at its border in place of black. `flips`: `alternating` draws once which
    images are mirrored, and then mirrors each one in every second epoch (Jordan 2024, "94% on CIFAR-10 in 3.29
    seconds", section 3.6).
    """

    name: Literal["crop"] = "crop"
    pad_pixels: Pixels
    flip_probability: Fraction
    cutout_pixels: Pixels
    padding: Literal["reflect"] | None = None
    flips: Literal["alternating"] | None = None
    engines = IN_MEMORY

    def mirrored_first(self, num: int, *, seed: int) -> Tensor | None:
        if not self.flips:
            return None
        generator = torch.Generator().manual_seed(seeding.derive(seed, purpose="flips", step=0))
        return torch.rand(num, generator=generator) < self.flip_probability

    def unsupported(self, engine: str) -> Iterable[str]:
        yield from super().unsupported(engine)
        if engine == "batched" and self.flips:
            yield "draws all its seeds' flips anew (augmentation.flips: null)"

    def apply(
        self,
        images: Tensor,
        *,
        normalisation: Normalisation,
        generator: torch.Generator | None,
        mirrored: Tensor | None = None,
    ) -> Tensor:
        """Cut-out pixels are 0 after normalisation, the mean pixel. Crop, mirror and square are drawn for each image;
        `mirrored` (N,) bool takes the place of the second draw.
        """
        num, _, height, width = images.shape
        pad, size = self.pad_pixels, self.cutout_pixels
        source = _source(generator, images.device)
        shift_y, shift_x = torch.randint(0, 2 * pad + 1, (2, num, 1), **source).to(images.device)
        if mirrored is None:
            mirrored = torch.rand(num, **source).to(images.device) < self.flip_probability
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        from_rows = rows + shift_y  # (N, H), in the padded image
        from_columns = torch.where(mirrored.view(-1, 1), width - 1 - columns, columns) + shift_x  # (N, W)
        if self.padding == "reflect":
            framed = images.permute(0, 2, 3, 1)
            from_rows, from_columns = reflected(from_rows - pad, size=height), reflected(from_columns - pad, size=width)
        else:
            framed = functional.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)  # (N, H + 2 pad, W + 2 pad, C)
        index = torch.arange(num, device=images.device).view(-1, 1, 1)
        cropped = framed[index, from_rows.unsqueeze(2), from_columns.unsqueeze(1)].permute(0, 3, 1, 2)
        batch = normalise(cropped, normalisation=normalisation)
        if size:
            centre = torch.stack([torch.randint(0, side, (num, 1), **source) for side in (height, width)])
            top, left = (centre - size // 2).to(images.device)
            cut_rows = (rows >= top) & (rows < top + size)  # (N, H)
            cut_columns = (columns >= left) & (columns < left + size)
            batch.masked_fill_((cut_rows.unsqueeze(2) & cut_columns.unsqueeze(1)).unsqueeze(1), 0.0)
        return batch


def reflected(positions: Tensor, *, size: int) -> Tensor:
    """Positions up to `size` - 1 beyond either end of 0 … size - 1, mirrored back at the first and last pixel."""
    return size - 1 - (size - 1 - positions.abs()).abs()


def _source(generator: torch.Generator | None, device: torch.device) -> dict[str, Any]:
    """`generator` and `device` arguments of torch's random functions: a generator draws on its own device."""
    return {"generator": generator, "device": generator.device if generator else device}
