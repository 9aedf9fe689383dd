"""`remeasure new`: from a wheel alone, a folder in which every command works."""

import csv
from pathlib import Path

import pytest
from tests.support.project import Project


@pytest.fixture(scope="module")
def user(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder in which the wheel is all that there is of remeasure; `mytable` in it is measured."""
    folder = tmp_path_factory.mktemp("user")
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
    done = user.python("-m", "pytest", "-q", "tests", cwd=user.root, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout


def test_another_ledger_in_its_place_leaves_one_line_about_the_old_rows(user: Project, installed: Path) -> None:
    ledger = user.root / "conf/benchmark.yaml"
    text = ledger.read_text()
    ledger.write_text(text.replace("my_net", "mlp2"))
    try:
        done = [user.remeasure(name, cwd=user.root, PYTHONPATH=str(installed)) for name in ("report", "verify")]
    finally:
        ledger.write_text(text)
        user.remeasure("report", cwd=user.root, PYTHONPATH=str(installed))
    assert [each.returncode for each in done] == [0, 1]
    (line,) = done[1].stderr.splitlines()
    assert "my_net-my_data.csv: belongs to no row of the ledger, as do " in line


def test_a_folder_that_holds_something_is_refused(user: Project, installed: Path) -> None:
    done = user.remeasure("new", "mytable", cwd=user.root.parent, PYTHONPATH=str(installed))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mytable: is there already; name a folder that is new or empty\n"
