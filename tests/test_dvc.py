"""dvc.yaml with and without git: runs on a remote, a second clone that measures nothing, the table and its curves."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.project import CHECKOUT, Command, Project
from tests.support.servers import KEYS, Store, s3_store
from tests.support.suite import small_suite

ROW = "logreg-digits"
BUCKET = "team-runs"
IGNORED = ("/dvc.lock", "/results/table.json")  # by git, but for a team
DVC = """
import sys
from dvc.cli import main
for command in sys.argv[1:]:  # in one process, which imports DVC once
    if status := main(command.split()):
        sys.exit(status)
"""


class Team(NamedTuple):
    first: Project
    store: Store


def dvc(project: Project, *commands: str) -> str:
    """Run `dvc <command>` for each, in a project; returns what they printed."""
    settings = project.root.parent / "dvc"
    own = {"DVC_GLOBAL_CONFIG_DIR": str(settings), "DVC_SITE_CACHE_DIR": str(settings), "PYTHONPATH": "src", **KEYS}
    environment = project.environment(**own)
    del environment["REMEASURE_DATA"]
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as with users, there are files beside the code
    done = subprocess.run(
        [sys.executable, "-c", DVC, *commands],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(project: Project, *arguments: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    command = ["git", *identity, "-C", str(project.root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two seeds of a row and its table, made by DVC as it comes, in a folder that is no git checkout."""
    project = small_suite(tmp_path_factory.mktemp("measured") / "project", rows=[ROW])
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", ".dvc/plots/curves.json"):
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, project.root / name)
    (project.root / ".venv").symlink_to(sys.prefix)
    done = project.run("reproduce.py", "measure", ROW, "--seeds", "2", cwd=project.root)
    assert done.returncode == 0, done.stderr
    (project.root / "results/claims.md").write_text("none\n")  # `table` waits for it; measuring claims takes minutes
    dvc(
        project,
        f"commit --force measure@{ROW}",  # as `dvc repro` had, which would import torch for a quarter of a minute
        "repro --single-item table",
    )
    return project


def committed(project: Project, root: Path) -> Project:
    """A copy of a project as a git checkout."""
    copy = Project(root=root)
    shutil.copytree(project.root, copy.root, symlinks=True)
    git(copy, "init", "--quiet")
    (copy.root / ".git/info/exclude").write_text(".venv\n")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "measured")
    return copy


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, measured: Project) -> Iterator[Team]:
    """A checkout with git on, whose runs are pushed to a folder and to S3, as docs/team.md says."""
    root = tmp_path_factory.mktemp("team")
    project = committed(measured, root / "first")
    ignored = project.root / ".gitignore"
    assert set(IGNORED) <= set(ignored.read_text().splitlines())
    ignored.write_text("".join(f"{line}\n" for line in ignored.read_text().splitlines() if line not in IGNORED))
    with s3_store() as store:
        store.client.create_bucket(Bucket=BUCKET)
        dvc(
            project,
            "config core.no_scm false",
            "add runs",
            f"remote add --default folder {root}/remote",
            f"remote add s3 s3://{BUCKET}/remeasure",
            f"remote modify s3 endpointurl {store.endpoint}",
            "push",
            "push --remote s3",
        )
        git(project, "add", "--all")
        git(project, "commit", "--quiet", "--message", "pushed")
        yield Team(project, store)


def test_repro_works_without_git_and_leaves_a_checkout_clean(measured: Project, tmp_path: Path) -> None:
    assert (measured.root / "dvc.lock").exists()
    first = committed(measured, tmp_path / "first")
    fresh = Project(root=tmp_path / "fresh")
    git(first, "clone", "--quiet", ".", str(fresh.root))
    assert not (fresh.root / "dvc.lock").exists()
    (fresh.root / ".git/info/exclude").write_text(".venv\n")
    (fresh.root / ".venv").symlink_to(sys.prefix)
    said = dvc(fresh, "repro --single-item table")
    assert "Running stage 'table'" in said
    assert (fresh.root / "dvc.lock").exists()
    assert (fresh.root / "results/table.json").exists()
    assert git(fresh, "status", "--short") == ""


@pytest.mark.parametrize("remote", ["folder", "s3"])
def test_a_second_clone_has_the_runs_and_measures_nothing_again(
    remote: str, team: Team, here: Command, empty_store: Path, tmp_path: Path
) -> None:
    """It has no .venv: whatever stage ran would fail."""
    second = Project(root=tmp_path / "second")
    git(team.first, "clone", "--quiet", ".", str(second.root))
    assert not second.runs.exists()
    shutil.copy(empty_store, second.root)
    said = dvc(
        second,
        f"remote default {remote}",
        "pull",
        f"repro --pull measure@{ROW}",
        "repro --pull --single-item table",
    )
    assert said.count("didn't change, skipping") == 2
    journals = second.journals()
    assert len(journals) == 2
    assert journals == team.first.journals()
    ended = here(second, "reproduce.py", "reproduce", ROW, "--seeds", "2")
    assert ended.status == 0, ended.stderr
    assert second.journals() == journals
    changed = {line.split()[1] for line in git(second, "status", "--short").splitlines()}
    assert changed <= {".dvc/config"}  # which names the other remote


def test_metrics_params_and_plots_show_the_table_and_the_curves(team: Team, tmp_path: Path) -> None:
    project = Project(root=tmp_path / "clone")
    git(team.first, "clone", "--quiet", ".", str(project.root))
    table = json.loads((project.root / "results/table.json").read_text())
    mean = table[ROW]["mean_percent"]
    recipe = project.root / "conf/recipe/lbfgs.yaml"
    changed = re.sub(r"(?m)^epochs_total: \d+", "epochs_total: 7", recipe.read_text())
    assert changed != recipe.read_text()
    recipe.write_text(changed)
    ledger = project.root / "conf/benchmark.yaml"
    ledger.write_text(re.sub(r"margin_pp: [\d.]+", "margin_pp: 7.5", ledger.read_text(), count=1))
    table[ROW]["mean_percent"] = mean - 1
    (project.root / "results/table.json").write_text(json.dumps(table))
    said = dvc(project, "metrics show", "metrics diff", "params diff", "plots show", "exp show --no-pager --md")
    lines = said.splitlines()
    assert f"{ROW}.verdict" in lines[0]
    assert [line.split()[-1] for line in lines if f"{ROW}.mean_percent" in line and "table.json" in line] == ["-1.0"]
    assert [line.split()[-1] for line in lines if line.startswith("conf/recipe/lbfgs.yaml")] == ["7"]
    assert [line.split()[-2:] for line in lines if line.startswith("conf/benchmark.yaml")] == [["2.0", "7.5"]]
    assert any("epochs_total" in line and f"{ROW}.mean_percent" in line for line in lines)
    page = (project.root / "dvc_plots/index.html").read_text()
    assert '"split"' in page
    assert "accuracy_percent" in page
    assert os.fspath(Path("results/curves")) in page
