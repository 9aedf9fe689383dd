"""Layouts of arrays: IDX files and npz files."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from remeasure.data import mnist
from remeasure.spec.base import InputError
from remeasure.system.formats import Array
from remeasure.system.paths import read_file

_STEMS = {"train": ("train",), "test": ("t10k", "test")}


def read(folder: Path, split: str) -> tuple[Array, Array] | None:
    """Images (N, C, H, W) uint8 and labels (N,) int64; None if the folder has no arrays. Raises InputError."""
    found = _stored(folder, split)
    if not found:
        return None
    images, labels = found
    if not len(images) or len(images) != len(labels):
        raise InputError(f"{folder}: expected a label for each {split} image, got {len(images)} and {len(labels)}")
    if labels.dtype.kind == "U":
        labels = _numbered(labels, names=class_names(folder), where=folder)
    return _channels_first(images, where=folder), _numbers(labels, where=folder)


def class_names(folder: Path) -> tuple[str, ...]:
    """The names among the training labels, in their order, if these are text; else ()."""
    found = _stored(folder, "train")
    return tuple(np.unique(found[1]).tolist()) if found and found[1].dtype.kind == "U" else ()


def _stored(folder: Path, split: str) -> tuple[Array, Array] | None:
    """As the files have them."""
    for stem in _STEMS[split]:
        names = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
        if any((path := mnist.find(folder, name)) and path.is_file() for name in names):
            images, labels = (_idx(folder, name) for name in names)
            return images, labels
    for name, keys in ((f"{split}.npz", ("images", "labels")), ("data.npz", (f"x_{split}", f"y_{split}"))):
        if (folder / name).is_file():
            return _npz(folder / name, keys=keys)
    return None


def _idx(folder: Path, name: str) -> Array:
    if (path := mnist.find(folder, name)) is None:
        raise InputError(f"{folder}: {name} is missing, or {name}.gz")
    return mnist.parse(read_file(path), path=path)


def _npz(path: Path, *, keys: Sequence[str]) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if not set(keys) <= set(content.files):
                raise InputError(f"{path}: expected arrays {' and '.join(keys)}, got {', '.join(content.files)}")
            images, labels = (content[key] for key in keys)
            return images, labels
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})") from None
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected arrays {' and '.join(keys)} without objects ({error})") from None


def _channels_first(images: Array, *, where: Path) -> Array:
    """(N, C, H, W) uint8 of (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    got = f"{images.shape} {images.dtype}{_remedy(images)}"
    raise InputError(f"{where}: expected images (N, H, W) uint8, or with 1 or 3 channels besides; got {got}")


def _remedy(images: Array) -> str:
    """How to make bytes of pixels that are other numbers."""
    if images.dtype == np.uint8 or not np.issubdtype(images.dtype, np.number):
        return ""
    low, high = images.min(), images.max()
    if not np.isfinite(high - low):
        return ", some of them NaN or infinite"
    scaled = "255 * images" if high <= 1 else "images" if high <= 255 else "images scaled to 0..255"
    return f" from {low:.6g} to {high:.6g}; store ({scaled}).round().astype(np.uint8)"


def _numbered(labels: Array, *, names: Sequence[str], where: Path) -> Array:
    """Text as the number of its class. InputError: a class without training images."""
    if unknown := sorted(set(labels.tolist()) - set(names)):
        raise InputError(f"{where}: classes without training images: {', '.join(map(str, unknown))}")
    return np.searchsorted(names, labels)


def _numbers(labels: Array, *, where: Path) -> Array:
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1:] != (1,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: expected labels (N,) of whole numbers, got {labels.shape} {labels.dtype}")
    return flat[:, 0].astype(np.int64)
