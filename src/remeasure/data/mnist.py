"""MNIST from the four files of LeCun, Cortes and Burges (IDX format), gzipped or unpacked, under MNIST/raw."""

import os
import zlib
from pathlib import Path

import numpy as np

from remeasure.data.files import Split, SplitName, download, missing, verified_bytes
from remeasure.spec.base import InputError

# The mirrors that torchvision.datasets.MNIST uses, in its order; a test compares.
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
ALL = (*STEMS["train"], *STEMS["test"])
PIECE = 2**16  # bytes


def read(split: SplitName, root: Path, files_md5: dict[str, str], fetch: bool) -> Split:
    """The official split: images (N, 1, 28, 28) uint8, labels (N,) int64."""
    if unlisted := [name for stem in ALL for name in (f"{stem}.gz", stem) if name not in files_md5]:
        raise InputError(f"data.files_md5: lacks {', '.join(unlisted)}")
    directory = root / "MNIST" / "raw"
    arrays = []
    for stem in STEMS[split]:
        path = find(directory, stem) or _fetch(stem, root=root, files_md5=files_md5, fetch=fetch)
        arrays.append(parse(verified_bytes(path, md5=files_md5[path.name]), path=path))
    images, labels = arrays
    return Split(images=images[:, None], labels=labels.astype(np.int64), verified=True)


def find(directory: Path, stem: str) -> Path | None:
    """The .gz, else the unpacked file, else None."""
    choices = (directory / f"{stem}.gz", directory / stem)
    return next((path for path in choices if os.access(path, os.F_OK)), None)  # Path.exists() can raise


def _fetch(stem: str, *, root: Path, files_md5: dict[str, str], fetch: bool) -> Path:
    """The .gz, downloaded. Raises DataMissingError, which names all files of MNIST that are still missing."""
    directory = root / "MNIST" / "raw"
    packed = directory / f"{stem}.gz"
    md5 = files_md5[packed.name]
    if reasons := download(packed.name, mirrors=MIRRORS, md5=md5, directory=directory, fetch=fetch):
        packs = (directory / f"{each}.gz" for each in ALL if not find(directory, each))
        wanted = {path: files_md5[path.name] for path in packs}
        raise missing(wanted, root=root, reasons=reasons)
    return packed


def parse(content: bytes, *, path: Path) -> np.ndarray:
    """The array in an IDX file of this content, gzipped if its name ends in .gz; writable, as torch wants it."""
    try:
        unpacked = unpack(content) if path.suffix == ".gz" else bytearray(content)
    except zlib.error as error:
        raise InputError(f"{path}: not a gzip file, or damaged ({error})") from None
    return parse_idx(unpacked, name=str(path))


def unpack(content: bytes) -> bytearray:
    """Decompress a gzip file of one member piece by piece: gzip.decompress holds the content in memory twice."""
    unpacker, whole = zlib.decompressobj(wbits=31), bytearray()
    for start in range(0, len(content), PIECE):
        whole += unpacker.decompress(content[start : start + PIECE])
    return whole


def parse_idx(content: bytes | bytearray, *, name: str) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0, 0, 8, rank; then rank sizes, big-endian int32; then the data."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{name}: not an IDX file of unsigned bytes")
    rank = content[3]
    sizes = np.frombuffer(content[4 : 4 + 4 * rank], ">i4")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes))
    if len(sizes) != rank or len(values) != sizes.prod():
        raise InputError(f"{name}: another length than its header says")
    return values.reshape(sizes)
