"""Image files of any format that Pillow reads, as the input of a trained network."""

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from remeasure.data.colours import to_mode
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.system.paths import read_file
from remeasure.training.photographs.decode import MOST_PIXELS, compose, opened, resized_pixels

FAR = 0.5  # of an image's mean pixel from that of the training images, both in [0, 1]


class Pictures:
    """Reads images for the network of `spec`. InputError: it takes neither grey nor colour images."""

    def __init__(self, spec: RunSpec) -> None:
        channels, self.height, self.width = spec.input_shape
        if channels not in (1, 3):
            raise InputError(
                f"predict: expected a network of grey or colour images, its images have {channels} channels"
            )
        self.transform = spec.transform
        self.mode, self.usual = "L" if channels == 1 else "RGB", sum(spec.data.pixel_mean) / len(spec.data.pixel_mean)

    def read(self, path: Path) -> tuple[Tensor, str]:
        """The image (C, H, W) uint8, and a note, such as " (resized from 40x30 to 28x28)", else "".

        A network of photographs gets the transform of its recipe. Any other gets the image in its colours, grey by
        ITU-R 601 or RGB, resized to its size without keeping the aspect ratio (bilinear with antialiasing). As in data
        sets, transparency, EXIF rotation and colour profiles are ignored. Raises InputError: not a readable image.
        """
        try:
            with opened(read_file(path)) as stored:
                image = to_mode(stored, "RGB")
            if self.transform is not None:
                if (num := resized_pixels(image.size, transform=self.transform)) > MOST_PIXELS:
                    raise InputError(f"{path}: too narrow {image.size}; resized it has {num:,} pixels")
                return compose(self.transform)(image), ""
            image = image.convert(self.mode)
            notes = []
            if image.size != (self.width, self.height):
                notes.append(f"resized from {image.width}x{image.height} to {self.width}x{self.height}")
                image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        except InputError:
            raise
        except Exception as error:  # Pillow's decoders raise many types
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise InputError(f"{path}: cannot be read as an image ({reason or type(error).__name__})") from None
        pixels: Tensor = pil_to_tensor(image)
        if abs((mean := pixels.to(torch.float32).mean().item() / 255) - self.usual) > FAR:
            shade = "brighter" if mean > self.usual else "darker"
            notes.append(f"far {shade} than the training images, mean {mean:.2f} against {self.usual:.2f}: inverted?")
        return pixels, f" ({'; '.join(notes)})" if notes else ""
