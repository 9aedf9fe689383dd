"""Lock files that show which runs and campaigns are active: the kernel releases a lock whenever its process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from remeasure.system.paths import naming, refuse_no_file


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock on this lock file and hold it during the block."""
    with refuse_no_file(path).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Try to take the exclusive lock without waiting; yields whether it was taken, and holds it during the block."""
    with refuse_no_file(path).open("a") as handle:
        yield try_lock(handle, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Whether any process, this one included, holds the exclusive lock."""
    return _excludes(path, fcntl.LOCK_SH)


def is_shared(path: Path) -> bool:
    """Whether any process holds a lock on the file, such as the shared lock of a Presence."""
    return _excludes(path, fcntl.LOCK_EX)


class Presence:
    """A shared lock on a file, held by every process that works on the same campaign.

    `note`: one line, written to the file. The last process to leave empties the file; a note in a file that nobody
    locks shows that all its processes were killed.
    """

    def __init__(self, path: Path, *, note: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = refuse_no_file(path).open("a+")
        fcntl.flock(self._handle, fcntl.LOCK_SH)
        with naming(path):
            self._handle.truncate(0)
            self._handle.write(note)
            self._handle.flush()

    def leave(self) -> bool:
        """Release the lock; returns whether this was the last process that held it."""
        with self._handle:
            last = try_lock(self._handle, fcntl.LOCK_EX)
            if last:
                self._handle.truncate(0)
            return last


def orphaned(path: Path) -> Iterator[str]:
    """Yields the note of a file whose processes were all killed, if any; the file is emptied after the iteration."""
    with refuse_no_file(path).open("r+") as handle:
        if try_lock(handle, fcntl.LOCK_EX) and (note := handle.read()):
            yield note
            handle.truncate(0)


def _excludes(path: Path, operation: int) -> bool:
    """Whether an existing lock on the file prevents taking this one now."""
    try:
        with refuse_no_file(path).open("rb") as handle:
            return not try_lock(handle, operation)
    except FileNotFoundError:
        return False


def try_lock(handle: IO[str] | IO[bytes], operation: int) -> bool:
    """Try to take the lock (fcntl.LOCK_EX or LOCK_SH) without waiting; returns whether it was taken."""
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held_folder(results: Path) -> Iterator[None]:
    """Hold an exclusive lock on this folder, to replace files in it or to read several that must be consistent."""
    results.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
