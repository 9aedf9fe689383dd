"""Which runs and campaigns are under way, told by locks: the kernel frees them with their process, whatever ends it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from remeasure.system.paths import naming, refuse_no_file


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold what this file stands for, alone; another process that wants it waits."""
    with refuse_no_file(path).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold it alone, or learn at once that another process does (False)."""
    with refuse_no_file(path).open("a") as handle:
        yield try_lock(handle, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Whether a process, this one or another, holds it alone."""
    return _excludes(path, fcntl.LOCK_SH)


def is_shared(path: Path) -> bool:
    """Whether a process takes part in it (Presence)."""
    return _excludes(path, fcntl.LOCK_EX)


class Presence:
    """This process takes part in something, as others may; what it leaves in the file, an orphan is known by.

    `note`: one line. The last one to leave empties the file; where nobody did, all who took part were killed.
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
        """Whether nobody else takes part any more."""
        with self._handle:
            last = try_lock(self._handle, fcntl.LOCK_EX)
            if last:
                self._handle.truncate(0)
            return last


def orphaned(path: Path) -> Iterator[str]:
    """The note that killed processes left in the file, if they did; it is emptied once the caller has dealt with it."""
    with refuse_no_file(path).open("r+") as handle:
        if try_lock(handle, fcntl.LOCK_EX) and (note := handle.read()):
            yield note
            handle.truncate(0)


def _excludes(path: Path, operation: int) -> bool:
    """Whether a lock on the file keeps others from taking this one now."""
    try:
        with refuse_no_file(path).open("rb") as handle:
            return not try_lock(handle, operation)
    except FileNotFoundError:
        return False


def try_lock(handle: IO[str] | IO[bytes], operation: int) -> bool:
    """Whether the lock (fcntl.LOCK_EX or LOCK_SH) could be had at once."""
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held_folder(results: Path) -> Iterator[None]:
    """Only one process at a time replaces files in this folder, or reads several that must fit together."""
    results.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
