"""A data set without code: `source: folder/PATH`, where PATH below the data root holds its official splits.

In one of these layouts, of which the first that is there counts:

- IDX files as of MNIST and its successors: train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k or
  test in place of train; gzipped or not
- arrays: train.npz and test.npz with `images` and `labels`, or data.npz with x_train, y_train, x_test and y_test
- lists: train.csv and test.csv with the columns `path`, below the folder, and `label`, a number or a class's name
- tar shards: train*.tar and test*.tar, not compressed, where each picture has a file of its name that ends in .cls and
  holds its label (webdataset), or lies in a folder named by its class; shards in the order of their names
- a data set of Hugging Face's `datasets`, as its save_to_disk writes it; a test split, or else a validation split
- class folders: train/CLASS/IMAGE and test/CLASS/IMAGE; a class is the number of its folder in the order of their names
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from remeasure.data import colours
from remeasure.data.files import Split, SplitName
from remeasure.data.folder import arrays
from remeasure.data.folder.pictures import Picture, pictures
from remeasure.spec.base import DataMissingError, InputError
from remeasure.system.formats import Array

PREFIX = "folder/"
LAYOUTS = (
    "train-images-idx3-ubyte and its three companions (or .gz), train.npz and test.npz, data.npz, train.csv and "
    "test.csv, train*.tar and test*.tar, what save_to_disk of `datasets` writes, or train/CLASS/IMAGE and "
    "test/CLASS/IMAGE"
)


def place(source: str, *, root: Path) -> Path:
    """The folder of a source, or the link to it. DataMissingError: it is not there; InputError: it is not below the
    data root.
    """
    folder = Path(os.path.normpath(root / source.removeprefix(PREFIX)))
    if not folder.is_relative_to(root) or folder == root:
        raise InputError(
            f"data.source: expected {PREFIX}PATH with a path below the data root {root}, got {source!r}; put the "
            "folder or a link to it there, or name another root: REMEASURE_DATA=…"
        )
    if not folder.is_dir():
        raise DataMissingError(
            f"data: {folder} is missing; put the data set there:",
            f"  {LAYOUTS}",
            f"  (the data root is {root}; the environment variable REMEASURE_DATA can name another one)",
        )
    return folder


def read(folder: Path, split: SplitName, *, image_shape: tuple[int, int, int]) -> Split:
    """The official split: images (N, *image_shape) uint8, labels (N,) int64.

    Pictures are read as 8-bit grey (1 channel) or RGB (3). Where one has another size, its shorter side is scaled to
    the one of `image_shape` (bicubic) and its centre is cut out; arrays keep theirs. InputError: a file that is wrong.
    """
    if found := arrays.read(folder, split):
        return Split(images=found[0], labels=found[1], verified=False)
    listed = _pictures(folder, split)
    images = np.empty((len(listed), *image_shape), np.uint8)
    for index, (picture, _) in enumerate(listed):
        images[index] = _decoded(picture, image_shape=image_shape)
    return Split(images=images, labels=np.array([label for _, label in listed], np.int64), verified=False)


def shape(folder: Path, *, pixels: int | None) -> tuple[int, int, int]:
    """Channels, height and width of the training images; `pixels`: height and width that pictures are to have.

    InputError: pictures of several sizes, and no `pixels`.
    """
    if found := arrays.read(folder, "train"):
        return tuple(found[0].shape[1:])
    heads = [_head(picture) for picture, _ in _pictures(folder, "train")]
    channels = 1 if all(is_grey for is_grey, _ in heads) else 3
    sizes = sorted({size for _, size in heads})
    if pixels is None and len(sizes) > 1:
        (least, most) = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise InputError(f"{folder}: its pictures have {len(sizes)} sizes, from {least} to {most}; say --pixels 64")
    width, height = (pixels, pixels) if pixels else sizes[0]
    return channels, height, width


def class_names(folder: Path) -> tuple[str, ...]:
    """A name for each label, where the layout has names; else ()."""
    return arrays.class_names(folder) if arrays.read(folder, "train") else pictures(folder, "train").classes


def _pictures(folder: Path, split: SplitName) -> list[tuple[Picture, int]]:
    """The split's pictures and their labels, in a fixed order. InputError: there are none."""
    listed = pictures(folder, split).listed
    if not listed:
        raise InputError(f"{folder}: no {split} images, but {_there(folder, split)}; expected {LAYOUTS}")
    return listed


def _there(folder: Path, split: SplitName) -> str:
    """What the folder has in place of pictures of this split."""
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    found = ", ".join(names[:10]) + ", …" * (len(names) > 10) or "nothing"
    if deep := next((path for path in (folder / split).rglob("*") if path.is_file()), None):
        found += f" with {deep.relative_to(folder)}"
    inside = [name for name in names if (folder / name / split).is_dir()]
    return f"{found} (is {folder / inside[0]} the data set? Then name that path)" if inside else found


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """The picture as PIL opens it. InputError: it cannot be read, be it in the block."""
    try:
        with Image.open(picture.open()) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{picture.place}: no picture that can be read ({error})") from None


def _head(picture: Picture) -> tuple[bool, tuple[int, int]]:
    """Whether it is grey, and (width, height)."""
    with _opened(picture) as image:
        return colours.is_grey(image), image.size


def _decoded(picture: Picture, *, image_shape: tuple[int, int, int]) -> Array:
    """(C, H, W) uint8."""
    channels, height, width = image_shape
    with _opened(picture) as opened:
        image = colours.to_mode(opened, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1)
