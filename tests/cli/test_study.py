"""`remeasure sweep`: a study goes on after a kill, its winner is a recipe, and the test split stays unread."""

import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import yaml
from tests.support.forking import client as forking
from tests.support.project import CHECKOUT, Command, Project

from remeasure.cli.workspace import new
from remeasure.runs import journal

RATE = "recipe.optimizer.lr_peak=tag(log,interval(1e-4,1e-2))"
SHORT = ("model=logreg", "data=digits", "recipe=article", "recipe.epochs_total=2")
READER = """
_official = read
def read(split, root, files_md5, fetch):
    if split == "test":
        raise RuntimeError("the test split was read")
    return _official(split, root, files_md5, fetch)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A project of the user's, whose test split cannot be read."""
    root = tmp_path / "mine"
    new.main([str(root)])
    with (root / "my_data.py").open("a") as file:
        file.write(READER)
    return root


def trials(root: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{root}/runs/sweeps/{name}.db")
    return study.get_trials(deepcopy=False)


def finished_runs(root: Path) -> list[str]:
    """The folders of finished runs, without the number of the attempt."""
    folders = [path.parent for path in root.glob("runs/*/journal.jsonl")]
    return [each.name.rpartition("-a")[0] for each in folders if journal.read(each)[-1]["event"] == "finished"]


def test_the_best_trial_becomes_a_recipe_and_the_test_split_stays_unread(mine: Path, here: Command) -> None:
    swept = ("recipe.epochs_total=1", RATE, "recipe.batch_size=32,64", "model.options.channels=8")
    command = ("--conf", str(mine), "sweep", "found", "--trials", "2", "model=my_net", "data=my_data", *swept)
    ended = here(Project(root=CHECKOUT), "remeasure", *command)
    assert ended.status == 0, ended.stderr
    text = (mine / "conf/recipe/found.yaml").read_text()
    use = "remeasure train recipe=found model=my_net data=my_data model.options.channels=8"
    assert f"`{use}` trains with it" in ended.stdout
    assert f"# To train with it: {use}\n" in text
    done = trials(mine, "found")
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 2
    best = max(done, key=lambda trial: trial.value or 0)
    recipe = yaml.safe_load(text)
    assert recipe["optimizer"]["lr_peak"] == pytest.approx(best.params["recipe.optimizer.lr_peak"], rel=1e-3)
    assert str(recipe["batch_size"]) == best.params["recipe.batch_size"]
    assert (recipe["name"], recipe["epochs_total"]) == ("found", 1)
    told = [line for line in text.splitlines() if line.startswith("# ") and f"{best.value:.3f}" in line]
    assert len(told) >= 1
    with closing(sqlite3.connect(mine / "mlflow.db")) as store:
        (parent,) = store.execute("SELECT run_uuid FROM tags WHERE key = 'remeasure.sweep'").fetchone()
        children = store.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?", [parent])
        assert children.fetchone() == (2,)
        assert store.execute("SELECT status FROM runs WHERE run_uuid = ?", [parent]).fetchone() == ("FINISHED",)
    again = here(Project(root=CHECKOUT), "remeasure", *command)
    assert (again.status, len(finished_runs(mine))) == (0, 2)
    other = here(Project(root=CHECKOUT), "remeasure", *command, "recipe.clip_norm=1.0")
    assert other.status == 2
    assert "the study found was begun with: " in other.stderr
    with (mine / "my_net.py").open("a") as file:
        file.write("OTHER = 1\n")
    edited = here(Project(root=CHECKOUT), "remeasure", *command, "--trials", "3")
    assert edited.status == 2
    assert "the study found was begun with other code (my_net.py changed since)" in edited.stderr
    scored = here(Project(root=CHECKOUT), "remeasure", *command[:3], "tested", RATE, "data.split=test")
    assert scored.status == 2
    assert "data.split: a sweep is scored on held-back training images, got split=test" in scored.stderr
    hiding = here(Project(root=CHECKOUT), "remeasure", *command[:3], "lenet5", RATE, "model=lenet5")
    assert (hiding.status, hiding.stderr.partition(",")[0]) == (2, "lenet5: is a recipe of remeasure's own")
    assert not (mine / "conf/recipe/lenet5.yaml").exists()


def test_a_study_that_is_killed_goes_on_and_trains_nothing_twice(project: Project, tmp_path: Path) -> None:
    command = ("sweep", "killed", "--trials", "4", *SHORT, RATE, "observer=[]")
    before = Counter(finished_runs(project.root))
    code = "from remeasure.__main__ import run; run()"
    with (tmp_path / "stdout").open("w") as out:
        process = forking.popen(
            ["-c", code, *command], cwd=project.root, env=project.environment(), start_new_session=True, stdout=out
        )
        limit = time.monotonic() + 300
        while "trial 2: " not in (tmp_path / "stdout").read_text() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [trial.state.name for trial in trials(project.root, "killed")] == ["COMPLETE", "COMPLETE", "RUNNING"]
    done = project.remeasure(*command, cwd=project.root)
    assert done.returncode == 0, done.stderr
    assert [trial.state.name for trial in trials(project.root, "killed")] == ["COMPLETE"] * 4
    assert list((Counter(finished_runs(project.root)) - before).values()) == [1] * 4
    found = yaml.safe_load((project.root / "conf/recipe/killed.yaml").read_text())
    assert found["defaults"] == ["article", "_self_"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "model=logreg"), "expected a range, such as recipe.optimizer.lr_peak=tag"),
        (("x", RATE, "seed=1,2"), "seed: is no parameter to choose; --seeds says how many"),
        (("article", RATE), "article.yaml: is there, and no sweep has written it"),
        (("x/y", RATE), "expected a NAME of letters"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_line(arguments: tuple[str, ...], said: str, here: Command) -> None:
    ended = here(Project(root=CHECKOUT), "remeasure", "sweep", *arguments)
    assert ended.status == 2
    (line,) = ended.stderr.splitlines()
    assert said in line
