"""Who made a number: commit, uncommitted changes, versions, machine. Nothing here can move a weight."""

import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "hydra-core",
    "mlflow",
    "scikit-learn",
    "scipy",
)
WATCHED = ("src", "conf", "pyproject.toml", "requirements.lock")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """The checkout's `commit` ("" outside git), whether a file differs from it or is new, and the `diff` as a patch.

    Only what can move a number counts: code, configs and versions, not results or texts. New files are not in `diff`.
    """

    commit: str
    dirty: bool
    diff: str


@cache
def revision(root: Path) -> Revision:
    """The state of the checkout, read once a process: what is imported is what stood there at the start."""
    commit = _git(root, "rev-parse", "HEAD").strip()
    if not commit:
        return Revision(commit="", dirty=False, diff="")
    dirty = bool(_git(root, "status", "--porcelain", "--", *WATCHED))
    return Revision(commit=commit, dirty=dirty, diff=_git(root, "diff", "--no-color", "HEAD", "--", *WATCHED))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, as kept in results/environments; no host name, no user, no path."""
    import torch

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "device": device,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": versions,
    }


def cpu_name() -> str:
    """Such as "AMD EPYC"; the kernel's name for the processor, else Python's."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device_kind: str) -> str:
    """The name of the device that trains: the GPU's, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if device_kind == "cuda" else cpu_name()
