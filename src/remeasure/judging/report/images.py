"""Pixels as PNG in a data URI: test images and first-layer filters."""

import base64
import io
import math

import numpy as np

from remeasure.system.formats import Array

MOST_FILTERS = 64


def to_uri(pixels: Array) -> str:
    """`pixels` (H, W) or (H, W, 3) uint8. Stored, not compressed: compressed bytes may depend on zlib and processor."""
    from PIL import Image  # slow to import

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png", compress_level=0)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def test_image(image: Array) -> str:
    """`image` (C, H, W) uint8 with 1 or 3 channels."""
    return to_uri(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))


def filter_sheet(filters: Array, *, image_shape: tuple[int, ...]) -> tuple[str, int, int] | None:
    """The first `MOST_FILTERS` filters as tiles of one picture; with it their number, and the tiles in a line.

    `filters` (num, C, h, w), or (num, C·H·W) of a layer that sees images of `image_shape` (C, H, W). Grey is a weight
    of 0; black and white are minus and plus the filter's largest. None: no filters, or not of 1 or 3 channels.
    """
    if filters.ndim == 2 and filters.shape[1] == math.prod(image_shape):
        filters = filters.reshape(len(filters), *image_shape)
    if filters.ndim != 4 or filters.shape[1] not in (1, 3):
        return None
    shown = filters[:MOST_FILTERS].astype(np.float64)
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    grey = np.round(127.5 + 127.5 * shown / np.where(largest > 0, largest, 1)).astype(np.uint8)
    tiles = np.pad(grey.transpose(0, 2, 3, 1), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    columns = min(len(tiles), 16)
    return to_uri(sheet(tiles, columns=columns)[:-1, :-1]), len(tiles), columns


def sheet(tiles: Array, *, columns: int) -> Array:
    """Tiles (N, h, w, C) uint8 in lines of so many, on white: a picture (H, W, 3), or (H, W) of the first channel."""
    _, height, width, channels = tiles.shape
    whole = np.pad(tiles, ((0, -len(tiles) % columns), (0, 0), (0, 0), (0, 0)), constant_values=255)
    lines = whole.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    pixels = lines.reshape(-1, columns * width, channels)
    return pixels if channels == 3 else pixels[..., 0]
