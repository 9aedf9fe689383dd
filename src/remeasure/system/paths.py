"""Paths of the project, its configs and its data; in a checkout, none depends on the working directory."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remeasure.spec.base import InputError

_CHECKOUT = Path(__file__).resolve().parents[3]


def project_root() -> Path:
    """The checkout; for an installed wheel, which has none, the working directory."""
    return _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def conf_dir() -> Path:
    """The configs: beside the package in a wheel, else the checkout's."""
    shipped = Path(__file__).resolve().parents[1] / "conf"
    return shipped if shipped.is_dir() else _CHECKOUT / "conf"


def data_root() -> Path:
    """REMEASURE_DATA, where ~ is the home folder, else data/ at the project root."""
    return Path(os.environ.get("REMEASURE_DATA") or project_root() / "data").expanduser().resolve()


def writable(folder: Path) -> Path:
    """The folder, created if missing. Raises InputError if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); make it a writable folder") from None


def refuse_no_file(path: Path) -> Path:
    """The path. Raises InputError if it is a folder, a pipe or a device: reading or writing those may block forever."""
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or device"
        raise InputError(f"{path}: expected a file, found {found}; remove it, or put the file there")
    return path


def read_file(path: Path) -> bytes:
    """The content of a file. Raises OSError if it cannot be read, InputError if it is not a regular file."""
    return refuse_no_file(path).read_bytes()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this file's name to an OSError that has none, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno:
            error.filename = str(path)
        raise


def checkpoint_seconds(default: float) -> float:
    """Seconds between checkpoints: REMEASURE_CHECKPOINT_SECONDS, else `default`. InputError: not a number from 0 up."""
    text = os.environ.get("REMEASURE_CHECKPOINT_SECONDS") or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"REMEASURE_CHECKPOINT_SECONDS: expected a number of seconds from 0 up, got {text!r}")
    return seconds
