"""CIFAR-10 (Krizhevsky 2009) from the first of these under the data root: the official pickles (cifar-10-batches-py),
the archive of the pickles, the official binary files (cifar-10-batches-bin), the archive of the binary files.

Pickles and archives are checked against the MD5 that torchvision knows; the binary files have no published checksum,
so that only their fingerprint shows whether they are official. Nothing is unpacked to disk.
"""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from remeasure.data.files import Split, SplitName, download, missing, official_bytes, verified_bytes, verified_members
from remeasure.spec.base import InputError

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)  # torchvision.datasets.CIFAR10 uses this one; a test compares
PICKLES, PICKLES_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BINARIES, BINARIES_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
NAMES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
ALL = (*NAMES["train"], *NAMES["test"])
RECORD = 1 + 3 * 32 * 32  # a label byte, then 3x32x32 pixels, channel first
PER_FILE = 10_000
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Part = tuple[np.ndarray, np.ndarray]  # images (10000, 3, 32, 32) uint8, labels (10000,) int64


def read(split: SplitName, root: Path, files_md5: dict[str, str], fetch: bool) -> Split:
    """The official split: images (N, 3, 32, 32) uint8, labels (N,) int64."""
    if unlisted := [name for name in (*ALL, PICKLES_ARCHIVE, BINARIES_ARCHIVE) if name not in files_md5]:
        raise InputError(f"data.files_md5: lacks {', '.join(unlisted)}")
    layouts = (PICKLES, PICKLES_ARCHIVE, BINARIES, BINARIES_ARCHIVE)
    # Path.exists() raises where the folder may not be read
    layout = next((name for name in layouts if os.access(root / name, os.F_OK)), "")
    if not layout:
        layout, md5 = PICKLES_ARCHIVE, files_md5[PICKLES_ARCHIVE]
        if reasons := download(layout, mirrors=MIRRORS, md5=md5, directory=root, fetch=fetch):
            wanted = {root / layout: md5}
            others = f"or put there {PICKLES}/, {BINARIES}/ or {BINARIES_ARCHIVE}"
            raise missing(wanted, root=root, reasons=[*reasons, others])
    contents = _contents(root / layout, names=NAMES[split], files_md5=files_md5)
    parse = _unpickle if layout in (PICKLES, PICKLES_ARCHIVE) else _parse
    images, labels = zip(*(parse(content, name=name) for name, content in contents.items()), strict=True)
    return Split(images=np.concatenate(images), labels=np.concatenate(labels), verified=layout != BINARIES)


def _contents(place: Path, *, names: tuple[str, ...], files_md5: Mapping[str, str]) -> dict[str, bytes]:
    """Location to bytes of the named batches, in the folder or the archive `place`."""
    if place.name == PICKLES:
        return {str(place / name): verified_bytes(place / name, md5=files_md5[name]) for name in names}
    if place.name == BINARIES:
        return {str(place / f"{name}.bin"): official_bytes(place / f"{name}.bin") for name in names}
    pickles = place.name == PICKLES_ARCHIVE
    members = [f"{PICKLES}/{name}" if pickles else f"{BINARIES}/{name}.bin" for name in names]
    found = verified_members(place, members, md5=files_md5[place.name])
    return {f"{place}, {member}": content for member, content in found.items()}


def _parse(content: bytes, *, name: str) -> Part:
    """One official binary file."""
    if len(content) != PER_FILE * RECORD:
        raise InputError(f"{name}: expected {PER_FILE * RECORD:,} bytes, got {len(content):,}; it is damaged")
    records = np.frombuffer(content, np.uint8).reshape(PER_FILE, RECORD)
    return _part(records[:, 1:], records[:, 0], name=name)


def _unpickle(content: bytes, *, name: str) -> Part:
    """One official pickle: a dict with b"data" (10000, 3072) uint8 and b"labels", a list."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return _part(np.asarray(batch[b"data"]), np.asarray(batch[b"labels"]), name=name)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise any type
        raise InputError(f"{name}: not a batch of CIFAR-10 ({error})") from None


def _part(pixels: np.ndarray, labels: np.ndarray, *, name: str) -> Part:
    if pixels.shape != (PER_FILE, RECORD - 1) or pixels.dtype != np.uint8:
        raise InputError(f"{name}: expected {PER_FILE:,} images of 3x32x32 bytes, got {pixels.dtype} {pixels.shape}")
    if labels.shape != (PER_FILE,) or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: expected {PER_FILE:,} integer labels, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() > 9:
        raise InputError(f"{name}: expected labels 0 to 9, got {labels.min()} to {labels.max()}")
    return pixels.reshape(PER_FILE, 3, 32, 32), labels.astype(np.int64)


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_NEEDED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and refuses every other class or function."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if found := _NEEDED.get((module_name, global_name)):
            return found
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no batch of CIFAR-10 needs")
