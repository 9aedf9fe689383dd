"""Order and augmentation of training photographs, as functions of a seed, with timm's transforms."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import Dataset

from remeasure.spec.base import InputError
from remeasure.spec.photographs import Streaming
from remeasure.spec.recipe import Normalisation
from remeasure.training.photographs.decode import decode
from remeasure.training.seeding import derive, seed_everything


@dataclass(frozen=True, kw_only=True, eq=False)
class Photographs(Dataset[tuple[Tensor, int]]):
    """Item (index, draw) is image `index`, augmented by a function of (seed, draw): (3, H, W) float32, and its label.

    files: (N,) bytes, a path each; labels: (N,). Loader processes get a copy: 0.1 GB for ImageNet, a tenth of a list.
    """

    files: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    seed: int
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = item
        path = os.fsdecode(self.files[index])
        try:
            image = decode(Path(path).read_bytes())
        except Exception as error:  # Pillow's decoders raise many types
            raise InputError(f"{path}: cannot be decoded ({error})") from None
        seed_everything(derive(self.seed, purpose="augmentation", step=draw))
        return self.transform(image), int(self.labels[index])


def epoch_order(epoch: int, *, num_images: int, num_repeats: int, seed: int, world_size: int, rank: int) -> list[int]:
    """Indices of the images that device `rank` of `world_size` sees in `epoch`, a function of (seed, epoch).

    Repeated augmentation as in DeiT and timm: each image of a random permutation is repeated `num_repeats` times in a
    row; the devices take items in turn, until together they have `num_images` (rounded up to equal numbers).
    """
    sampler = RepeatAugSampler(
        range(num_images), num_replicas=world_size, rank=rank, num_repeats=num_repeats, selected_round=0
    )
    sampler.set_epoch(derive(seed, purpose="order", step=epoch))  # timm's only seed: `epoch` would ignore ours
    return list(sampler)


def augmentation(streaming: Streaming, *, normalisation: Normalisation) -> Callable[[Image.Image], Tensor]:
    """timm's transform for training: a photograph → (3, crop_pixels, crop_pixels) float32, normalised.

    Colour jitter is off: with RandAugment timm leaves it out whatever `color_jitter` says, as it did for DeiT.
    """
    transform = create_transform(
        streaming.transform.crop_pixels,
        is_training=True,
        color_jitter=None,
        auto_augment=streaming.rand_augment,
        interpolation=streaming.transform.interpolation,
        mean=_per_channel(normalisation.mean),
        std=_per_channel(normalisation.std),
        re_prob=streaming.erase_probability,
        re_mode="pixel",
    )
    for operation in (each for part in transform.transforms for each in getattr(part, "ops", ())):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    composed: Callable[[Image.Image], Tensor] = transform
    return composed


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """At full magnitude RandAugment keeps 0 bits, a black image; Pillow 13 refuses 0 bits."""
    return auto_augment.posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)


def _per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values
