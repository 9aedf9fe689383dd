"""Observers: each sees every event, and none can stop a run. What a killed process left unfinished is closed."""

import re
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tests.support import trained
from tests.support.forking import client as forking
from tests.support.project import CHECKOUT, TIMEOUT_SECONDS, copy_project

from remeasure.judging import ledger
from remeasure.runs.folder import CAMPAIGNS, Outcome, recorded_run_id
from remeasure.runs.journal import Journal, read
from remeasure.spec.base import InputError
from remeasure.spec.claim import Verdict
from remeasure.spec.plugin import Plugin
from remeasure.spec.record import Event
from remeasure.system import locks
from remeasure.system.locks import Presence
from remeasure.tracking.mlflow_observer import MlflowObserver
from remeasure.tracking.mlflow_runs import Tracker
from remeasure.tracking.observer import Observer, Observers, Standing, build

CUT = """
import os, signal, sys
from pathlib import Path
from tests.support import trained
from remeasure.tracking.mlflow_observer import MlflowObserver
folder = Path(sys.argv[1])
observer = MlflowObserver(project=folder)
def sink(directory, event):
    observer(directory, event)
    if event["event"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
observer.keep(trained.run(trained.spec(), folder, row="mlp2-digits", sink=sink))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with a store of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def killed_at(event: str, folder: Path) -> Path:
    """The directory of a run whose process was killed once it had seen this event."""
    root = Path(__file__).parents[2]
    environment = forking.environment(PYTHONPATH=f"{root}/src:{root}")
    done = forking.run(["-c", CUT, str(folder), event], cwd=root, env=environment, timeout=TIMEOUT_SECONDS)
    assert done.returncode == -signal.SIGKILL
    (path,) = (folder / "runs").glob("*/journal.jsonl")
    return path.parent


def statuses(folder: Path) -> list[str]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'remeasure'")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def close_orphans(folder: Path) -> None:
    with Observers([MlflowObserver(project=folder)]) as observers:
        observers.close_orphans(folder / "runs")


def test_a_run_that_was_killed_is_closed_and_goes_on_as_the_same_run(folder: Path) -> None:
    directory = killed_at("epoch", folder)
    assert statuses(folder) == ["RUNNING"]
    close_orphans(folder)
    assert statuses(folder) == ["KILLED"]
    *_, last = read(directory)
    assert (last["event"], last["reason"]) == ("interrupted", "its process was killed")
    close_orphans(folder)  # once is enough
    assert len(read(directory)) == 3
    with Observers([MlflowObserver(project=folder)]) as observers:
        observers.keep(trained.run(trained.spec(), folder, row="mlp2-digits", sink=observers))
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


def test_without_mlflow_the_journal_is_closed_all_the_same(folder: Path) -> None:
    directory = folder / "runs" / "a-run-cpu-s0-a1"
    directory.mkdir(parents=True)
    Journal(directory).write("started", row="", seed=0)
    Observers([]).close_orphans(folder / "runs")
    assert [event["event"] for event in read(directory)] == ["started", "interrupted"]


def test_a_campaign_that_was_killed_is_closed_and_one_that_goes_on_is_not(folder: Path) -> None:
    MlflowObserver(project=folder)  # makes the store
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [each.experiment_id for each in client.search_experiments(filter_string="name = 'remeasure'")]
    for name in ("gone", "here"):
        client.create_run(experiment, run_name=name, tags={"remeasure.campaign": f"{name}/abc/cpu"})
    path = folder / "runs" / CAMPAIGNS
    path.mkdir(parents=True)
    (path / "gone-abc-cpu").write_text("gone/abc/cpu")
    present = Presence(path / "here-abc-cpu", note="here/abc/cpu")
    close_orphans(folder)
    found = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert found == {"gone": "KILLED", "here": "RUNNING"}
    assert (path / "gone-abc-cpu").read_text() == ""
    present.leave()


def test_a_killed_campaign_is_told_again_until_mlflow_has_heard_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = folder / "runs" / CAMPAIGNS / "gone-abc-cpu"
    note.parent.mkdir(parents=True)
    note.write_text("gone/abc/cpu")
    Observers([]).close_orphans(folder / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "close_campaign", lambda *_: 1 / 0)  # the store is down
        close_orphans(folder)
    assert note.read_text() == "gone/abc/cpu"
    close_orphans(folder)
    assert note.read_text() == ""


def test_copies_and_damaged_runs_stop_no_command(folder: Path) -> None:
    """A copy of a run under way has the id of the run itself in MLflow, which is not to be closed."""
    whole = trained.run(trained.spec(), folder, row="mlp2-digits").directory
    (whole / "predictions.npz").unlink()
    assert recorded_run_id(whole) == ""
    copy = whole.with_name(f"{whole.name}.bak")
    copy.mkdir()
    Journal(copy).write("started", row="", seed=0)
    close_orphans(folder)
    assert [event["event"] for event in read(copy)] == ["started"]


def test_a_row_that_begins_has_a_view_of_its_curves(folder: Path) -> None:
    observer = MlflowObserver(project=folder)
    row = ledger.read(CHECKOUT / "conf/demo.yaml")["logreg-digits"]
    begun = Verdict(verdict="not measured", reason="", num_seeds=0)
    observer.row(
        Standing(
            row=row,
            verdict=begun,
            num_seeds=0,
            spec_sha256="5" * 64,
            device_kind="cpu",
            measured="measured here",
            state="running",
        )
    )
    (experiment,) = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments(
        filter_string="name = 'remeasure'"
    )
    assert "mlflow.sharedViewState.curves-logreg" in experiment.tags


# ---------------------------------------------------------------- a user's own


class Notes(Observer):
    """Notes the methods that are called, and raises in the one of this name."""

    def __init__(self, *, raises: str = "", project: Path | None = None) -> None:
        self.calls, self.raises, self.project = list[str](), raises, project

    def note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.raises:
            raise OSError("its server\nis down")

    def started(self, _: Path, event: Event) -> None:
        self.note(f"started {event['seed']}")

    def epoch(self, _: Path, event: Event) -> None:
        self.note(f"epoch {event['epoch']} {event['split']}")

    def finished(self, _: Path, event: Event) -> None:
        self.note(event["event"])

    def keep(self, outcome: Outcome) -> Outcome:
        self.note("keep")
        return outcome

    def close(self) -> None:
        self.note("close")


CALLS = ["started 0", "epoch 1 train", "epoch 2 train", "epoch 2 test", "finished", "keep", "close"]


@pytest.mark.parametrize("raises", CALLS)
def test_an_observer_that_fails_is_named_and_neither_the_run_nor_the_others_notice(
    raises: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, sound = Notes(raises=raises), Notes()
    with Observers([broken, sound]) as observers:
        outcome = observers.keep(trained.run(trained.spec(), tmp_path, sink=observers))
    assert outcome.record.accuracy_percent is not None
    assert broken.calls == sound.calls == CALLS
    assert capsys.readouterr().err == "observer Notes: OSError: its server; the run goes on without it\n"


def test_a_run_that_diverged_is_finished_once_with_a_reason(tmp_path: Path) -> None:
    ended: list[Event] = []

    class Endings(Observer):
        def finished(self, _: Path, event: Event) -> None:
            ended.append(event)

    wild = trained.spec("recipe.optimizer={name: sgd, lr_peak: 1.0e+30}", "recipe.clip_norm=null")
    trained.run(wild, tmp_path, sink=Endings())
    (event,) = ended
    assert event["record"]["accuracy_percent"] is None
    assert "not finite" in event["reason"]


def test_what_is_said_reaches_stderr_although_no_observer_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    Observers([Notes()]).say("mlp2-mnist failed: no room")
    assert capsys.readouterr().err == "mlp2-mnist failed: no room\n"


def test_an_observer_is_one_class_and_one_yaml(tmp_path: Path) -> None:
    """A scratch copy of the project with one file more in each of the two places."""
    project = copy_project(tmp_path, store="")
    (project.root / "src/counts.py").write_text(
        "from remeasure.tracking.observer import Observer\n"
        "class Counts(Observer):\n"
        "    def __init__(self, *, path): self.path = path\n"
        "    def finished(self, run, event): open(self.path, 'a').write(f'{run.name} {event[\"event\"]}\\n')\n"
    )
    (project.root / "conf/observer/counts.yaml").write_text(
        f"counts: {{builder: 'counts:Counts', options: {{path: {tmp_path}/counts}}}}\n"
    )
    arguments = ("data=digits", "recipe.epochs_total=1", "observer=[counts]")
    done = project.python("src/train.py", *arguments, cwd=project.root, REMEASURE_COMMIT="0" * 40)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in (tmp_path / "counts").read_text().splitlines()] == ["finished"]
    assert not (project.root / "mlflow.db").exists()  # MLflow was not among them
    assert done.stderr == ""  # nor the terminal


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"builder": "no_such_module:Thing"}, "observer.mine.builder: no_such_module:Thing cannot be imported"),
        ({"builder": "pathlib:Thing"}, "observer.mine.builder: pathlib:Thing cannot be imported"),
        ({"builder": "pathlib:Path"}, "observer.mine: pathlib:Path makes PosixPath, expected Observer"),
        ({"builder": f"{__name__}:Notes", "options": {"raise": 1}}, "unexpected keyword argument 'raise'"),
    ],
)
def test_an_observer_that_cannot_be_made_is_an_input_error(entry: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(fault)):
        build({"mine": Plugin(**entry)}, project=tmp_path)


@pytest.mark.parametrize("builder", ["pathlib", "pathlib:", ":Path", "path lib:Path", "a:b:c", ""])
def test_a_builder_is_a_module_and_a_name(builder: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"builder: expected module:name, such as package.module:Class, got {builder!r}")
    ):
        Plugin(builder=builder)
