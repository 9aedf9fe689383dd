"""The house's walls hold, and each of them can fail: import contracts, what commands import, what the wheel ships."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.project import CHECKOUT, Project, copy_project

PACKAGE = CHECKOUT / "src/remeasure"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
NAMES = [contract["name"] for contract in CONTRACTS]
JUDGING = "The judging wing rebuilds the table without the training wing's packages"
HEAVY = next(set(contract["forbidden_modules"]) for contract in CONTRACTS if contract["name"] == JUDGING)
PACKAGES = sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/**/__init__.py"))


# ---------------------------------------------------------------- imports


def lint_imports(project: Project) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return project.python("-c", code, cwd=project.root, COLUMNS="1000")


def forbidden(contract: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(who, what it may not import): for each source every forbidden package, for each layer the one above it and
    those beside it.
    """
    if contract["type"] == "layers":
        layers = [[f"remeasure.{name}" for name in layer.split(" | ")] for layer in contract["layers"]]
        for above, layer in zip([[], *layers], layers, strict=False):
            yield from ((low, high) for low in layer for high in above)
            yield from ((one, other) for one in layer for other in layer if one != other)
        return
    spared = [line.partition(".**")[0] for line in contract.get("ignore_imports", ())]
    for source in contract["source_modules"]:
        parts = [f"remeasure.{path.name}" for path in PACKAGES if len(path.parts) == 1]
        for part in [each for each in parts if each not in spared] if source == "remeasure" else [source]:
            yield from ((part, other) for other in contract["forbidden_modules"])


def a_module(name: str, *, source: Path) -> Path:
    """The file of that module; of a package, one of its own."""
    path = source / name.replace(".", "/")
    return min(path.glob("[a-z]*.py")) if path.is_dir() else path.with_suffix(".py")


def test_the_import_contracts_are_kept(project: Project) -> None:
    done = lint_imports(project)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("contract", CONTRACTS, ids=NAMES)
def test_each_forbidden_import_breaks_its_contract(contract: dict[str, Any], tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    planted = []
    for who, what in forbidden(contract):
        path, target = a_module(who, source=project.root / "src"), what
        if what.startswith("remeasure."):
            found = a_module(what, source=project.root / "src").relative_to(project.root / "src").with_suffix("")
            target = ".".join(found.parts)
        line = f"\n\ndef _planted_{len(planted)}() -> None:\n    import {target}\n"  # late imports count as well
        path.write_text(path.read_text() + line)
        importer = ".".join(path.relative_to(project.root / "src").with_suffix("").parts)
        planted.append(f"{importer} -> {target} (l.")
    assert planted
    done = lint_imports(project)
    assert done.returncode == 1
    assert f"{contract['name']} BROKEN" in done.stdout
    told = done.stdout.partition("Broken contracts\n")[2].partition(f"\n{contract['name']}\n")[2]
    following = [told.find(f"\n{name}\n---") for name in NAMES if f"\n{name}\n---" in told]
    told = told[: min(following, default=len(told))]
    assert [line for line in planted if line not in told] == []


def test_a_module_in_no_layer_breaks_the_contract_of_layers(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (project.root / "src/remeasure/stray.py").write_text('"""A module that has no place yet."""\n')
    done = lint_imports(project)
    assert done.returncode == 1
    assert "remeasure.stray" in done.stdout


def test_no_package_imports_its_modules_by_itself(project: Project, tmp_path: Path) -> None:
    """`from remeasure.judging import table` must not bring what the rest of a package needs."""
    names = [".".join(("remeasure", *path.parts)) for path in PACKAGES]
    code = f"import sys, {', '.join(names)}; print(*sorted(name for name in sys.modules if 'remeasure' in name))"
    done = project.python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(["remeasure", *names])


def test_judging_imports_nothing_of_the_training_wing(project: Project, tmp_path: Path) -> None:
    """`table` and `verify` on a fresh clone; tests/test_end_to_end.py does the same where there are records."""
    for command in ("table", "verify"):
        assert project.imported_by("reproduce.py", command, cwd=tmp_path) & HEAVY == set()


def test_importing_tracking_does_not_import_mlflow(project: Project, tmp_path: Path) -> None:
    code = "import sys, remeasure.tracking.mlflow_store; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = project.python("-c", code, cwd=tmp_path)
    assert done.stdout == "False False\n", done.stderr


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("script", ["train.py", "reproduce.py"])
def test_a_script_has_ten_lines_at_most(script: str) -> None:
    source = (CHECKOUT / "src" / script).read_text()
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    assert ast.get_docstring(ast.parse(source))


def test_the_wheel_ships_the_code_and_every_config(installed: Path) -> None:
    def names(root: Path, suffix: str) -> set[str]:
        found = {str(path.relative_to(root)) for path in root.rglob(f"*{suffix}")}
        assert found
        return found

    assert names(installed / "remeasure/conf", ".yaml") == names(CHECKOUT / "conf", ".yaml")
    for suffix in (".py", ".j2", ".css", ".js"):
        assert names(installed / "remeasure", suffix) == names(PACKAGE, suffix)
    assert not (installed / "tests").exists()


def test_an_installed_wheel_finds_its_configs_and_works_where_it_is_called(installed: Path, tmp_path: Path) -> None:
    project = Project(root=tmp_path)
    arguments = ("-m", "remeasure", "train", "data=digits", "recipe.epochs_total=1")
    done = project.python(*arguments, "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "name: digits" in done.stdout
    code = (
        "from remeasure.system import paths; print(paths.__file__, paths.conf_dir(), paths.project_root(), sep='\\n')"
    )
    shown = project.python("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).stdout.splitlines()
    package = installed / "remeasure"
    assert shown == [str(package / "system/paths.py"), str(package / "conf"), str(tmp_path)]
