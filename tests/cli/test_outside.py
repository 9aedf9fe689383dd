"""Outside any project: an installed package never writes its own conf/, and says whose ledger it uses."""

import shutil
from pathlib import Path

import pytest
from tests.cli.workspace.test_add_row import REQUIRED
from tests.support.project import CHECKOUT, Command, Project

from remeasure.system import paths

ADD_ROW = ("add-row", *(word for pair in REQUIRED.items() for word in pair))
SWEEP = ("sweep", "found", "model=logreg", "recipe.batch_size=32,64")
ROW = "vit_b16-imagenet"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Configs that are in no checkout; the working directory is empty."""
    shutil.copytree(CHECKOUT / "conf", tmp_path / "site/conf")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path / "data"))
    return Project(root=tmp_path / "site")


def test_the_package_s_own_conf_is_never_written(package: Project, here: Command) -> None:
    before = {path: path.read_bytes() for path in package.root.rglob("*.yaml")}
    for command in (ADD_ROW, ("add-data", "mine"), SWEEP):
        ended = here(package, "remeasure", *command)
        assert (ended.status, ended.stdout) == (2, ""), command
        assert ended.stderr == (
            "no project here (no conf/benchmark.yaml): `remeasure new NAME` makes one; cd into it, or name it by "
            "--conf DIR\n"
        )
    assert {path: path.read_bytes() for path in package.root.rglob("*.yaml")} == before
    assert list(Path.cwd().iterdir()) == []


def test_a_plan_of_the_package_s_own_ledger_says_so_and_names_commands_that_work(
    package: Project, here: Command
) -> None:
    ended = here(package, "remeasure", "plan", ROW)
    assert ended.stderr.splitlines().count("no conf/benchmark.yaml here: remeasure's own ledger is used") == 1
    assert "remeasure train model=vit_b16 data=imagenet recipe=deit_b_eval model.weights=PATH" in ended.stdout


@pytest.mark.parametrize(("name", "shown"), [("train", ""), ("plan", " plan"), ("reproduce", " reproduce")])
def test_a_checkout_s_commands_are_its_scripts(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "train" if name == "train" else "reproduce"
    assert paths.command(name) == f"python src/{script}.py{shown}"
    monkeypatch.setenv("REMEASURE_CONF", "/mytable/conf")
    assert paths.command(name) == f"remeasure {name}"
