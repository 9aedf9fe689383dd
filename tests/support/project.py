"""A scratch copy of the project, whose commands tests run as a person does: as processes."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.forking import client as forking

from remeasure.tracking import mlflow_store

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 600.0  # a slow machine takes minutes for the demo
PARTS = ("conf", "src", "pyproject.toml", "README.md")


class Ended(NamedTuple):
    """A command that was called in the tests' own process."""

    status: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write these files, by their paths in the folder."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project at `root`, with no data but the bundled digits, no runs and no results."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        own = {"PYTHONPATH": str(self.root / "src"), "REMEASURE_DATA": str(self.root / "data")}
        return {**inherited, **own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}

    def python(self, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """The finished process of `python <arguments>`, called in `cwd`, with `changes` in its environment."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )

    def run(self, script: str, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """The finished process of `python src/<script> <arguments>`, forked where that makes no difference."""
        command = (str(self.root / "src" / script), *arguments)
        return forking.run(command, cwd=cwd, env=self.environment(**changes), timeout=TIMEOUT_SECONDS)

    def remeasure(self, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """The finished process of `remeasure <arguments>`, forked where that makes no difference."""
        code = "from remeasure.__main__ import run; run()"
        environment = self.environment(**changes)
        return forking.run(("-c", code, *arguments), cwd=cwd, env=environment, timeout=TIMEOUT_SECONDS)

    def imported_by(self, script: str, *arguments: str, cwd: Path) -> set[str]:
        """The top-level packages that `python src/<script> <arguments>` imports; it must end with status 0."""
        done = self.python("-X", "importtime", str(self.root / "src" / script), *arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}

    def start(self, script: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The running process of `python src/<script> <arguments>`, in a session of its own; `options` as for Popen.

        Forked where that makes no difference, as with `run`.
        """
        options = {"cwd": self.root, "env": self.environment(), "start_new_session": True, **options}
        return forking.popen([str(self.root / "src" / script), *arguments], **options)

    def journals(self) -> dict[str, bytes]:
        """The content of each run's journal, by its folder; equal before and after: nothing was trained."""
        found = sorted(self.runs.rglob("journal.jsonl"))
        return {str(path.parent.relative_to(self.runs)): path.read_bytes() for path in found}


@cache
def _empty_store() -> bytes:
    """The database of a migrated MLflow store without the experiment; MLflow takes two seconds to make one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        mlflow_store._client(f"sqlite:///{path}")
        return path.read_bytes()


def add_store(path: Path) -> Path:
    """Write the database of an empty store there; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_empty_store())
    return path


def copy_project(root: Path, *, store: str = "mlflow.db") -> Project:
    """Copy what a checkout holds, without git, environment, runs, results and data.

    `store`: where the copy has an empty MLflow store; "": it has none.
    """
    root.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = CHECKOUT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / part)
    if store and mlflow_store.available():
        add_store(root / store)
    return Project(root=root)
