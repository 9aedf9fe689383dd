"""An environment as on a borrowed machine: what is there, the wheels that docs/gpu.md lists, and nothing else."""

import re
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.support.project import CHECKOUT

THERE = ("torch", "torchvision", "timm", "pytorch-lightning")  # with what pip installs along with them


def listed_wheels() -> list[str]:
    """The names in the first column of the guide's table of wheels."""
    table = (CHECKOUT / "docs/gpu.md").read_text().partition("| wheel | for |\n")[2].partition("\n\n")[0]
    return [name for line in table.splitlines()[1:] for name in re.findall(r"[\w-]+", line.split("|")[1])]


def with_their_needs(names: Iterable[str]) -> set[str]:
    """These packages and all that they require on this machine, as they are installed here."""
    found, left = set[str](), [Requirement(name) for name in names]
    while left:
        needed = left.pop()
        if (name := canonicalize_name(needed.name)) in found and not needed.extras:
            continue
        found.add(name)
        for requirement in map(Requirement, distribution(name).requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *needed.extras)):
                left.append(requirement)
    return found


def make_environment(folder: Path) -> Path:
    """Make the environment in `folder`; returns its Python. Nothing is installed or copied: packages are links."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in with_their_needs(THERE) | set(listed_wheels()):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():  # several packages have parts of nvidia/
                (site / top).symlink_to(str(package.locate_file(top)))
    return folder / "bin/python"
