"""Lock files that show which runs and campaigns are active: the kernel releases a lock whenever its process ends."""

import errno
import fcntl
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from remeasure.spec.base import InputError
from remeasure.system.paths import naming, refuse_no_file

LOCK_SECONDS = 60.0  # longer than any process works on a store or the ledger; its holder may be stopped (SIGSTOP)
FOLDER_SECONDS = 300.0  # as long as that for results/: on a loaded machine, a check of all of it takes a minute
SILENT_SECONDS, POLL_SECONDS = 1.0, 0.02
MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class NoLocksError(InputError):
    """The disk has no file locks."""


@contextmanager
def held(path: Path, *, seconds: float = math.inf) -> Iterator[None]:
    """Hold the exclusive lock on this folder or lock file, which is made, during the block.

    Waits for another process that holds it, and says so. Raises TimeoutError after so many seconds.
    """
    is_folder, began, said = path.is_dir(), time.monotonic(), False
    descriptor = os.open(path, os.O_RDONLY) if is_folder else os.open(refuse_no_file(path), os.O_RDWR | os.O_CREAT)
    try:
        while not try_lock(descriptor, fcntl.LOCK_EX, path=path):
            waited = time.monotonic() - began
            if waited > seconds:
                raise TimeoutError(f"another process has held {path} for {seconds:.0f} s")
            if waited > SILENT_SECONDS and not said:
                print(f"waiting for another process, which holds {path}", file=sys.stderr, flush=True)
                said = True
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Try to take the exclusive lock without waiting; yields whether it was taken, and holds it during the block."""
    with refuse_no_file(path).open("a") as handle:
        yield try_lock(handle, fcntl.LOCK_EX, path=path)


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
        self._path, self._handle = path, refuse_no_file(path).open("a+")
        try:
            while not try_lock(self._handle, fcntl.LOCK_SH, path=path):
                time.sleep(POLL_SECONDS)  # `settle` looks at the file
        except NoLocksError:
            self._handle.close()
            raise
        with naming(path):
            self._handle.truncate(0)
            self._handle.write(note)
            self._handle.flush()

    def leave(self) -> bool:
        """Release the lock; returns whether this was the last process that held it."""
        with self._handle:
            last = try_lock(self._handle, fcntl.LOCK_EX, path=self._path)
            if last:
                self._handle.truncate(0)
            return last


def settle(path: Path, *, take: Callable[[str], bool]) -> None:
    """Give the note of a file whose processes were all killed to `take`; the file is emptied if that returns True."""
    with refuse_no_file(path).open("r+") as handle:
        if try_lock(handle, fcntl.LOCK_EX, path=path) and (note := handle.read()) and take(note):
            handle.truncate(0)


def _excludes(path: Path, operation: int) -> bool:
    """Whether an existing lock on the file prevents taking this one now."""
    try:
        with refuse_no_file(path).open("r+b") as handle:  # NFS locks no file that was opened to be read alone
            return not try_lock(handle, operation, path=path)
    except FileNotFoundError:
        return False


def try_lock(handle: IO[str] | IO[bytes] | int, operation: int, *, path: Path) -> bool:
    """Try to take the lock (fcntl.LOCK_EX or LOCK_SH) on this path's handle without waiting; whether it was taken.

    Raises NoLocksError where the disk has no locks.
    """
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in MISSING:
            raise
        folder = path if path.is_dir() else path.parent
        raise NoLocksError(
            f"{folder}: this disk has no file locks ({error.strerror}), and without them two processes could write the "
            "same files; put the project on a disk that has them"
        ) from None
    return True


@contextmanager
def held_folder(results: Path, *, writes: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on this folder, to replace files in it or to read several that must be consistent.

    A disk without locks can be read without one, since nobody can replace files there.
    """
    results.mkdir(parents=True, exist_ok=True)
    with ExitStack() as entered:
        with nullcontext() if writes else suppress(NoLocksError):
            entered.enter_context(held(results, seconds=FOLDER_SECONDS))
        yield
