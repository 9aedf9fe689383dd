"""Pictures of any mode as 8-bit grey or RGB."""

import numpy as np
from PIL import Image


def is_grey(image: Image.Image) -> bool:
    """Whether it has one channel of 1, 8 or 16 bits."""
    return image.mode in ("1", "L") or _is_deep(image)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture as L or RGB. 16-bit grey keeps its high byte, as Pillow's own reading of 16-bit colours does.

    ValueError: 32-bit integers or floats (modes I and F), of which nobody says which value is white.
    """
    if _is_deep(image):  # Pillow's convert would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "32-bit floats"
        raise ValueError(f"its pixels are {kind}, mode {image.mode}, of unknown range; save it with 8 or 16 bits")
    return image.convert(mode)


def _is_deep(image: Image.Image) -> bool:
    """16-bit grey: I;16 in either byte order; of a PGM file Pillow makes I, from 0 to 65535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
