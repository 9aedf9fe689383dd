"""The code that makes a run: hashes of the syntax trees of its files, without comments and docstrings.

The files are those of this package that can move a weight, and the modules of the user's that hold the spec's builder,
reader, parts of the recipe and callbacks, with what they import that is not installed. A package of the user's counts
also where it is installed. Each run's folder keeps them in
code.json, so that a later start can name what has changed.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remeasure.runs import provenance
from remeasure.spec.base import Choice, InputError, canonical_sha256
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.system.atomic import read_json

CODE_FILE = "code.json"
WING = ("data", "models", "runs", "spec", "training")
# Parts of these packages that describe, find or time runs; what they change is no weight.
BOOKS = (
    "models/saved.py",
    "runs/code.py",
    "runs/folder.py",
    "runs/journal.py",
    "runs/provenance.py",
    "runs/timing.py",
    "spec/claim.py",
)
_CONFIRMED = set[Path]()  # files that this process imported as it had hashed them
INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_sha256(spec: RunSpec) -> str:
    """The SHA-256 over the files that this spec is trained or evaluated by, as they were when this process began."""
    return canonical_sha256(files(spec))


def files(spec: RunSpec) -> Mapping[str, str]:
    """The files that this spec is trained or evaluated by: name to SHA-256 of the syntax tree."""
    return _files(*_named(spec))


def own_code_sha256(spec: RunSpec) -> str | None:
    """As `code_sha256`, over the user's own files alone; None if the spec names no module of the user's."""
    own = {name: _remembered(path) for name, path in _own_paths(*_named(spec)).items()}
    return canonical_sha256(own) if own else None


def remember(spec: RunSpec) -> None:
    """Hash the spec's files now, as this process is about to import them: an edit that comes later changes neither."""
    with suppress(InputError):  # a builder that is not there; whoever builds the network tells it
        code_sha256(spec)


def refuse_edited(spec: RunSpec) -> None:
    """Raise InputError if a file was edited after it was hashed, and before this process imported it.

    Call it when the run's modules are imported. Later edits change neither hash nor code, and are not looked for.
    """
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for name, path in _paths(*_named(spec)).items():
        if path not in _CONFIRMED and str(path) in loaded:
            if not path.is_file() or _hashed(path) != _remembered(path):
                raise InputError(f"{name}: was edited while this process started; start it again")
            _CONFIRMED.add(path)


def content(spec: RunSpec) -> bytes:
    """What code.json holds: `code_sha256`, and `files`, path to SHA-256."""
    return json.dumps({"code_sha256": code_sha256(spec), "files": files(spec)}, indent=1).encode()


def kept(directory: Path) -> str:
    """The code_sha256 of a run's folder; "" if it has none."""
    return str(read_json(directory / CODE_FILE).get("code_sha256", ""))


def changed(directory: Path, *, spec: RunSpec) -> str:
    """Which files differ from those that made the run in this folder, such as "models/mlp.py differs"."""
    before, now = read_json(directory / CODE_FILE).get("files"), files(spec)
    if not isinstance(before, dict):
        return "an earlier version, which kept no hashes of it"
    return _differ(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))


def network_changed(directory: Path, *, spec: RunSpec) -> str:
    """As `changed`, for the files that build networks: the user's own, and this package's models; "" if none differs.

    A file that came after the run began builds other networks.
    """
    before, now = read_json(directory / CODE_FILE).get("files"), files(spec)
    if not isinstance(before, dict):
        return changed(directory, spec=spec)
    package = Path(__file__).parents[1]
    builds = (name for name in now if name.startswith("models/") or not (package / name).is_file())
    differing = [name for name in builds if before.get(name, now[name]) != now[name]]
    return _differ(differing) if differing else ""


def changed_since(commit: str, *, project: Path) -> str:
    """As `changed`, for this package's files in a checkout and those of one of its commits; "" if none is known to."""
    package = "src/remeasure"
    among = [*(f"{package}/{part}/*.py" for part in WING), *(f":(exclude){package}/{name}" for name in BOOKS)]
    changed = provenance.changed_since(commit, root=project, among=among)
    return _differ([name.removeprefix(f"{package}/") for name in changed]) if changed else ""


def _differ(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} differ{'s' * (len(names) == 1)}"


def _named(spec: RunSpec) -> list[str]:
    """The modules that the spec names."""
    from remeasure.models import registry  # torch: seconds to import

    function: Any = registry.builder_of(spec.model.builder)
    while isinstance(function, functools.partial):
        function = function.func
    parts = [part.name for part in vars(spec.recipe).values() if isinstance(part, Choice)]
    names = (spec.data.source, *parts, *(plugin.builder for plugin in spec.callbacks))
    return [
        getattr(function, "__module__", "") or "",
        *(module for module, colon, _ in (name.partition(":") for name in names) if colon),
    ]


@functools.cache
def _files(*modules: str) -> Mapping[str, str]:
    """Name to SHA-256 of the tree, read once a process, because the process imports its code only once."""
    return {name: _remembered(path) for name, path in _paths(*modules).items()}


@functools.cache
def _paths(*modules: str) -> Mapping[str, Path]:
    root = Path(__file__).parents[1]
    wing = {f"{part}/{name}": path for part in WING for name, path in _python_files(root / part).items()}
    return {name: path for name, path in wing.items() if name not in BOOKS} | _own_paths(*modules)


@functools.cache
def _own_paths(*modules: str) -> dict[str, Path]:
    """As `_paths`, the user's own files alone."""
    return {name: path for module in modules for name, path in _of_user(module).items()}


@functools.cache
def _remembered(path: Path) -> str:
    """`_hashed`, as this process first saw the file."""
    return _hashed(path)


def _hashed(path: Path) -> str:
    """`tree_sha256` of a file, from the user's cache folder where that knows these bytes: parsing takes far longer."""
    source = path.read_bytes()
    known = paths.cache_folder() / "trees" / f"{_sha256(source)}-{sys.version_info.major}.{sys.version_info.minor}"
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", text := known.read_text(encoding="ascii")):
            return text
    found = tree_sha256(source)
    with suppress(OSError):  # a full or read-only disk: it is parsed again next time
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(found, encoding="ascii")
    return found


def _of_user(name: str) -> dict[str, Path]:
    """The files of this module's package, or of the module where it is in none, and of all that they import, by name.

    Neither this package's files, nor Python's, nor those of the packages whose versions are kept; of installed ones
    only the package that is named, as the others can be large.
    """
    named = name.partition(".")[0]
    found, left = dict[str, Path](), [named]
    seen = {"", "remeasure", *provenance.PACKAGES.values(), *sys.stdlib_module_names}
    while left:
        if (top := left.pop()) not in seen:
            seen.add(top)
            found |= (files := _own_files(top, installed=top == named))
            left += [each for path in files.values() for each in _imported(path)]
    return found


def _own_files(top: str, *, installed: bool) -> dict[str, Path]:
    """The Python files of a top-level module or package, by name; {} where there is none, or only an installed one."""
    spec = None
    with suppress(ValueError):  # a module without a spec, such as __main__
        spec = importlib.util.find_spec(top)
    if spec is None:
        return {}
    # A package without __init__.py has no file of its own, and can have several folders.
    folders = [Path(each) for each in spec.submodule_search_locations or ()]
    files = {f"{top}/{name}": path for folder in folders for name, path in _python_files(folder).items()}
    if not folders and spec.origin and spec.origin.endswith(".py"):
        files = {f"{top}.py": Path(spec.origin)}
    return {name: path for name, path in files.items() if installed or not {*INSTALLED} & {*path.parts}}


def _python_files(folder: Path) -> dict[str, Path]:
    """The Python files below a folder, by relative path; none of an editor's hidden copies and links."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*.py"))}
    return {name.as_posix(): path for name, path in files.items() if not any(part[0] == "." for part in name.parts)}


def _imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports."""
    for node in ast.walk(_parsed(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def tree_sha256(source: bytes) -> str:
    """The SHA-256 of a file's syntax tree without docstrings; comments and line breaks are not in it anyway."""
    tree = _parsed(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return _sha256(repr(_said(tree)).encode())


def _parsed(source: bytes) -> ast.Module:
    """The syntax tree; of a file that is no Python, such as a template in the user's package, its bytes."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: null bytes
        return ast.Module([ast.Expr(ast.Constant(source))], [])


def _said(node: Any) -> Any:
    """A syntax tree as tuples: types, and the fields that are set, without positions. Alike in Python 3.11 to 3.13."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        return type(node).__name__, [(name, _said(value)) for name, value in fields if value not in (None, [])]
    return [_said(each) for each in node] if isinstance(node, list) else node


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
