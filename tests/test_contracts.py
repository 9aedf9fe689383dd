"""The house's walls hold, and each of them can fail: import contracts, what commands import, what the wheel ships."""

import ast
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from tests.project import CHECKOUT, Project, copy_project

PACKAGE = CHECKOUT / "src/remeasure"
HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "mlflow", "hydra", "omegaconf", "sklearn"}

# Where each module lives. A new one must be placed: in a wing, whose walls it then keeps, or among those that may
# see both sides.
JUDGING = {"ledger", "verdict", "table", "report", "verify", "records", "encoding", "storage"}
TRAINING = {
    *("data", "models", "weights", "recipe", "training", "streaming", "augmented", "decoding", "evaluation"),
    *("controls", "leaks", "diagnosis", "doctor", "debugging", "scratch", "numpy_engine", "batched", "capture", "muon"),
    *("inputs", "attempt", "run", "rundir", "planner", "workers", "provenance", "devices"),
}
SHARED = {"spec", "findings", "convert", "journal", "paths", "presence", "process", "interrupts", "masking"}
WATCHING = {"tracking", "projection", "progress", "observe"}  # they see runs and verdicts, and change neither
ON_TOP = {
    "campaign",
    "row_campaign",
    "collect",
    "replay",
    "reproduce",
    "single",
    "gpu",
    "determinism",
    "claims",
    "bench",
    "cli",
}  # they put the wings together

# Each import contract of pyproject.toml, and an import that breaks it: (module, line).
VIOLATIONS = {
    "The judging wing rebuilds the table without the training wing's packages": ("verdict", "import torch"),
    "The trainer cannot see the published answer": ("training", "from remeasure import ledger"),
    "Only tracking imports mlflow": ("observe", "import mlflow"),
    "The spec needs the standard library only": ("spec", "import numpy"),
    "The network from scratch is NumPy alone": ("scratch/layers", "import torch"),
}


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    found: list[dict[str, object]] = settings["tool"]["importlinter"]["contracts"]
    return found


# ---------------------------------------------------------------- imports


def lint_imports(project: Project) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return project.python("-c", code, cwd=project.root)


def test_every_import_contract_has_a_violation_below() -> None:
    assert {contract["name"] for contract in contracts()} == VIOLATIONS.keys()


def test_the_import_contracts_are_kept(project: Project) -> None:
    done = lint_imports(project)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(VIOLATIONS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_forbidden_import_breaks_its_contract(name: str, tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    module, line = VIOLATIONS[name]
    path = project.root / f"src/remeasure/{module}.py"
    path.write_text(f"{path.read_text()}\n\ndef _planted() -> None:\n    {line}\n")  # late imports count as well
    done = lint_imports(project)
    assert done.returncode == 1
    assert f"{name} BROKEN" in done.stdout
    assert f"Contracts: {len(VIOLATIONS) - 1} kept, 1 broken." in done.stdout


def test_every_module_has_its_place_in_the_house() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    rooms = [JUDGING, TRAINING, SHARED, WATCHING, ON_TOP]
    assert found - {"__init__"} == set().union(*rooms)
    assert sum(len(room) for room in rooms) == len(set().union(*rooms))  # and none has two


def test_the_contracts_cover_both_wings() -> None:
    """A module that moves into a wing is named in its wing's contract, or the wall has a hole."""
    sources = {contract["name"]: contract["source_modules"] for contract in contracts()}
    judging = sources["The judging wing rebuilds the table without the training wing's packages"]
    training = sources["The trainer cannot see the published answer"]
    assert isinstance(judging, list)
    assert isinstance(training, list)
    assert {f"remeasure.{name}" for name in JUDGING} - set(judging) == set()
    assert {f"remeasure.{name}" for name in TRAINING} - set(training) == set()


def test_judging_imports_nothing_of_the_training_wing(project: Project, tmp_path: Path) -> None:
    """`table` and `verify` on a fresh clone; tests/test_end_to_end.py does the same where there are records."""
    for command in ("table", "verify"):
        assert project.imported_by("reproduce.py", command, cwd=tmp_path) & HEAVY == set()


def test_importing_tracking_does_not_import_mlflow(project: Project, tmp_path: Path) -> None:
    code = "import sys, remeasure.tracking; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = project.python("-c", code, cwd=tmp_path)
    assert done.stdout == "False False\n", done.stderr


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("script", ["train.py", "reproduce.py"])
def test_a_script_has_ten_lines_at_most(script: str) -> None:
    source = (CHECKOUT / "src" / script).read_text()
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    assert ast.get_docstring(ast.parse(source))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is unpacked, as an installer does; it is built offline, by the build backend itself."""
    project = copy_project(tmp_path_factory.mktemp("source"))
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = project.python("-c", code, str(project.root / "dist"), cwd=project.root)
    assert built.returncode == 0, built.stderr
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(project.root / "dist" / built.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    shutil.rmtree(project.root)
    return site


def test_the_wheel_ships_the_code_and_every_config(installed: Path) -> None:
    def names(root: Path, suffix: str) -> set[str]:
        found = {str(path.relative_to(root)) for path in root.rglob(f"*{suffix}")}
        assert found
        return found

    assert names(installed / "remeasure/conf", ".yaml") == names(CHECKOUT / "conf", ".yaml")
    assert names(installed / "remeasure", ".py") == names(PACKAGE, ".py")
    assert not (installed / "tests").exists()


def test_an_installed_wheel_finds_its_configs_and_works_where_it_is_called(installed: Path, tmp_path: Path) -> None:
    code = "import sys; from remeasure.cli import train_main; sys.argv[0] = 'train.py'; train_main()"
    project = Project(root=tmp_path)
    arguments = ("-c", code, "data=digits", "recipe.epochs_total=1")
    done = project.python(*arguments, "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "name: digits" in done.stdout
    code = "from remeasure import paths; print(paths.__file__, paths.conf_dir(), paths.project_root(), sep='\\n')"
    shown = project.python("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).stdout.splitlines()
    package = installed / "remeasure"
    assert shown == [str(package / "paths.py"), str(package / "conf"), str(tmp_path)]
