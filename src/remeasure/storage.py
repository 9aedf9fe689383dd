"""Files under results/ that are replaced whole: one alone, or all those of a row together, whatever crashes between."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from remeasure.paths import naming, read_file, refuse_no_file
from remeasure.spec import InputError

_COMPLETE = "COMPLETE"  # the marker in a staging folder: all is staged, so the replacement will be finished


def publish(results: Path, *, row: str, files: Mapping[str, bytes]) -> None:
    """Replace the row's files by these (relative path to content), so that a crash leaves all of them or none.

    They are staged and fsynced, then marked complete, then renamed into place; `recover` finishes or discards what a
    crash interrupted. Environments and findings that no seal names any more are removed.
    """
    with held(results):
        _recover(results)
        staging = results / f".staging-{row}"
        for name, data in files.items():
            _write(staging / name, data)
        _write(staging / _COMPLETE, b"")
        _finish(staging, results=results)
        _prune(results)


def recover(results: Path) -> None:
    """Finish the replacements that a crash interrupted when they were complete, discard the others. Call it at start.

    InputError: the folder cannot be made or written.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise InputError(f"{results}: cannot be written ({error.strerror}); make it writable and start again") from None
    with held(results):
        _recover(results)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace one file, wholly or not at all; a file that holds these bytes already is left alone. Call it `held`."""
    if path.exists() and read_file(path) == data:
        return
    staged = path.with_name(f".{path.name}.partial")
    _write(staged, data)
    staged.replace(path)


def read_bytes(path: Path) -> bytes:
    """The content of a file. InputError: it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def held(results: Path) -> Iterator[None]:
    """Only one process at a time replaces files in this folder, or reads several that must fit together."""
    results.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), refuse_no_file(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _recover(results: Path) -> None:
    for staging in sorted(results.glob(".staging-*")):
        if (staging / _COMPLETE).exists():
            _finish(staging, results=results)
        else:
            shutil.rmtree(staging)


def _finish(staging: Path, *, results: Path) -> None:
    """Rename what is still staged into place; the marker goes last, so that this can be begun again anywhere."""
    for path in sorted(staging.glob("*/*")):
        target = results / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        _sync_folder(target.parent)
    (staging / _COMPLETE).unlink()
    shutil.rmtree(staging)


def _prune(results: Path) -> None:
    """Not every row has findings, and rows share environments."""
    seals = b"".join(read_file(path) for path in results.glob("sums/*.sha256"))
    for path in [*results.glob("environments/*.json"), *results.glob("findings/*.csv")]:
        if f"  {path.relative_to(results).as_posix()}\n".encode() not in seals:
            path.unlink()
