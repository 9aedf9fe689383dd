"""What a killed process left behind is closed at the next start: in its journal, and in MLflow."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from tests.support import trained

from remeasure.runs.folder import CAMPAIGNS, recorded_run_id
from remeasure.runs.journal import Journal, read
from remeasure.system import locks
from remeasure.system.locks import Presence
from remeasure.tracking.observer import Observer

CUT = """
import os, signal, sys
from pathlib import Path
from tests.support import trained
from remeasure.tracking.observer import Observer
folder = Path(sys.argv[1])
with Observer(project=folder) as observer:
    def sink(directory, event):
        observer(directory, event)
        if event["event"] == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
    observer.finish(trained.run(trained.spec(), folder, row="mlp2-digits", sink=sink))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with a store of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def killed_at(event: str, folder: Path) -> Path:
    """The directory of a run whose process was killed once it had seen this event."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}/src:{root}"}
    done = subprocess.run([sys.executable, "-c", CUT, str(folder), event], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (path,) = (folder / "runs").glob("*/journal.jsonl")
    return path.parent


def statuses(folder: Path) -> list[str]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'remeasure'")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def close_orphans(folder: Path) -> None:
    with Observer(project=folder) as observer:
        observer.close_orphans(folder / "runs")


def test_a_run_that_was_killed_is_closed_and_goes_on_as_the_same_run(folder: Path) -> None:
    directory = killed_at("epoch", folder)
    assert statuses(folder) == ["RUNNING"]
    close_orphans(folder)
    assert statuses(folder) == ["KILLED"]
    *_, last = read(directory)
    assert (last["event"], last["reason"]) == ("interrupted", "its process was killed")
    close_orphans(folder)  # once is enough
    assert len(read(directory)) == 3
    with Observer(project=folder) as observer:
        observer.finish(trained.run(trained.spec(), folder, row="mlp2-digits", sink=observer))
    assert statuses(folder) == ["FINISHED"]


def test_a_run_that_ended_unseen_is_shown_as_finished(folder: Path) -> None:
    """The process was killed between the record and its projection."""
    directory = killed_at("finished", folder)
    (directory / "record.json").exists() or trained.run(trained.spec(), folder, row="mlp2-digits")
    assert recorded_run_id(directory) == ""
    close_orphans(folder)
    assert statuses(folder) == ["FINISHED"]
    assert recorded_run_id(directory) != ""


def test_a_run_that_somebody_works_on_is_left_alone(folder: Path) -> None:
    directory = killed_at("epoch", folder)
    with locks.held(directory / "lock"):
        close_orphans(folder)
    assert statuses(folder) == ["RUNNING"]
    assert [event["event"] for event in read(directory)] == ["started", "epoch"]


def test_without_mlflow_the_journal_is_closed_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = folder / "runs" / "a-run"
    directory.mkdir(parents=True)
    Journal(directory).write("started", row="", seed=0)
    monkeypatch.setattr("remeasure.tracking.mlflow_store.available", lambda: False)
    close_orphans(folder)
    assert [event["event"] for event in read(directory)] == ["started", "interrupted"]


def test_a_campaign_that_was_killed_is_closed_and_one_that_goes_on_is_not(folder: Path) -> None:
    with Observer(project=folder) as observer:
        assert observer.tracker is not None
        client, experiment = observer.tracker._client, observer.tracker._experiment_id
        for name in ("gone", "here"):
            client.create_run(experiment, run_name=name, tags={"remeasure.campaign": f"{name}/abc/cpu"})
    path = folder / "runs" / CAMPAIGNS
    path.mkdir(parents=True)
    (path / "gone-abc-cpu").write_text("gone/abc/cpu")
    present = Presence(path / "here-abc-cpu", note="here/abc/cpu")
    close_orphans(folder)
    found = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert found == {"gone": "KILLED", "here": "RUNNING"}
    present.leave()
