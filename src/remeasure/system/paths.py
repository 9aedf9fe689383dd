"""Paths of the project, its configs and its data. In a checkout, none depends on the working directory, unless `enter`
has found a project of the user's there.
"""

import functools
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from remeasure.spec.base import InputError

LEDGER = "benchmark.yaml"
_OWN_CONF = "REMEASURE_CONF"  # the environment variable: worker processes have it, too
_ENTRY_POINTS = "remeasure.conf"
_CHECKOUT = Path(__file__).resolve().parents[3]


def enter(folder: Path | None = None) -> None:
    """Work in a project of the user's: `folder`, else REMEASURE_CONF's, else the working directory if it is one.

    A project has conf/benchmark.yaml; `folder` may be that conf as well. Its modules can be imported then.
    Raises InputError: the folder has no ledger.
    """
    named = folder or (Path(given) if (given := os.environ.get(_OWN_CONF)) else None)
    choices = [Path("conf")] if named is None else [named, named / "conf"]
    conf = next((choice.resolve() for choice in choices if (choice / LEDGER).is_file()), None)
    if conf:
        os.environ[_OWN_CONF] = str(conf)
    elif named is not None:
        raise InputError(f"{named}: holds no {LEDGER}; `remeasure new FOLDER` makes a project that has one")
    make_importable()


def make_importable() -> None:
    """Let the modules beside the project's conf/ be imported: builders, readers, parts of recipes, observers.

    Where there is no project, nothing of the working directory can be.
    """
    if in_project() and (root := str(project_root())) not in sys.path:
        sys.path.insert(0, root)


def cache_folder() -> Path:
    """This package's folder in the user's cache; where the user has no home, in the folder of temporary files."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "remeasure"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"remeasure-{os.getuid()}"


def project_root() -> Path:
    """The user's project, else the checkout; for an installed wheel, which has none, the working directory."""
    if own := os.environ.get(_OWN_CONF):
        return Path(own).parent
    return _CHECKOUT if _is_checkout() else Path.cwd()


def in_project() -> bool:
    """Whether there is a project: the user's, or a checkout of remeasure. An installed wheel alone is none."""
    return bool(os.environ.get(_OWN_CONF)) or _is_checkout()


def _is_checkout() -> bool:
    return (_CHECKOUT / "pyproject.toml").is_file()


def conf_dirs() -> tuple[Path, ...]:
    """Where configs are looked for, in this order: the user's folder, then this package's (its own in a wheel, else the
    checkout's), then those of installed packages. Raises InputError.
    """
    return (*_own_conf_dirs(), *_installed_conf_dirs())


def _own_conf_dirs() -> tuple[Path, ...]:
    shipped = Path(__file__).resolve().parents[1] / "conf"
    packaged = shipped if shipped.is_dir() else _CHECKOUT / "conf"
    own = os.environ.get(_OWN_CONF)
    return (Path(own), packaged) if own and Path(own) != packaged else (packaged,)


@functools.cache
def _installed_conf_dirs() -> tuple[Path, ...]:
    """The folder conf/ of each installed package that has an entry point `remeasure.conf`, in the order of their names.
    No package is imported for it. Raises InputError: one has no such folder.
    """
    folders = []
    for entry in sorted(entry_points(group=_ENTRY_POINTS), key=lambda entry: entry.name):
        top, *below = entry.module.split(".")
        package = importlib.util.find_spec(top)
        homes = package.submodule_search_locations if package else None
        found = [conf for home in homes or () if (conf := Path(home).joinpath(*below, "conf")).is_dir()]
        folders += found
        if not found:
            named = entry.dist.name if entry.dist else entry.name
            raise InputError(
                f"the installed package {named}: its entry point {_ENTRY_POINTS} names {entry.value}, which has no "
                f"folder conf; mend or uninstall it"
            )
    return tuple(folders)


def conf_dir() -> Path:
    """The folder of the ledger: the first of `conf_dirs`."""
    return _own_conf_dirs()[0]


def project_conf_dir() -> Path:
    """The same, to write into. Raises InputError: it is that of the installed package, which is nobody's project."""
    if not in_project():
        raise InputError(
            f"no project here (no conf/{LEDGER}): `remeasure new NAME` makes one; cd into it, or name it by --conf DIR"
        )
    return conf_dir()


def conf_file(name: str, *, folders: Sequence[Path]) -> Path:
    """The first of these folders' files of this name, such as data/mnist.yaml; in the first folder, if none has it."""
    return next((path for folder in folders if (path := folder / name).is_file()), folders[0] / name)


def command(name: str) -> str:
    """How to call train or a command of the table: in a checkout by its script."""
    if project_root() != _CHECKOUT:
        return f"remeasure {name}"
    return "python src/train.py" if name == "train" else f"python src/reproduce.py {name}"


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
