"""MNIST from the four files of LeCun, Cortes and Burges (IDX format), gzipped or unpacked, under MNIST/raw."""

import gzip
import os
from pathlib import Path
from typing import Literal

import numpy as np

from remeasure.data.files import Split, download, missing, verified_bytes
from remeasure.spec import InputError

# The mirrors that torchvision.datasets.MNIST uses, in its order; a test compares.
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read(split: Literal["train", "test"], root: Path, files_md5: dict[str, str], fetch: bool) -> Split:
    """The official split: images (N, 1, 28, 28) uint8, labels (N,) int64."""
    images, labels = (_read_idx(stem, root=root, files_md5=files_md5, fetch=fetch) for stem in STEMS[split])
    return Split(images=images[:, None], labels=labels.astype(np.int64))


def _read_idx(stem: str, *, root: Path, files_md5: dict[str, str], fetch: bool) -> np.ndarray:
    """One IDX file as an array of uint8; the .gz first, then the unpacked file, then a download of the .gz."""
    directory = root / "MNIST" / "raw"
    path = _find(directory, stem)
    if path is None:
        path = directory / f"{stem}.gz"
        md5 = files_md5[path.name]
        reasons = download(path.name, mirrors=MIRRORS, md5=md5, directory=directory) if fetch else []
        if reasons or not fetch:
            wanted = [f"{other}.gz" for stems in STEMS.values() for other in stems if not _find(directory, other)]
            raise missing({directory / name: files_md5[name] for name in wanted}, root=root, reasons=reasons)
    content = verified_bytes(path, md5=files_md5[path.name])
    return parse_idx(gzip.decompress(content) if path.suffix == ".gz" else content, name=str(path))


def _find(directory: Path, stem: str) -> Path | None:
    for path in (directory / f"{stem}.gz", directory / stem):
        if os.access(path, os.F_OK):  # Path.exists() raises where the folder cannot be read
            return path
    return None


def parse_idx(content: bytes, *, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0, 0, 8, rank; then rank sizes, big-endian int32; then the data."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{name}: not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
