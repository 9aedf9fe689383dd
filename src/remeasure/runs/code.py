"""The code that makes a run: hashes of the syntax trees of its files, without comments and docstrings.

The files are those of this package that can move a weight, and the module of the user's that holds the spec's builder,
with what lies beside it. Each run's folder keeps them in code.json, so that a later start can name what has changed.
"""

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from remeasure.spec.base import canonical_json
from remeasure.spec.run import RunSpec
from remeasure.system import locks
from remeasure.system.atomic import write_whole

CODE_FILE = "code.json"
WING = ("data", "models", "runs", "spec", "training")
# Parts of these packages that describe, find or time runs; what they change is no weight.
BOOKS = ("runs/code.py", "runs/folder.py", "runs/journal.py", "runs/provenance.py", "runs/timing.py", "spec/claim.py")
TREES = ".trees.json"  # in the folder of runs: the SHA-256 of a file's bytes to that of its tree; parsing takes longer
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_sha256(spec: RunSpec, *, runs: Path) -> str:
    """The SHA-256 over the files that this spec is trained or evaluated by, as they were when this process began."""
    return _sha256(canonical_json(_files(spec.model.builder, runs)).encode())


def content(spec: RunSpec, *, runs: Path) -> bytes:
    """What code.json holds: `code_sha256`, and `files`, path to SHA-256."""
    files = _files(spec.model.builder, runs)
    return json.dumps({"code_sha256": code_sha256(spec, runs=runs), "files": files}, indent=1).encode()


def kept(directory: Path) -> str:
    """The code_sha256 of a run's folder; "" if it has none."""
    return str(_read(directory).get("code_sha256", ""))


def changed(directory: Path, *, spec: RunSpec, runs: Path) -> str:
    """Which files differ from those that made the run in this folder, such as "models/mlp.py differs"."""
    before, now = _read(directory).get("files"), _files(spec.model.builder, runs)
    if not isinstance(before, dict):
        return "an earlier version, which kept no hashes of it"
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} differ{'s' * (len(names) == 1)}"


def _read(directory: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads((directory / CODE_FILE).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


@functools.cache
def _files(builder: str, runs: Path) -> Mapping[str, str]:
    """Name to SHA-256 of the tree, read once a process, because the process imports its code only once."""
    root = Path(__file__).parents[1]
    wing = {path.relative_to(root).as_posix(): path for part in WING for path in sorted((root / part).rglob("*.py"))}
    found = {name: path.read_bytes() for name, path in (wing | _of_user(builder)).items() if name not in BOOKS}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    keys = {name: f"{_sha256(source)} {python}" for name, source in found.items()}
    known = _known(runs / TREES)
    trees = {keys[name]: known.get(keys[name]) or tree_sha256(source) for name, source in found.items()}
    if not trees.keys() <= known.keys():
        with suppress(OSError):  # a full or read-only disk: they are parsed again next time
            runs.mkdir(parents=True, exist_ok=True)
            with locks.held(runs / f"{TREES}.lock"):
                write_whole(runs / TREES, json.dumps(trees, indent=1).encode())
    return {name: trees[key] for name, key in keys.items()}


def _known(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _of_user(builder: str) -> dict[str, Path]:
    """The files of the builder's module if it is no part of this package or of an installed one, by name.

    Of a module in a package: the package. Of any other: the module and what it imports from its folder.
    """
    from remeasure.models import registry  # torch: seconds to import

    function: Any = registry.BUILDERS.get(builder)
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__module__", "") or ""
    top, file = name.partition(".")[0], getattr(sys.modules.get(name), "__file__", None)
    if top in ("", "remeasure") or file is None or "site-packages" in Path(file).parts:
        return {}
    if "." in name or Path(file).name == "__init__.py":
        folder = Path(str(sys.modules[top].__file__)).parent
        return {f"{top}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*.py"))}
    found, left = dict[str, Path](), [Path(file)]
    while left:
        path = left.pop()
        if path.name not in found:
            found[path.name] = path
            left += [beside for each in _imported(path) if (beside := path.with_name(f"{each}.py")).is_file()]
    return found


def _imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def tree_sha256(source: bytes) -> str:
    """The SHA-256 of a file's syntax tree without docstrings; comments and line breaks are not in it anyway."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return _sha256(repr(_said(tree)).encode())


def _said(node: Any) -> Any:
    """A syntax tree as tuples: types, and the fields that are set, without positions. Alike in Python 3.11 to 3.13."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        return type(node).__name__, [(name, _said(value)) for name, value in fields if value not in (None, [])]
    return [_said(each) for each in node] if isinstance(node, list) else node


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
