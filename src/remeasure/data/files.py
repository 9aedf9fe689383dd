"""Files of a data set: found, verified against a checksum, or downloaded whole."""

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remeasure.spec import InputError

DOWNLOAD_TIMEOUT_SECONDS = 20.0


class DataMissingError(InputError):
    """A data set can be neither found nor downloaded here; the faults say which files it wants and where they go."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` (N, C, H, W) uint8 in 0..255, `labels` (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


def verified_bytes(path: Path, *, md5: str) -> bytes:
    """The file's bytes. Raises InputError where their MD5 is not the official one."""
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path}: not the official file: expected MD5 {md5}, got {found} ({len(content):,} bytes). "
            "It is truncated, damaged or another file; delete it to have it downloaded, or put the official one there"
        )
    return content


def download(filename: str, *, mirrors: Sequence[str], md5: str, directory: Path) -> Path:
    """Fetch the file whole, with a progress bar, and move it into place once its MD5 is right.

    Raises DataMissingError when no mirror delivers it.
    """
    from torchvision.datasets.utils import download_url  # 4 s to import: only where something is missing

    directory.mkdir(parents=True, exist_ok=True)
    reasons = []
    for mirror in mirrors:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory) as partial, _timeout():
            try:
                download_url(f"{mirror}{filename}", partial, filename=filename, md5=md5)
            except (OSError, RuntimeError) as error:
                reasons.append(f"{mirror}{filename}: {error}")
                continue
            os.replace(Path(partial) / filename, directory / filename)
            return directory / filename
    raise DataMissingError(f"{directory / filename}: missing, and the download failed ({'; '.join(reasons)})")


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """A silent network ends a download instead of hanging it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
