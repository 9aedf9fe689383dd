"""Atomic file writes, and reads whose errors name the file."""

import os
from pathlib import Path

from remeasure.spec.base import InputError
from remeasure.system.paths import naming, read_file, refuse_no_file


def write_atomic(path: Path, data: bytes) -> None:
    """Replace one file atomically, unless it has these bytes already. The caller holds the folder's lock."""
    if path.exists() and read_file(path) == data:
        return
    staged = path.with_name(f".{path.name}.partial")
    write_synced(staged, data)
    staged.replace(path)


def read_bytes(path: Path) -> bytes:
    """The content of a file. InputError: it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def write_synced(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), refuse_no_file(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to <name>.partial, fsync, rename."""
    partial = path.with_name(path.name + ".partial")
    with naming(partial), refuse_no_file(partial).open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
