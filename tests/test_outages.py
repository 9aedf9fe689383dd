"""Full disks, stores that die, signals: a run goes on where it can, else says why, and nothing finished is lost."""

import csv
import errno
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import event as database_event
from sqlalchemy.engine import Engine
from tests.support.project import Command, Ended, Project
from tests.support.servers import TrackingServer, tracking_server
from tests.support.suite import (
    SEEDS,
    assert_whole,
    finished_seeds,
    in_mlflow,
    small_suite,
    sqlite_uri,
    statuses,
)
from tests.support.waiting import wait_until

from remeasure.judging.reader import read_runs
from remeasure.runs import journal
from remeasure.runs.folder import read_record
from remeasure.spec.record import Event
from remeasure.system.locks import is_held
from remeasure.tracking.observer import Observer

ROW = "mlp2-digits"
EPOCHS = 20
RUN = ("train.py", "model=mlp2", "data=digits", f"recipe.epochs_total={EPOCHS}")
ALL_FAULTS = bool(os.environ.get("REMEASURE_FAULTS"))  # else those that CI has time for
CAMPAIGN = ("reproduce.py", "reproduce", ROW)


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[None]:
    """`folder` as a disk of its own; skipped where nobody lets us mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte free on the disk that `folder` is."""
    descriptor = os.open(folder / "filler", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        for size in (2**16, 2**12, 1):
            while _takes(descriptor, size=size):
                pass
    finally:
        os.close(descriptor)


def _takes(descriptor: int, *, size: int) -> bool:
    try:
        return os.write(descriptor, b"\0" * size) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


# ---------------------------------------------------------------- the store dies while a run trains

Fault = Callable[[Path], Iterator[None]]  # begins, and at the next step ends, what ails the store in this folder


def deleted(store: Path) -> Iterator[None]:
    (store / "mlflow.db").unlink()
    yield


def replaced(store: Path) -> Iterator[None]:
    """By a file that is no database."""
    aside = (store / "mlflow.db").rename(store / "aside.db")
    (store / "mlflow.db").write_text("no database")
    yield
    aside.rename(store / "mlflow.db")


def locked(store: Path) -> Iterator[None]:
    """By somebody who wants it alone for as long as the run lasts."""
    with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def full(store: Path) -> Iterator[None]:
    """The disk that it lies on."""
    fill(store)
    yield
    (store / "filler").unlink()


def without_its_files(store: Path) -> Iterator[None]:
    """A file stands where it keeps the runs' files."""
    aside = (store / "mlartifacts").rename(store / "aside")
    (store / "mlartifacts").write_text("in the way")
    yield
    (store / "mlartifacts").unlink()
    aside.rename(store / "mlartifacts")


@pytest.fixture
def impatient() -> Iterator[None]:
    """MLflow waits 20 seconds for a locked database; here a tenth of a second."""

    def shorten(_: object, __: object, statement: str, parameters: object, *___: object) -> tuple[str, object]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    database_event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield
    database_event.remove(Engine, "before_cursor_execute", shorten)


@pytest.fixture
def at_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[object]]:
    """Has a function called in the midst of a run: it has begun in MLflow, and its first point is about to be sent.

    What it returned is in the list then.
    """

    def arrange(strike: Callable[[], object]) -> list[object]:
        struck: list[object] = []
        call = Observer.__call__

        def observe(observer: Observer, directory: Path, event: Event) -> None:
            if event["event"] == "epoch" and not struck:
                struck.append(strike())
            call(observer, directory, event)

        monkeypatch.setattr(Observer, "__call__", observe)
        return struck

    return arrange


Arrange = Callable[[Callable[[], object]], list[object]]


def assert_went_on_and_is_behind(ended: Ended, *, project: Project) -> None:
    """The run ended as if nothing were, its record is whole, and one line says what is to be done."""
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("tracking is behind: ")]
    assert line.endswith("; `make track` completes it")
    (directory,) = project.runs.glob("mlp2-*")
    assert read_record(directory).num_correct is not None  # and InputError where a file of it is not whole


def assert_complete(uri: str) -> None:
    """The run is finished in MLflow, with each of its points once and with its files."""
    client = MlflowClient(uri)
    (run,) = [run for run in in_mlflow(uri) if run.data.tags["model"] == "mlp2" and "seed" in run.data.tags]
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, EPOCHS + 1))
    assert "test/accuracy_percent" in run.data.metrics
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} >= {"record.json", "config.yaml"}
    assert set(statuses(uri).values()) == {"FINISHED"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return small_suite(tmp_path / "project", rows=[ROW])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [deleted, replaced, locked, full, without_its_files])
def test_a_run_whose_database_fails_goes_on_and_track_completes_mlflow(
    fault: Fault,
    project: Project,
    here: Command,
    at_the_first_epoch: Arrange,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    with small_disk(store, megabytes=64) if fault is full else nullcontext():
        store.mkdir(exist_ok=True)
        shutil.copy(empty_store, store)
        outage = fault(store)
        struck = at_the_first_epoch(lambda: next(outage))
        ended = here(project, *RUN)
        assert struck
        assert_went_on_and_is_behind(ended, project=project)
        next(outage, None)
        if fault is deleted:  # which MLflow still has open in this process
            done = project.run(
                "reproduce.py", "track", cwd=tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db"
            )
            assert done.returncode == 0, done.stderr
        else:
            assert here(project, "reproduce.py", "track").status == 0
        assert_complete(f"sqlite:///{shutil.copy(store / 'mlflow.db', tmp_path)}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TrackingServer]:
    (tmp_path / "server").mkdir()
    with tracking_server(tmp_path / "server", backend=f"sqlite:///{tmp_path}/server/mlflow.db") as server:
        yield server


def test_a_run_whose_tracking_server_is_killed_goes_on_and_track_completes_mlflow(
    server: TrackingServer,
    project: Project,
    here: Command,
    at_the_first_epoch: Arrange,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    struck = at_the_first_epoch(server.kill)
    ended = here(project, *RUN)
    assert struck
    assert_went_on_and_is_behind(ended, project=project)
    server.start()
    assert here(project, "reproduce.py", "track").status == 0
    assert_complete(server.uri)


def test_a_database_that_is_locked_from_the_start_does_not_keep_a_run_from_training(
    project: Project, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = sqlite_uri(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}?timeout=0.1")  # SQLite's own patience, 5 s by default
    outage = locked(project.root)
    next(outage)
    assert_went_on_and_is_behind(here(project, *RUN), project=project)
    refused = here(project, "reproduce.py", "track")
    assert refused.status == 2
    assert "locked" in refused.stderr
    next(outage, None)
    assert here(project, "reproduce.py", "track").status == 0
    assert_complete(uri)


# ---------------------------------------------------------------- nothing can go on


def stays_full_until_it_ends(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    """What the process said on stderr."""
    while process.poll() is None:
        fill(folder)
    return said(process)


def stays_read_only_until_it_ends(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    wait_until(lambda: remounted(folder, "ro") or process.poll() is not None)
    return said(process)


def remounted(folder: Path, how: str) -> bool:
    """False while somebody writes to it."""
    command = ["mount", "-o", f"remount,{how}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def said(process: "subprocess.Popen[bytes]") -> str:
    _, stderr = process.communicate(timeout=300)
    return stderr.decode()


DISKS = [
    ("runs", stays_full_until_it_ends, "No space left on device"),
    ("results", stays_read_only_until_it_ends, "Read-only file system"),
]
MORE_DISKS = [("results", stays_full_until_it_ends, "No space left on device")]


@pytest.mark.parametrize(("place", "ail", "fault"), DISKS + MORE_DISKS * ALL_FAULTS)
def test_a_campaign_that_cannot_write_says_where_and_goes_on_once_it_can(
    place: str, ail: Callable[["subprocess.Popen[bytes]", Path], str], fault: str, project: Project, here: Command
) -> None:
    """With exit status 1 and a line instead of a traceback; what was finished before is not trained again."""
    folder = project.root / place
    with small_disk(folder, megabytes=4):
        process = project.start(*CAMPAIGN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_until(lambda: finished_seeds(project) >= 1 and (project.root / f"results/sums/{ROW}.sha256").exists())
        stderr = ail(process, folder)
        assert process.returncode == 1, stderr
        assert "Traceback" not in stderr
        assert any(fault in line and str(folder) in line for line in stderr.splitlines()), stderr
        finished = [path.parent for path in project.runs.glob("*/record.json")]
        assert 0 < len(finished) < len(SEEDS), stderr
        kept = {directory: read_record(directory).predicted_sha256 for directory in finished}
        if place == "results" and ail is stays_read_only_until_it_ends:
            refused = here(project, *CAMPAIGN)
            assert (refused.status, str(folder) in refused.stderr, fault in refused.stderr) == (2, True, True)
            assert remounted(folder, "rw")
        (folder / "filler").unlink(missing_ok=True)
        again = here(project, *CAMPAIGN)
        assert again.status == 0, again.stderr
        assert {directory: read_record(directory).predicted_sha256 for directory in finished} == kept
        assert_whole(project, uri=sqlite_uri(project), rows=[ROW])


# ---------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Project]:
    """A project whose campaign was ended by this signal when some of its five seeds were finished."""
    folder = tmp_path_factory.mktemp("cut")

    def cut(number: int) -> Project:
        project = small_suite(folder / signal.Signals(number).name, rows=[ROW], epochs=200)
        process = project.start(*CAMPAIGN, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_until(lambda: (project.root / f"results/sums/{ROW}.sha256").exists() and trains(project))
        process.send_signal(number)
        stderr = said(process)
        assert process.returncode == (128 + number if number == signal.SIGTERM else -number), stderr
        assert "tracking is behind" not in stderr
        return project

    return functools.cache(cut)


def trains(project: Project) -> bool:
    """Whether a run is in the midst of it."""
    last = [journal.read(path.parent)[-1] for path in project.runs.glob("*/journal.jsonl")]
    return any(event["event"] == "epoch" and event["epoch"] < 50 for event in last)


def copied(project: Project, folder: Path) -> Project:
    shutil.copytree(project.root, folder)
    return Project(root=folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_row_half_measured_is_shown_as_such(
    number: int, cut: Callable[[int], Project], here: Command, tmp_path: Path
) -> None:
    """In the table, on the terminal and in MLflow."""
    project = copied(cut(number), tmp_path / "project")
    ended = here(project, "reproduce.py", "table")
    assert ended.status == 0, ended.stderr
    with (project.root / "results/table.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    seeds = [record.seed for record in read_runs(project.root / "results", row=ROW)]
    assert 0 < len(seeds) < len(SEEDS)
    assert line["verdict"] == "undecided"
    missing = sorted(set(range(max(seeds))) - set(seeds))
    reason = f"{len(seeds)} of 5 seeds of the first look" if not missing else "missing"
    assert reason in line["reason"]
    assert f"{ROW}: {line['reason']}" in ended.stdout
    assert here(project, "reproduce.py", "track").status == 0
    (parent,) = [run for run in in_mlflow(sqlite_uri(project)) if run.info.run_name == ROW]
    assert {key: parent.data.tags[key] for key in ("verdict", "reason")} == {
        key: line[key] for key in ("verdict", "reason")
    }


def test_after_sigterm_every_run_is_marked_in_mlflow(cut: Callable[[int], Project]) -> None:
    """Those under way, and their row with its verdict so far, as killed; the finished ones as finished."""
    project = cut(signal.SIGTERM)
    found = statuses(sqlite_uri(project))
    ends = {path.parent: journal.read(path.parent)[-1]["event"] for path in project.runs.glob("*/journal.jsonl")}
    assert set(ends.values()) == {"finished", "interrupted"}
    names = {directory: f"{ROW} seed {journal.read(directory)[0]['seed']:03d}" for directory in ends}
    status = {"finished": "FINISHED", "interrupted": "KILLED"}
    assert found == {ROW: "KILLED", **{names[directory]: status[end] for directory, end in ends.items()}}


@pytest.mark.parametrize(
    "command",
    [
        ("train.py", "model=logreg", "data=digits"),
        ("reproduce.py", "track"),
        ("reproduce.py", "reproduce", ROW, "--budget", "0s"),
    ],
)
def test_what_sigkill_left_running_is_closed_by_the_next_start_of_any_command(
    command: tuple[str, ...], cut: Callable[[int], Project], here: Command, tmp_path: Path
) -> None:
    killed = cut(signal.SIGKILL)
    wait_until(lambda: not any(under_way(directory) for directory in killed.runs.glob("*-a1")))
    assert "RUNNING" in statuses(sqlite_uri(killed)).values()
    project = copied(killed, tmp_path / "project")
    ended = here(project, *command)
    assert ended.status == 0, ended.stderr
    found = statuses(sqlite_uri(project))
    assert "RUNNING" not in found.values()
    for path in project.runs.glob("mlp2*/journal.jsonl"):
        events = journal.read(path.parent)
        cut_short = not (path.parent / "record.json").exists()
        assert events[-1]["event"] == ("interrupted" if cut_short else "finished")
        assert found[f"{ROW} seed {events[0]['seed']:03d}"] == ("KILLED" if cut_short else "FINISHED")


def under_way(directory: Path) -> bool:
    """A worker outlives a killed parent by a second."""
    return is_held(directory / "lock")
