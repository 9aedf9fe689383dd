"""Normalisation, augmentation and resizing of images in memory. No files, no clock."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from remeasure.spec.recipe import Augmentation, Normalisation
from remeasure.training.recipe import reflected


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


def augment(
    images: Tensor,
    *,
    augmentation: Augmentation,
    normalisation: Normalisation,
    generator: torch.Generator | None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Distorted and normalised images: (N, C, H, W) uint8 in 0..255 → float32, as `normalise` makes them.

    Random numbers come from `generator`; None: from the global generator of the images' device, which works in a CUDA
    graph. `mirrored` (N,) bool: which images a crop mirrors left to right, instead of a draw.
    """
    match augmentation.name:
        case "none":
            return normalise(images, normalisation=normalisation)
        case "affine":
            moved = distort(images, augmentation=augmentation, generator=generator)
            return normalise(moved, normalisation=normalisation)
        case "crop":
            return crop_flip_cutout(
                images,
                augmentation=augmentation,
                normalisation=normalisation,
                generator=generator,
                mirrored=mirrored,
            )


def crop_flip_cutout(
    images: Tensor,
    *,
    augmentation: Augmentation,
    normalisation: Normalisation,
    generator: torch.Generator | None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Random crop of the padded image, mirror and cutout: (N, C, H, W) uint8 → normalised float32.

    Cut-out pixels are 0 after normalisation, the mean pixel. Crop, mirror and square are drawn for each image; the
    square's centre is a pixel of the image, so that part of the square may lie outside (DeVries and Taylor 2017).
    """
    num, _, height, width = images.shape
    pad, size = augmentation.pad_pixels or 0, augmentation.cutout_pixels or 0
    source = _source(generator, images.device)
    shift_y, shift_x = torch.randint(0, 2 * pad + 1, (2, num, 1), **source).to(images.device)
    if mirrored is None:
        mirrored = torch.rand(num, **source).to(images.device) < (augmentation.flip_probability or 0.0)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    from_rows = rows + shift_y  # (N, H), in the padded image
    from_columns = torch.where(mirrored.view(-1, 1), width - 1 - columns, columns) + shift_x  # (N, W)
    if augmentation.padding == "reflect":
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


def resized(images: Tensor, *, pixels: int | None) -> Tensor:
    """(N, C, H, W) float32 → (N, C, pixels, pixels), bilinear with antialiasing; None leaves them as they are."""
    if pixels is None or images.shape[-2:] == (pixels, pixels):
        return images
    return functional.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)


def distort(images: Tensor, *, augmentation: Augmentation, generator: torch.Generator | None) -> Tensor:
    """Images under random affine maps; pixels from outside the image are 0, the background before normalisation.

    images: (N, C, H, W) uint8 or float32 in 0..255. Returns float32 in the same range.
    """
    source = _source(generator, images.device)
    maps = affine_maps(len(images), augmentation=augmentation, size=images.shape[-1], **source)
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_maps(
    num: int,
    *,
    augmentation: Augmentation,
    size: int,
    generator: torch.Generator | None,
    device: torch.device | None = None,
) -> Tensor:
    """Random planar affine maps (num, 2, 3) float32, from output to input coordinates in [-1, 1] (torch's affine_grid).

    Translation, scaling, squeezing, horizontal shear: LeCun et al. 1998, section III-C.
    """
    drawn = 2 * torch.rand(5, num, generator=generator, device=device) - 1
    scaling, squeezing, shear, shift_x, shift_y = drawn
    kept = torch.rand(num, generator=generator, device=device) >= (augmentation.probability or 0.0)
    pixels = 2 * (augmentation.translation_pixels or 0.0) / size
    common, ratio = scaling * (augmentation.scaling or 0.0), squeezing * (augmentation.squeezing or 0.0)
    stretch_x, stretch_y = torch.exp(common + ratio), torch.exp(common - ratio)
    rows = [stretch_x, shear * (augmentation.shear or 0.0), shift_x * pixels]
    rows += [torch.zeros_like(scaling), stretch_y, shift_y * pixels]
    maps = torch.stack(rows, dim=1).view(num, 2, 3)
    return torch.where(kept.view(-1, 1, 1), torch.eye(2, 3, device=maps.device), maps)


def _source(generator: torch.Generator | None, device: torch.device) -> dict[str, Any]:
    """`generator` and `device` arguments of torch's random functions: a generator draws on its own device."""
    return {"generator": generator, "device": generator.device if generator else device}
