"""`remeasure new`: from a wheel alone, a folder in which every command works."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.support.folders import write_classes
from tests.support.forking import client as forking
from tests.support.project import CHECKOUT, TIMEOUT_SECONDS, Project

TUTORIAL = (CHECKOUT / "docs/own_table.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if not language]
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture(scope="module")
def user(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder in which the wheel is all that there is of remeasure; `mytable` in it is measured, by the tutorial."""
    folder = tmp_path_factory.mktemp("user")
    assert COMMANDS[:3] == [["remeasure", "new", "mytable"], ["cd", "mytable"], ["remeasure", "reproduce"]]
    user = Project(root=folder / "mytable")
    made = user.remeasure("new", "mytable", cwd=folder, PYTHONPATH=str(installed))
    assert made.returncode == 0, made.stderr
    done = user.remeasure("reproduce", cwd=user.root, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "my_net-my_data: 5 seeds, 2,500 predictions recomputed: ok" in done.stdout
    return user


def test_the_example_gets_its_verdict_in_the_folder_itself(user: Project, installed: Path) -> None:
    with (user.root / "results/table.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["row"], line["verdict"], line["num_params"]) == ("my_net-my_data", "reproduced", "2730")
    assert line["params_audit"] == "exact"
    assert "| my_net-my_data | 93.0 |" in (user.root / "README.md").read_text()
    assert (user.root / "mlflow.db").is_file()
    assert not list(installed.rglob("*.db")) + list(installed.rglob("table.csv"))


def test_the_package_s_configs_and_the_user_s_of_every_group_work(user: Project, installed: Path) -> None:
    """The package's data, the user's model, experiment, callback and observer."""
    chosen = ("model=my_net", "data=digits", "experiment=my_tuning", "+callback=my_stopping", "recipe.epochs_total=1")
    done = user.remeasure("train", *chosen, "observer=[terminal,my_lines]", cwd=user.root, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("validation_accuracy_percent=")
    assert (user.root / "finished.txt").read_text().endswith(": finished\n")


def test_its_own_tests_pass(user: Project, installed: Path) -> None:
    code = (
        "import sys, pytest; sys.path.insert(0, ''); sys.exit(pytest.main(['-q', 'tests']))"  # python -m pytest tests
    )
    environment = user.environment(PYTHONPATH=str(installed))
    done = forking.run(("-c", code), cwd=user.root, env=environment, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.fixture
def copied(user: Project, tmp_path: Path) -> Project:
    """A copy of the measured folder, for a test that changes it."""
    shutil.copytree(user.root, tmp_path / "mytable")
    return Project(root=tmp_path / "mytable")


def test_another_ledger_in_its_place_leaves_one_line_about_the_old_rows(copied: Project, installed: Path) -> None:
    ledger = copied.root / "conf/benchmark.yaml"
    ledger.write_text(ledger.read_text().replace("my_net", "mlp2"))
    done = [copied.remeasure(name, cwd=copied.root, PYTHONPATH=str(installed)) for name in ("report", "verify")]
    assert [each.returncode for each in done] == [0, 1]
    (line,) = done[1].stderr.splitlines()
    assert "my_net-my_data.csv: belongs to no row of the ledger, as do " in line


def test_a_folder_that_holds_something_is_refused(user: Project, installed: Path) -> None:
    done = user.remeasure("new", "mytable", cwd=user.root.parent, PYTHONPATH=str(installed))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mytable: is there already; name a folder that is new or empty\n"


def test_the_tutorial_is_followed_word_for_word(copied: Project, installed: Path, tmp_path: Path) -> None:
    """Its first three commands have made and measured the folder; its row takes seeds that nobody has seen."""
    shutil.copytree(copied.root / "results", tmp_path / "other/results")
    (copied.root / "data/insects").mkdir(parents=True)
    write_classes(copied.root / "data/insects")
    said = dict[str, str]()
    for program, *arguments in COMMANDS[3:]:
        assert program == "remeasure"
        done = copied.remeasure(*arguments, cwd=copied.root, PYTHONPATH=str(installed))
        assert done.returncode == 0, (arguments, done.stderr)
        said[arguments[0]] = done.stdout
    assert said.keys() == {"train", "add-data", "add-row", "plan", "reproduce", "verify", "judge", "compare"}
    assert "recipe.optimizer.lr_peak" in said["train"], "a table of the swept values"
    assert "my_net-my_data-table2" in (copied.root / "results/table.csv").read_text()
    assert "(rule changed)" not in said["reproduce"]
    assert "my_net-my_data: identical: 5 of 5 shared seeds have identical predictions" in said["compare"]
    assert said["judge"].strip() in TUTORIAL
    example = TUTORIAL.partition("In Python:\n\n```python\n")[2].partition("```")[0]
    shown = copied.python("-c", example, cwd=copied.root, PYTHONPATH=str(installed)).stdout
    assert shown == "reproduced interval [92.887, 93.313] inside 93 ± 0.5\n"
