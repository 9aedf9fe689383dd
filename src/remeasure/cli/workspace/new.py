"""`remeasure new FOLDER`: a project of the user's own, with an example of everything that it can have."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from remeasure.cli.options import Parser
from remeasure.spec.base import InputError

_TEMPLATE = Path(__file__).parent / "template"


def main(arguments: Sequence[str]) -> int:
    """Make the folder; returns the exit status. InputError: it is there already, or cannot be written."""
    parser = Parser(prog="remeasure new", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; name a folder that is new or empty")
    try:
        shutil.copytree(_TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        (folder / "gitignore").rename(folder / ".gitignore")
        (folder / "results").mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    print(f"{folder}: a project with one example row; its README.md says what is what. Next:")
    print(f"  cd {shlex.quote(str(folder))}\n  remeasure reproduce    # about a minute: the example's verdict")
    print("  remeasure add-row --help    # then your claim, in place of the example in conf/benchmark.yaml")
    return 0
