"""What produced a number: commit, uncommitted changes, versions, machine. Nothing here affects training."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from remeasure.spec.base import InputError

PACKAGES = {  # whose versions are kept: the names by which they are installed and imported
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "pytorch-lightning": "pytorch_lightning",
    "hydra-core": "hydra",
    "mlflow": "mlflow",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
}
NO_WEIGHTS = ("hydra-core", "mlflow")  # packages that cannot move a weight
WATCHED = ("src", "conf", "*.py", "pyproject.toml", "requirements.lock", ":(exclude)tests", ":(exclude)docs")
UNKNOWN = "unknown"
# Options of `git diff` that make a patch whatever is configured.
_AS_PATCH = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
# With one of these set, git would use another repository than the project's.
MISLEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """The checkout's `commit`, whether a file differs from it or is new, and the `diff` as a patch.

    Without a git checkout, REMEASURE_COMMIT gives the first two; without that, `commit` is "unknown", `dirty` None.
    Only files that can change a number count: code, configs and versions, not results or texts. New files are not in
    `diff`.
    """

    commit: str
    dirty: bool | None
    diff: str

    def __str__(self) -> str:
        return self.commit + ("-dirty" if self.dirty else "")


@cache
def revision(root: Path) -> Revision:
    """The checkout's revision, read once a process, because the process imports its code only once.

    An enclosing repository does not count. Raises InputError for a malformed REMEASURE_COMMIT.
    """
    top, _, commit = (_git(root, "rev-parse", "--show-toplevel", "HEAD") or b"").strip().rpartition(b"\n")
    if not top or Path(os.fsdecode(top)).resolve() != root.resolve():
        return _stated()
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *WATCHED)
    diff = _git(root, "diff", *_AS_PATCH, "HEAD", "--", *WATCHED)
    if status is None or diff is None:
        return _stated()
    return Revision(commit=commit.decode(), dirty=bool(status), diff=diff.decode(errors="replace"))


def _stated() -> Revision:
    """The revision in REMEASURE_COMMIT: a commit of 40 digits, followed by -dirty if a file differs."""
    text = os.environ.get("REMEASURE_COMMIT", "")
    if not text:
        return Revision(commit=UNKNOWN, dirty=None, diff="")
    found = re.fullmatch(r"([0-9a-f]{40})(-dirty)?", text)
    if found is None:
        raise InputError(
            f"REMEASURE_COMMIT: expected a commit as git prints it (40 digits, or with -dirty), got {text!r}"
        )
    return Revision(commit=found[1], dirty=bool(found[2]), diff="")


@cache
def warn_of_unknown(root: Path) -> None:
    """Warn once, on stderr, that records made here cannot name their commit. Raises InputError as `revision`."""
    if revision(root).commit == UNKNOWN:
        reason = "no git here, it failed, or the project is no checkout"
        print(f"commit unknown ({reason}): records say so; REMEASURE_COMMIT=… states it", file=sys.stderr)


def changed_since(commit: str, *, root: Path, among: Sequence[str]) -> list[str]:
    """Which files of the checkout differ from those of the commit, by git's pathspecs; none where git cannot say."""
    return os.fsdecode(_git(root, "diff", "--name-only", commit, "--", *among) or b"").splitlines()


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails, is missing, or takes more than 30 s."""
    environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            check=False,
            timeout=30,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, as kept in results/environments; no host name, no user, no path."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "device": device,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    """The installed version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def other_versions(kept: Mapping[str, Any]) -> str:
    """The packages that can move a weight and are not as this `environment` has them: "torch 2.15.0, not 2.14.0"."""
    before = {name: version for name, version in kept.get("packages", {}).items() if name not in NO_WEIGHTS}
    now = {name: _version(name) for name in before}
    return ", ".join(f"{name} {now[name]}, not {before[name]}" for name in before if now[name] != before[name])


def cpu_name() -> str:
    """The processor's name, such as "AMD EPYC": the kernel's, else Python's."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device_kind: str, *, num: int = 1) -> str:
    """The name of the device that trains: the GPU's, or the processor's; of several GPUs such as "8 x NVIDIA H100"."""
    import torch

    if device_kind != "cuda":
        return cpu_name()
    name = torch.cuda.get_device_name()
    return name if num == 1 else f"{num} x {name}"
