"""The command `remeasure`: it finds the user's project, and has the package's configs beside the user's."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.project import Project

NET = """# @package _global_
defaults:
  - override /data: digits
  - override /recipe: article
model: {name: narrow, builder: mlp, options: {hidden_sizes: [8], activation: relu, dropout: [], batch_norm: false}}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the user's: a ledger and a model."""
    root = tmp_path_factory.mktemp("own")
    (root / "conf/model").mkdir(parents=True)
    (root / "conf/model/narrow.yaml").write_text(NET)
    (root / "conf/benchmark.yaml").write_text("rows: {}\n")
    return root


def call(project: Project, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `remeasure <arguments>`."""
    done = project.remeasure(*arguments, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command_and_imports_nothing_heavy(project: Project, tmp_path: Path) -> None:
    done = project.python("-X", "importtime", "-m", "remeasure", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"train", "reproduce", "report", "verify", "ui"} <= set(done.stdout.split())
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"torch", "pytorch_lightning", "mlflow", "hydra", "numpy", "scipy", "matplotlib"})


def test_the_version_is_the_installed_package_s(project: Project, tmp_path: Path) -> None:
    assert call(project, "--version", cwd=tmp_path) == (0, f"remeasure {importlib.metadata.version('remeasure')}\n", "")


def test_an_unknown_command_is_refused_by_name(project: Project, tmp_path: Path) -> None:
    status, stdout, stderr = call(project, "reprduce", cwd=tmp_path)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("no command 'reprduce' (did you mean 'reproduce'?); valid: new, ")


@pytest.mark.parametrize("module", ["-mremeasure.cli.sweep", "-m remeasure.judging.verify"])
def test_a_module_that_is_no_command_is_refused(module: str, project: Project, tmp_path: Path) -> None:
    done = project.python(*module.split(), "--help", cwd=tmp_path)
    name = module.removeprefix("-m").strip()
    expected = f"{name} is no command; `python -m remeasure --help` lists them\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_the_user_s_configs_stand_beside_the_package_s(project: Project, own: Path, tmp_path: Path) -> None:
    """In the project's folder, and by --conf, before or after the command, from another one."""
    here = call(project, "train", "model=narrow", "--cfg", "job", cwd=own)
    assert here[0] == 0, here[2]
    assert "hidden_sizes:\n    - 8\n" in here[1]
    assert "source: digits" in here[1], "the package's data set"
    for arguments in (("--conf", str(own), "train"), ("train", "--conf", str(own / "conf"))):
        assert call(project, *arguments, "model=narrow", "--cfg", "job", cwd=tmp_path) == here
    status, _, stderr = call(project, "train", "model=narrow", "--cfg", "job", cwd=tmp_path)
    assert status == 2
    assert "model: there is no 'narrow'" in stderr, "elsewhere"


def test_the_user_s_ledger_is_the_one_that_is_read(project: Project, own: Path, tmp_path: Path) -> None:
    for arguments, cwd in ((("plan",), own), (("plan", "--conf", str(own)), tmp_path)):
        status, _, stderr = call(project, *arguments, cwd=cwd)
        assert status == 2
        assert f"{own}/conf/benchmark.yaml: expected the top-level key rows" in stderr


def test_an_option_without_its_value_is_refused_in_one_line(project: Project, tmp_path: Path) -> None:
    said = "argument --conf: expected one argument (`remeasure --help`)\n"
    assert call(project, "plan", "--conf", cwd=tmp_path) == (2, "", said)


def test_a_folder_without_a_ledger_is_refused(project: Project, tmp_path: Path) -> None:
    status, _, stderr = call(project, "plan", "--conf", str(tmp_path), cwd=tmp_path)
    assert status == 2
    assert stderr == f"{tmp_path}: holds no benchmark.yaml; `remeasure new FOLDER` makes a project that has one\n"


def test_a_reader_that_has_seen_enough_leaves_no_traceback(project: Project, tmp_path: Path) -> None:
    """As in `remeasure --help | head -1`, here with nobody who reads."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "remeasure", "--help"]
    environment = project.environment()
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
