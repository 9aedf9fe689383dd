"""Where things are: the project, its configs, its data, its results. Nothing depends on the working directory."""

import os
import tempfile
from pathlib import Path

from remeasure.spec import InputError

_CHECKOUT = Path(__file__).resolve().parents[2]


def project_root() -> Path:
    """The checkout; for an installed wheel, which has none, the working directory."""
    return _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def conf_dir() -> Path:
    """The configs: beside the package in a wheel, else the checkout's."""
    shipped = Path(__file__).resolve().parent / "conf"
    return shipped if shipped.is_dir() else _CHECKOUT / "conf"


def data_root() -> Path:
    """REMEASURE_DATA, else data/ at the project root."""
    return Path(os.environ.get("REMEASURE_DATA") or project_root() / "data").resolve()


def writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises InputError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); make it a writable folder") from None
