"""MNIST from the four files of LeCun, Cortes and Burges (IDX format), gzipped or unpacked, under MNIST/raw."""

import gzip
from pathlib import Path
from typing import Literal

import numpy as np

from remeasure.data.files import DataMissingError, Split, download, verified_bytes
from remeasure.spec import InputError

# The mirrors that torchvision.datasets.MNIST uses, in its order; a test compares.
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
PREFIX = {"train": "train", "test": "t10k"}


def read(split: Literal["train", "test"], root: Path, files_md5: dict[str, str], fetch: bool) -> Split:
    """The official split: images (N, 1, 28, 28) uint8, labels (N,) int64."""
    directory = root / "MNIST" / "raw"
    images = _read_idx(directory, f"{PREFIX[split]}-images-idx3-ubyte", files_md5, fetch=fetch)
    labels = _read_idx(directory, f"{PREFIX[split]}-labels-idx1-ubyte", files_md5, fetch=fetch)
    return Split(images=images[:, None], labels=labels.astype(np.int64))


def _read_idx(directory: Path, stem: str, files_md5: dict[str, str], *, fetch: bool) -> np.ndarray:
    """One IDX file as an array of uint8; the .gz first, then the unpacked file, then a download of the .gz."""
    packed, unpacked = directory / f"{stem}.gz", directory / stem
    if not packed.exists() and unpacked.exists():
        return parse_idx(verified_bytes(unpacked, md5=files_md5[stem]), name=str(unpacked))
    if not packed.exists() and not fetch:
        raise DataMissingError(f"{packed}: missing")
    if not packed.exists():
        download(packed.name, mirrors=MIRRORS, md5=files_md5[packed.name], directory=directory)
    return parse_idx(gzip.decompress(verified_bytes(packed, md5=files_md5[packed.name])), name=str(packed))


def parse_idx(content: bytes, *, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0, 0, 8, rank; then rank sizes, big-endian int32; then the data."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{name}: not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
