"""Files of a data set: found, verified against a checksum, or downloaded whole."""

import contextlib
import hashlib
import http.client
import io
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from remeasure.spec.base import DataMissingError, InputError
from remeasure.system import locks
from remeasure.system.paths import read_file

DOWNLOAD_TIMEOUT_SECONDS = 20.0
PARTIAL = ".partial-"
SplitName = Literal["train", "test"]
MOST_SHARED = 0.01  # of the test images may equal training images, byte for byte; official sets share a few


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` (N, C, H, W) uint8 in 0..255, `labels` (N,) int64.

    `verified`: their files have the checksums that torchvision knows for the official ones.
    """

    images: np.ndarray
    labels: np.ndarray
    verified: bool


def shared_images(trained: np.ndarray, scored: np.ndarray) -> dict[int, int]:
    """The scored images (M, C, H, W) uint8 that are among the trained (N, C, H, W), byte for byte, each with its number
    there: a net that has learned one by heart scores it, whatever it has understood.
    """
    known = {image.tobytes(): index for index, image in enumerate(trained)}
    found = ((index, known.get(image.tobytes())) for index, image in enumerate(scored))
    return {index: trained for index, trained in found if trained is not None}


def leak(shared: int, *, num_scored: int, split: str, name: str) -> str:
    """The fault of a data set with so many shared images; "" up to `MOST_SHARED`."""
    if shared <= MOST_SHARED * num_scored:
        return ""
    return (
        f"data {name}: leak: {shared:,} of the {num_scored:,} {split} images are among the training images, byte for "
        "byte, so that a score on them is no measurement; take them out of the training images, and start again"
    )


def official_bytes(path: Path) -> bytes:
    """The bytes of a file that has no checksum. Raises InputError if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); put the official file there") from None


def verified_bytes(path: Path, *, md5: str) -> bytes:
    """The file's bytes. Raises InputError if it cannot be read or its MD5 is not the official one."""
    content = official_bytes(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path}: not the official file: expected MD5 {md5}, got {found} ({len(content):,} bytes). "
            "It is truncated, damaged or another file; delete it to have it downloaded, or put the official one there"
        )
    return content


def verified_members(path: Path, names: Sequence[str], *, md5: str) -> dict[str, bytes]:
    """The bytes of these members of a .tar.gz, by their names, in this order.

    Raises InputError if the archive cannot be read, its MD5 is not the official one, or it lacks one.
    """
    found, content = {}, verified_bytes(path, md5=md5)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if name in names and entry.isfile() and (handle := archive.extractfile(entry)):
                    found[name] = handle.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole .tar.gz ({error})") from None
    if lacking := [name for name in names if name not in found]:
        raise InputError(f"{path}: lacks {', '.join(lacking)}")
    return {name: found[name] for name in names}


def missing(wanted: Mapping[Path, str], *, root: Path, reasons: Sequence[str]) -> DataMissingError:
    """The error that names every missing file (path to MD5), where to put it, and why it could not be downloaded."""
    return DataMissingError(
        "data: these files are missing; put the files there or connect to the network, and start again:",
        *(f"  {path} (MD5 {md5})" for path, md5 in wanted.items()),
        f"  (the data root is {root}; the environment variable REMEASURE_DATA can name another one)",
        *(f"  {reason}" for reason in reasons),
    )


def download(filename: str, *, mirrors: Sequence[str], md5: str, directory: Path, fetch: bool) -> list[str]:
    """Download the file with a progress bar, verify its MD5, and rename it into place; not if `fetch` is false.

    Returns why the file is still missing, a line for each mirror; an empty list once it exists.
    """
    if not fetch:
        return ["nothing is downloaded for this command"]
    from torchvision.datasets.utils import download_url  # 4 s to import: only where something is missing

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locks.held(directory), contextlib.ExitStack() as after:
            for leftover in directory.glob(f"{PARTIAL}*"):  # of killed processes
                shutil.rmtree(leftover)
            partial = after.enter_context(tempfile.TemporaryDirectory(prefix=PARTIAL, dir=directory))
            after.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # a stalled download fails instead of hanging
            if (directory / filename).exists():  # another process downloaded it; its reader verifies it
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
