"""Photographs that are read from their files on demand: the list of a split, and its fingerprint."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remeasure.spec.base import InputError
from remeasure.system import paths
from remeasure.system.paths import read_file, refuse_no_file

PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """The photographs of a split in their official order: by class, then by file name. None is kept in memory.

    `names` (N,): <class>/<file>; `labels` (N,) int64. `place`: the folder they lie in, or an uncompressed tar archive;
    then `spans` (N, 2) int64 has each photograph's offset and length in bytes.
    `md5`: the official checksum of the archive, None for a folder. `among`: the classes of which a net chooses one;
    None: all that it has. `also` (N, K) int64: further labels that are right, padded with the photograph's own one.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    place: Path
    spans: np.ndarray | None
    md5: str | None
    among: tuple[int, ...] | None = None
    also: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """The photograph's location, for messages."""
        return str(self.place / self.names[index]) if self.spans is None else f"{self.place}, {self.names[index]}"

    def read(self, index: int) -> bytes:
        """The photograph's bytes, from any process. Raises InputError if they cannot be read."""
        try:
            if self.spans is None:
                return read_file(self.place / self.names[index])
            offset, length = (int(value) for value in self.spans[index])
            with refuse_no_file(self.place).open("rb") as archive:
                archive.seek(offset)
                return archive.read(length)
        except OSError as error:
            raise InputError(f"{self.path(index)}: cannot be read ({error.strerror})") from None


def fingerprint(listing: Listing) -> tuple[str, bool]:
    """SHA-256 over label, length (int64, little-endian), further labels and bytes of each photograph, in order; and
    whether they come from the official archive. Independent of the file layout.

    Cached in the user's cache folder until the path, size or time of a file changes. Raises InputError: a file that
    cannot be read, or an archive that is not the official one.
    """
    state, verified = _state(listing), listing.md5 is not None
    kept = paths.cache_folder() / "fingerprints" / f"{state}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(read_file(kept))
        if found == _entry(state, data_sha256=found["data_sha256"], verified=verified):
            return found["data_sha256"], verified
    if listing.md5 is not None:
        _verify(listing.place, md5=listing.md5)
    data_sha256 = _digest(listing)
    with contextlib.suppress(OSError):  # without a writable cache it is computed again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_text(json.dumps(_entry(state, data_sha256=data_sha256, verified=verified)))
        os.replace(partial, kept)
    return data_sha256, verified


def _entry(state: str, *, data_sha256: str, verified: bool) -> dict[str, object]:
    """A cache entry, with a checksum that reveals damage."""
    seal = hashlib.sha256(f"{state} {data_sha256} {verified}".encode()).hexdigest()
    return {"data_sha256": data_sha256, "verified": verified, "seal_sha256": seal}


def _state(listing: Listing) -> str:
    """SHA-256 over paths, labels, sizes and times, which reveals changed files without reading them."""
    paths = [listing.place / name for name in listing.names] if listing.spans is None else [listing.place]
    digest = hashlib.sha256(f"{listing.place.resolve()}\n{listing.md5}\n".encode())
    for labels in (listing.labels, *_also(listing)):
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    digest.update("\n".join(listing.names).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        # A changed byte always changes ctime, even if mtime was set back.
        digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return digest.hexdigest()


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256()
    for index in _watched(len(listing), what=f"fingerprint of {listing.place}", unit="photographs"):
        content = listing.read(index)
        further = [label for labels in _also(listing) for label in labels[index]]
        digest.update(np.array([listing.labels[index], len(content), *further], "<i8").data)
        digest.update(content)
    return digest.hexdigest()


def _also(listing: Listing) -> list[np.ndarray]:
    return [] if listing.also is None else [listing.also]


def _verify(archive: Path, *, md5: str) -> None:
    """Raises InputError if the archive has another MD5."""
    digest, block = hashlib.md5(usedforsecurity=False), 2**22
    with refuse_no_file(archive).open("rb") as handle:
        for _ in _watched(-(-archive.stat().st_size // block), what=f"checksum of {archive}", unit="blocks of 4 MiB"):
            digest.update(handle.read(block))
    if (found := digest.hexdigest()) != md5:
        raise InputError(
            f"{archive}: not the official file: expected MD5 {md5}, got {found}. It is truncated, damaged or another "
            "file; put the official one there"
        )


def _watched(num: int, *, what: str, unit: str) -> Iterator[int]:
    """Yields 0 … num - 1, with a progress line on stderr every ten seconds."""
    began = spoke = time.monotonic()
    for index in range(num):
        yield index
        if (now := time.monotonic()) - spoke >= PROGRESS_SECONDS:
            spoke, left = now, (now - began) / (index + 1) * (num - index - 1)
            print(f"{what}: {index + 1:,} of {num:,} {unit}, {left:.0f} s left", file=sys.stderr)
