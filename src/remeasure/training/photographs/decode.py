"""From a photograph's bytes to the pixels of the net's input, in the worker processes of an evaluation.

Decoding, resizing and cropping are timm's (`timm.data.ImageDataset`, `timm.data.create_transform`), whose transforms
are torchvision's. Nothing heavier than torchvision is imported here, since every worker imports this module.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from remeasure.data.listing import Listing
from remeasure.spec.base import InputError
from remeasure.spec.photographs import Transform

MOST_PIXELS = 2**26  # of a resized photograph: 1,024 times as long as wide at 256 pixels, and 200 MB
Decoded = tuple[Tensor, list[str]]  # images (B, C, H, W) uint8; a line for each that could not be decoded


class Photographs(Dataset[Tensor | str]):
    """Item i: photograph i of the listing as (3, H, W) uint8, transformed; or why it could not be decoded."""

    def __init__(self, listing: Listing, *, transform: Transform) -> None:
        self.listing, self.size, self.transform = listing, transform, compose(transform)

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            image = decode(self.listing.read(index))
            if (num_pixels := resized_pixels(image.size, transform=self.size)) > MOST_PIXELS:
                return f"{self.listing.path(index)}: too narrow ({image.size}); resized it has {num_pixels:,} pixels"
            return self.transform(image)
        except InputError as error:
            return str(error)
        except Exception as error:  # Pillow's decoders raise many types
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            return f"{self.listing.path(index)}: cannot be decoded ({reason or type(error).__name__})"


def decode(content: bytes) -> Image.Image:
    """The photograph as RGB, as in timm's data sets: no EXIF rotation, no colour profile, palettes looked up,
    16-bit grey clipped at 255.

    Raises what Pillow raises for a file that is truncated or not an image.
    """
    with opened(content) as image:
        return image.convert("RGB")


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """The image; while it is decoded, Pillow is silent about odd EXIF entries and palettes, which official files have,
    too.
    """
    with warnings.catch_warnings(action="ignore"):
        yield Image.open(io.BytesIO(content))


def shorter_side(transform: Transform) -> int:
    """Pixels to which a photograph's shorter side is resized."""
    return math.floor(transform.crop_pixels / transform.crop_pct)


def resized_pixels(size: tuple[int, int], *, transform: Transform) -> int:
    """Pixels of a photograph of this size after resizing; for a very narrow one, more than the memory holds."""
    return shorter_side(transform) ** 2 * max(size) // min(size)


def compose(transform: Transform) -> Callable[[Image.Image], Tensor]:
    """From an RGB image to (3, crop_pixels, crop_pixels) uint8."""
    composed: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.Resize(
                shorter_side(transform),
                interpolation=transforms.InterpolationMode(transform.interpolation),
            ),
            transforms.CenterCrop(transform.crop_pixels),
            transforms.PILToTensor(),
        ]
    )
    return composed


def collate(items: Sequence[Tensor | str]) -> Decoded:
    """One batch; without images if any could not be decoded."""
    faults = [item for item in items if isinstance(item, str)]
    images = [item for item in items if not isinstance(item, str)]
    return torch.empty(0, dtype=torch.uint8) if faults else torch.stack(images), faults
