"""A data set without code: `source: folder/PATH`, where PATH below the data root holds its official splits.

In one of these layouts, of which the first that is there counts:

- IDX files as of MNIST and its successors: train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k or
  test in place of train; gzipped or not
- arrays: train.npz and test.npz with `images` and `labels`, or data.npz with x_train, y_train, x_test and y_test
- lists: train.csv and test.csv with the columns `path`, below the folder, and `label`, a number
- class folders: train/CLASS/IMAGE and test/CLASS/IMAGE; a class is the number of its folder in the order of their names
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from remeasure.data import mnist
from remeasure.data.files import Split
from remeasure.spec.base import DataMissingError, InputError
from remeasure.system.formats import Array
from remeasure.system.paths import read_file

SplitName = Literal["train", "test"]
PREFIX = "folder/"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_STEMS = {"train": ("train",), "test": ("t10k", "test")}
LAYOUTS = (
    "train-images-idx3-ubyte and its three companions (or .gz), train.npz and test.npz, data.npz, train.csv and "
    "test.csv, or train/CLASS/IMAGE and test/CLASS/IMAGE"
)


def place(source: str, *, root: Path) -> Path:
    """The folder of a source. DataMissingError: it is not there; InputError: it is not below the data root."""
    folder = (root / source.removeprefix(PREFIX)).resolve()
    if not folder.is_relative_to(root.resolve()) or folder == root.resolve():
        raise InputError(f"data.source: expected {PREFIX}PATH with a path below the data root {root}, got {source!r}")
    if not folder.is_dir():
        raise DataMissingError(
            f"data: {folder} is missing; put the data set there:",
            f"  {LAYOUTS}",
            f"  (the data root is {root}; the environment variable REMEASURE_DATA can name another one)",
        )
    return folder


def read(folder: Path, split: SplitName, *, image_shape: tuple[int, int, int]) -> Split:
    """The official split: images (N, *image_shape) uint8, labels (N,) int64.

    Pictures are read as grey (1 channel) or RGB (3). Where one has another size, its shorter side is scaled to the one
    of `image_shape` (bicubic) and its centre is cut out; arrays keep theirs. InputError: a file that is wrong.
    """
    if arrays := _arrays(folder, split):
        images, labels = _channels_first(arrays[0], where=folder), _numbers(arrays[1], where=folder)
        return Split(images=images, labels=labels, verified=False)
    files, labels = _pictures(folder, split)
    images = np.empty((len(files), *image_shape), np.uint8)
    for index, file in enumerate(files):
        images[index] = _decoded(file, image_shape=image_shape)
    return Split(images=images, labels=labels, verified=False)


def shape(folder: Path, *, pixels: int | None) -> tuple[int, int, int]:
    """Channels, height and width of the training images; `pixels`: height and width that pictures are to have.

    InputError: pictures of several sizes, and no `pixels`.
    """
    if arrays := _arrays(folder, "train"):
        return tuple(_channels_first(arrays[0], where=folder).shape[1:])
    files, _ = _pictures(folder, "train")
    heads = [_head(file) for file in files]
    channels = 1 if {mode for mode, _ in heads} <= {"1", "L"} else 3
    sizes = sorted({size for _, size in heads})
    if pixels is None and len(sizes) > 1:
        (least, most) = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise InputError(f"{folder}: its pictures have {len(sizes)} sizes, from {least} to {most}; say --pixels 64")
    width, height = (pixels, pixels) if pixels else sizes[0]
    return channels, height, width


def _arrays(folder: Path, split: SplitName) -> tuple[Array, Array] | None:
    """Images and labels as the files have them; None if this folder has no arrays."""
    for stem in _STEMS[split]:
        names = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
        if any((folder / f"{name}{end}").is_file() for name in names for end in ("", ".gz")):
            images, labels = (_idx(folder, name) for name in names)
            return images, labels
    for name, keys in ((f"{split}.npz", ("images", "labels")), ("data.npz", (f"x_{split}", f"y_{split}"))):
        if (folder / name).is_file():
            return _npz(folder / name, keys=keys)
    return None


def _idx(folder: Path, name: str) -> Array:
    packed = folder / f"{name}.gz"
    if packed.is_file():
        return mnist.parse_idx(mnist.unpack(read_file(packed)), name=str(packed))
    if not (folder / name).is_file():
        raise InputError(f"{folder}: {name} is missing, or {name}.gz")
    return mnist.parse_idx(bytearray(read_file(folder / name)), name=str(folder / name))


def _npz(path: Path, *, keys: Sequence[str]) -> tuple[Array, Array]:
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels = (content[key] for key in keys)
            return images, labels
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: expected arrays {' and '.join(keys)} without objects ({error})") from None


def _channels_first(images: Array, *, where: Path) -> Array:
    """(N, C, H, W) uint8 of (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    got = f"{images.shape} {images.dtype}"
    raise InputError(f"{where}: expected images (N, H, W) uint8, or with 1 or 3 channels besides; got {got}")


def _numbers(labels: Array, *, where: Path) -> Array:
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1:] != (1,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: expected labels (N,) of whole numbers, got {labels.shape} {labels.dtype}")
    return flat[:, 0].astype(np.int64)


def _pictures(folder: Path, split: SplitName) -> tuple[list[Path], Array]:
    """The picture files of a split, in a fixed order, and their labels (N,) int64."""
    entries = list(_listed(folder, split) if (folder / f"{split}.csv").is_file() else _in_classes(folder, split))
    return [path for path, _ in entries], np.array([label for _, label in entries], np.int64)


def _listed(folder: Path, split: SplitName) -> Iterator[tuple[Path, int]]:
    path = folder / f"{split}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if not {"path", "label"} <= set(lines.fieldnames or ()):
            raise InputError(f"{path}: expected the columns path and label, got {', '.join(lines.fieldnames or ())}")
        for number, line in enumerate(lines, start=2):
            if not (line["label"] or "").strip().isdecimal():
                raise InputError(f"{path}, line {number}: expected a label such as 3, got {line['label']!r}")
            yield folder / line["path"], int(line["label"])


def _in_classes(folder: Path, split: SplitName) -> Iterator[tuple[Path, int]]:
    names = [sorted(each.name for each in (folder / part).glob("*") if each.is_dir()) for part in ("train", split)]
    if not names[0] or not names[1]:
        raise InputError(f"{folder}: no {split} images; expected {LAYOUTS}")
    if unknown := sorted(set(names[1]) - set(names[0])):
        raise InputError(f"{folder / split}: classes without training images: {', '.join(unknown)}")
    for label, name in enumerate(names[0]):
        for path in sorted((folder / split / name).glob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path, label


def _head(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height)."""
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture that can be read ({error})") from None


def _decoded(path: Path, *, image_shape: tuple[int, int, int]) -> Array:
    """(C, H, W) uint8."""
    channels, height, width = image_shape
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture that can be read ({error})") from None
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1)
