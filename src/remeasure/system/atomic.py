"""Atomic file writes, and reads whose errors name the file."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from remeasure.spec.base import InputError
from remeasure.system.paths import naming, read_file, refuse_no_file


def write_atomic(path: Path, data: bytes) -> None:
    """Replace one file, unless it has these bytes already: to <name>.partial, fsync, rename, fsync of the folder.

    A crash leaves the old content or the new one. Only one process may write the file at a time.
    """
    if path.exists() and read_file(path) == data:
        return
    partial = path.with_name(f"{path.name}.partial")
    _write(partial, data)
    os.replace(partial, path)
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, not atomically; content and name are on the disk before this returns."""
    _write(path, data)
    sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), refuse_no_file(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; {} where it is missing, damaged or no mapping."""
    with suppress(OSError, ValueError):
        found = json.loads(read_file(path))
        return found if isinstance(found, dict) else {}
    return {}


def read_bytes(path: Path) -> bytes:
    """The content of a file. InputError: it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
