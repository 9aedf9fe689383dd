"""Files of a data set: found, verified against a checksum, or downloaded whole."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remeasure.spec.base import DataMissingError, InputError
from remeasure.system.paths import read_file

DOWNLOAD_TIMEOUT_SECONDS = 20.0
PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` (N, C, H, W) uint8 in 0..255, `labels` (N,) int64.

    `verified`: the files they come from have the checksums that torchvision knows for the official ones.
    """

    images: np.ndarray
    labels: np.ndarray
    verified: bool


def verified_bytes(path: Path, *, md5: str) -> bytes:
    """The file's bytes. Raises InputError where it cannot be read or its MD5 is not the official one."""
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); put the official file there") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path}: not the official file: expected MD5 {md5}, got {found} ({len(content):,} bytes). "
            "It is truncated, damaged or another file; delete it to have it downloaded, or put the official one there"
        )
    return content


def missing(wanted: Mapping[Path, str], *, root: Path, reasons: Sequence[str]) -> DataMissingError:
    """The error that names every wanted file (path to MD5), where it goes, and why it could not be had."""
    return DataMissingError(
        "data: these files are missing; put the files there or connect to the network, and start again:",
        *(f"  {path} (MD5 {md5})" for path, md5 in wanted.items()),
        f"  (the data root is {root}; the environment variable REMEASURE_DATA can name another one)",
        *(f"  {reason}" for reason in reasons),
    )


def download(filename: str, *, mirrors: Sequence[str], md5: str, directory: Path) -> list[str]:
    """Fetch the file whole, with a progress bar, and move it into place once its MD5 is right.

    Returns why it is still missing, a line for each mirror; nothing once it is there.
    """
    from torchvision.datasets.utils import download_url  # 4 s to import: only where something is missing

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone_in(directory), tempfile.TemporaryDirectory(prefix=PARTIAL, dir=directory) as partial, _timeout():
            if (directory / filename).exists():  # another process was faster; whoever reads it verifies it
                return []
            reasons = []
            for url in (f"{mirror}{filename}" for mirror in mirrors):
                print(f"downloading {url} into {directory}", file=sys.stderr)
                try:
                    download_url(url, partial, filename=filename, md5=md5)
                except (OSError, RuntimeError, http.client.HTTPException) as error:
                    reasons.append(f"download of {url} failed: {error}")
                    continue
                os.replace(Path(partial) / filename, directory / filename)
                return []
    except OSError as error:
        return [f"cannot write into {directory} ({error.strerror})"]
    return reasons


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """One process at a time downloads into a folder; what a killed one left there is removed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """A silent network ends a download instead of hanging it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
