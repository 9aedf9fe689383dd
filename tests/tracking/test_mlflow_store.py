"""MLflow as a projection: nothing is sent twice, nothing stays missing, and no trouble with it reaches a run."""

import getpass
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.forking import client as forking
from tests.support.project import CHECKOUT

from remeasure.judging.records import SeedResults
from remeasure.runs import journal
from remeasure.spec.base import InputError
from remeasure.spec.claim import Published, Row, Rule, Source, Verdict
from remeasure.spec.record import CurvePoint, FoundPoint, RunRecord
from remeasure.system import redaction
from remeasure.tracking import mlflow_runs, mlflow_store, views
from remeasure.tracking.best_effort import BestEffort
from remeasure.tracking.mlflow_runs import Tracker
from remeasure.tracking.observer import Standing

pytestmark = pytest.mark.skipif(not mlflow_store.available(), reason="mlflow is not installed")

SPEC = "5" * 64
FINGERPRINT = "0123456789abcdef" * 4
T0_MS = 1_795_269_600_000  # `date -u -d 2026-11-21T14:00:00Z +%s`, in milliseconds

CONFIG: dict[str, Any] = {
    "row": "mlp2-mnist",
    "seed": 3,
    "model": {"name": "mlp2", "builder": "mlp", "options": {"widths": [256]}},
    "data": {
        "name": "mnist",
        "title": "MNIST, the official files",
        "split": "test",
        "known_copies": {FINGERPRINT: "a copy"},
    },
    "recipe": {"name": "article", "epochs_total": 2, "clip_norm": None},
    "precision": "float32",
    "engine": "serial",
    "data_sha256": FINGERPRINT,
}

STARTED = {
    **{"event": "started", "time": "2026-11-21T14:00:00Z", "run_id": "run-a", "row": "mlp2-mnist", "seed": 3},
    **{"model": "mlp2", "data": "mnist", "recipe": "article", "spec_sha256": SPEC, "device": "a CPU"},
    **{"device_kind": "cpu", "commit": "c0ffee", "dirty": True, "data_official": "yes", "data_sha256": FINGERPRINT},
}


def epoch(number: int, *, loss: float, accuracy: float, lr: float | None, split: str = "train") -> dict[str, Any]:
    """An epoch event, `number` seconds after the start."""
    values = {"loss": loss, "accuracy_percent": accuracy, "lr": lr, "seconds": 1.0}
    stamp = f"2026-11-21T14:00:{number:02d}Z"
    return {"event": "epoch", "time": stamp, "epoch": number, "step": 10 * number, "split": split, **values}


EPOCHS = [epoch(1, loss=0.5, accuracy=90.0, lr=0.001), epoch(2, loss=0.25, accuracy=95.0, lr=0.0005)]
TESTED = epoch(2, loss=0.375, accuracy=97.5, lr=None, split="test")


def make_record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        **{"row": "mlp2-mnist", "seed": 3, "spec_sha256": SPEC, "training_version": 1, "accuracy_percent": 97.5},
        **{"num_correct": 39, "num_test": 40, "loss": 0.375, "num_params": 203530, "epochs": 2, "wall_seconds": 2.5},
        **{"device": "a CPU", "device_kind": "cpu", "data_sha256": FINGERPRINT, "data_official": "yes"},
        **{"commit": "c0ffee", "dirty": False, "versions_sha256": "e" * 64, "predicted_sha256": "f" * 64},
        **{"mlflow_run_id": "", "finished_at": "2026-11-21T14:00:03Z"},
    }
    return RunRecord(**{**values, **changes})


def finished(record: RunRecord) -> dict[str, Any]:
    return {"event": "finished", "time": "2026-11-21T14:00:03Z", "record": vars(record)}


def append(directory: Path, *events: dict[str, Any]) -> None:
    with (directory / "journal.jsonl").open("a") as file:
        file.writelines(map(journal.encode, events))


def make_run(parent: Path, *events: dict[str, Any], config: dict[str, Any] = CONFIG, name: str = "run-a") -> Path:
    directory = parent / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "environment.json").write_text("{}")
    append(directory, {**STARTED, "run_id": name}, *events)
    return directory


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root with an empty store, and a working directory elsewhere."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(empty_store, project / "mlflow.db")
    return project


@pytest.fixture
def tracker(root: Path) -> Tracker:
    return mlflow_runs.open_tracker(root)


def rows(root: Path, query: str) -> list[tuple[Any, ...]]:
    """What SQLite itself says is in the store."""
    connection = sqlite3.connect(root / "mlflow.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def points(root: Path, metric: str) -> list[tuple[Any, ...]]:
    """(step, value, milliseconds after the start), in order."""
    query = f"SELECT step, value, timestamp - {T0_MS} FROM metrics WHERE key = '{metric}' ORDER BY step, timestamp"
    return rows(root, query)


def tags(root: Path, run_id: str) -> dict[str, str]:
    return dict(rows(root, f"SELECT key, value FROM tags WHERE run_uuid = '{run_id}'"))


def status(root: Path) -> list[tuple[Any, ...]]:
    """(status, start, end) of every run, in milliseconds after the start."""
    return rows(root, f"SELECT status, start_time - {T0_MS}, end_time - {T0_MS} FROM runs")


def everything(root: Path) -> list[list[tuple[Any, ...]]]:
    """All that the store holds of runs."""
    tables = ("runs", "metrics", "params", "tags", "datasets", "inputs", "latest_metrics")
    return [sorted(rows(root, f"SELECT * FROM {table}"), key=repr) for table in tables]


def environment() -> dict[str, str]:
    """That of another process with this package on its path."""
    environment = forking.environment(PYTHONPATH=str(Path(mlflow_store.__file__).parents[2]))
    environment.pop("MLFLOW_TRACKING_URI", None)
    return environment


# ---------------------------------------------------------------- where


def test_importing_this_room_costs_no_mlflow() -> None:
    code = "import sys, remeasure.tracking.mlflow_store as t; t.available(); sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


def test_a_machine_without_mlflow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert not mlflow_store.available()


def test_the_users_tracking_uri_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert mlflow_store.store_uri(Path("/project")) == "http://tracking.example:5000"


def test_the_store_is_at_the_project_root_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert mlflow_store.store_uri(Path("..")) == f"sqlite:///{tmp_path}/mlflow.db"  # an absolute path: four slashes


def test_a_project_in_a_folder_of_any_name_has_its_store_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a URI a % begins an escape and a # a fragment; behind a ?, MLflow would cut the path off."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (project := tmp_path / "50%_dönë #1 & @2").mkdir()
    uri = mlflow_store.store_uri(project)
    mlflow_store.Store(uri, artifact_root=mlflow_store.artifact_root(uri, project_root=project))
    assert sorted(path.name for path in project.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        ((found,),) = connection.execute("SELECT artifact_location FROM experiments WHERE name = 'remeasure'")
    assert found == (project / "mlartifacts").as_uri()
    with pytest.raises(InputError, match=r"why\?/mlflow.db: MLflow's database cannot lie in a folder with a \? in its"):
        mlflow_store.store_uri(tmp_path / "why?")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////data/store/my.db", Path("/data/store/mlartifacts")),
        ("postgresql://host/db", Path("/project/mlartifacts")),
        ("http://host:5000", None),
        ("databricks", None),
    ],
)
def test_artifacts_go_beside_the_database_or_where_the_server_says(uri: str, expected: Path | None) -> None:
    assert mlflow_store.artifact_root(uri, project_root=Path("/project")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:se/cr@t@host/db", "postgresql://***@host/db"),
        ("no http://token@host:80/x today", "no http://***@host:80/x today"),
        ("http://host/x", "http://host/x"),
    ],
)
def test_passwords_are_masked(text: str, expected: str) -> None:
    assert redaction.masked(text) == expected


def test_an_unreachable_server_is_an_input_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        mlflow_store.Store("http://me:hunter2@127.0.0.1:9", artifact_root=None)
    assert time.monotonic() - began < 60  # by MLflow's own settings it takes two minutes
    assert "http://***@127.0.0.1:9 " in caught.value.faults[0]
    assert "MLFLOW_TRACKING_URI" in caught.value.faults[1]
    assert "hunter2" not in str(caught.value)


def test_the_ui_is_not_started_at_a_port_in_use(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=rf"^port {port}: Address already in use; --port "):
            mlflow_store.serve(root, port=port)


def test_the_first_page_has_all_runs_until_a_row_is_measured(tracker: Tracker) -> None:
    """A single run is none of the rows' view, which would be empty."""
    store = tracker.store
    store.client.create_run(store.experiment_id, tags={"model": "mlp2"})
    assert mlflow_store.first_link(store) == f"/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    store.client.create_run(store.experiment_id, tags={views.CAMPAIGN_TAG: "reproduce"})
    assert mlflow_store.first_link(store).endswith("&viewStateShareKey=verdicts")


@pytest.mark.parametrize(("name", "fault"), [("text", "file is not a database"), ("folder", "unable to open database")])
def test_what_is_no_database_is_an_input_error_within_seconds(tmp_path: Path, name: str, fault: str) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be read as the header of one\n" * 50)
    (tmp_path / "folder").mkdir()
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"sqlite:///.*/{name} cannot be used: .*{fault}"):
        mlflow_store.Store(f"sqlite:///{tmp_path}/{name}", artifact_root=tmp_path)
    assert time.monotonic() - began < 15


def test_a_deleted_experiment_is_an_input_error_that_says_how_to_restore_it(root: Path, tracker: Tracker) -> None:
    tracker.store.client.delete_experiment(tracker.store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore --experiment-id 1"):
        mlflow_runs.open_tracker(root)


def test_a_project_path_with_odd_characters_works(root: Path, empty_store: Path) -> None:
    odd = root / "a b#c ü"
    odd.mkdir()
    shutil.copy(empty_store, odd / "mlflow.db")
    run_id = mlflow_runs.open_tracker(odd).project(make_run(odd / "runs"))
    assert (odd / "mlartifacts" / run_id / "artifacts" / "config.yaml").is_file()
    assert len(rows(odd, "SELECT * FROM runs")) == 1


def addresses(root: Path, *, kind: str) -> list[str]:
    """The addresses of files in the store: of the experiment, or of its runs."""
    table, column = {"experiment": ("experiments", "artifact_location"), "run": ("runs", "artifact_uri")}[kind]
    return [address for (address,) in rows(root, f"SELECT {column} FROM {table}") if "mlruns" not in address]


def test_files_follow_a_project_that_was_renamed_or_copied(root: Path, tracker: Tracker) -> None:
    run_id = tracker.project(make_run(root / "runs"))
    renamed, copied = root.with_name("renamed [1] %"), root.with_name("copied")
    shutil.copytree(root, copied)
    root.rename(renamed)
    for place in (renamed, copied):
        again = mlflow_runs.open_tracker(place)
        second = again.project(make_run(place / "runs", name="run-b"))
        assert sorted(path.name for path in (place / "mlartifacts").iterdir()) == sorted([run_id, second])
        assert [entry.path for entry in again.store.client.list_artifacts(run_id)] == [
            "config.yaml",
            "environment.json",
        ]
        assert addresses(place, kind="experiment") == [(place / "mlartifacts").as_uri()]
    assert not root.exists()


def test_files_that_a_user_keeps_elsewhere_stay_there(root: Path, tracker: Tracker) -> None:
    run_id = tracker.project(make_run(root / "runs"))
    with sqlite3.connect(root / "mlflow.db") as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = 's3://bucket/mlartifacts' WHERE name = 'remeasure'"
        )
        connection.execute("UPDATE runs SET artifact_uri = 's3://bucket/mlartifacts/' || run_uuid")
    connection.close()
    mlflow_runs.open_tracker(root)
    assert addresses(root, kind="experiment") == ["s3://bucket/mlartifacts"]
    assert addresses(root, kind="run") == [f"s3://bucket/mlartifacts/{run_id}"]


# ---------------------------------------------------------------- one run


def test_a_finished_run_is_in_the_store_as_journaled(root: Path, tracker: Tracker, tmp_path: Path) -> None:
    directory = make_run(root / "runs", *EPOCHS, TESTED, finished(make_record()))
    (directory / "record.json").write_text(json.dumps(vars(make_record())))
    (directory / "checkpoint.ckpt").write_text("large")
    run_id = tracker.project(directory)
    assert status(root) == [("FINISHED", 0, 3000)]
    assert points(root, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]
    assert points(root, "train/accuracy_percent") == [(1, 90.0, 1000), (2, 95.0, 2000)]
    assert points(root, "train/lr") == [(1, 0.001, 1000), (2, 0.0005, 2000)]
    assert points(root, "test/accuracy_percent") == [(2, 97.5, 2000)]
    assert points(root, "test/loss") == [(2, 0.375, 2000)]
    assert points(root, "run/wall_seconds") == [(2, 2.5, 3000)]
    assert points(root, "test/num_correct") == [(2, 39.0, 3000)]
    assert rows(root, "SELECT value FROM params WHERE key = 'num_params'") == [("203530",)]
    stored = sorted(path.name for path in (root / "mlartifacts" / run_id / "artifacts").iterdir())
    assert stored == ["config.yaml", "environment.json", "journal.jsonl", "record.json"]
    assert list((tmp_path / "elsewhere").iterdir()) == []  # the working directory stays clean


def test_a_run_can_be_filtered_by_what_it_is(root: Path, tracker: Tracker) -> None:
    run_id = tracker.project(make_run(root / "runs"))
    expected = {
        **{"row": "mlp2-mnist", "seed": "3", "model": "mlp2", "data": "mnist", "recipe": "article"},
        **{"spec_sha256": SPEC, "device": "a CPU", "device_kind": "cpu", "data_official": "yes", "dirty": "true"},
        **{"mlflow.source.git.commit": "c0ffee", "mlflow.runName": "mlp2-mnist seed 003", "remeasure.run_id": "run-a"},
        **{"engine": "serial", "precision": "float32", "measured": "measured here", "outcome": "running"},
        **{"mlflow.user": getpass.getuser(), "mlflow.source.name": "src/reproduce.py"},
    }
    found = tags(root, run_id)
    assert {key: found.get(key) for key in expected} == expected


def test_the_settings_are_parameters_without_nulls_and_checksums(root: Path, tracker: Tracker) -> None:
    tracker.project(make_run(root / "runs"))
    params = dict(rows(root, "SELECT key, value FROM params"))
    assert params["model.options.widths"] == "[256]"
    assert params["recipe.epochs_total"] == "2"
    assert params["model.builder"] == "mlp"
    assert (params["row"], params["seed"]) == ("mlp2-mnist", "3")
    assert params.keys().isdisjoint({"recipe.clip_norm", "data_sha256", f"data.known_copies.{FINGERPRINT}"})


def test_the_data_are_inputs_with_their_fingerprint(root: Path, tracker: Tracker) -> None:
    tracker.project(make_run(root / "runs"))
    found = rows(root, "SELECT name, digest, dataset_profile FROM datasets ORDER BY name")
    assert [(name, digest) for name, digest, _ in found] == [
        ("mnist-test", "0123456789abcdef0123456789abcdef0123"),
        ("mnist-train", "0123456789abcdef0123456789abcdef0123"),
    ]
    assert json.loads(found[0][2])["title"] == "MNIST, the official files"
    assert json.loads(found[0][2])["known_copy"] == "a copy"


def test_a_run_outside_the_ledger_is_named_after_model_and_data(root: Path, tracker: Tracker) -> None:
    directory = root / "run-a"
    directory.mkdir()
    append(directory, {**STARTED, "row": ""})
    assert tags(root, tracker.project(directory))["mlflow.runName"] == "mlp2-mnist seed 003"


def test_large_configs_and_long_curves_arrive_whole(root: Path, tracker: Tracker) -> None:
    config = {**CONFIG, "extra": {f"key {i}": "x" * 9000 for i in range(230)}, "odd[key]": 1}
    curve = [{**EPOCHS[0], "epoch": number} for number in range(700)]
    tracker.project(make_run(root / "runs", *curve, config=config))
    lengths = rows(root, "SELECT length(value) FROM params WHERE key LIKE 'extra.%'")
    assert lengths == [(500,)] * 230
    assert rows(root, "SELECT value FROM params WHERE key = 'odd_key_'") == [("1",)]
    assert rows(root, "SELECT count(*) FROM metrics WHERE key = 'train/lr'") == [(700,)]


def test_a_tuning_run_shows_no_test_accuracy(root: Path, tracker: Tracker) -> None:
    config = {**CONFIG, "data": {**CONFIG["data"], "split": "validation"}}
    tracker.project(make_run(root / "runs", *EPOCHS, finished(make_record()), config=config))
    assert points(root, "validation/accuracy_percent") == [(2, 97.5, 3000)]
    assert points(root, "test/accuracy_percent") == []


def test_a_validation_curve_has_a_point_an_epoch_beside_the_training(root: Path, tracker: Tracker) -> None:
    held_back = {"image_shape": [1, 2, 2], "num_classes": 4, "num_train": 50, "num_validation": 10, "num_test": 40}
    validated = [epoch(n, loss=0.5 / n, accuracy=90.0 + n, lr=None, split="validation") for n in (1, 2)]
    events = (validated[0], EPOCHS[0], validated[1], EPOCHS[1], TESTED, finished(make_record()))
    tracker.project(make_run(root / "runs", *events, config={**CONFIG, "data": {**CONFIG["data"], **held_back}}))
    assert points(root, "validation/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]
    assert points(root, "validation/accuracy_percent") == [(1, 91.0, 1000), (2, 92.0, 2000)]
    assert [step for step, *_ in points(root, "train/loss")] == [1, 2]
    assert [step for step, *_ in points(root, "test/loss")] == [2]
    assert rows(root, "SELECT name, dataset_profile ->> 'num_images' FROM datasets ORDER BY name") == [
        ("mnist-test", 40),
        ("mnist-train", 40),
        ("mnist-validation", 10),
    ]


def test_projecting_again_changes_nothing(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", *EPOCHS, TESTED, finished(make_record()))
    run_id = tracker.project(directory)
    before = everything(root)
    assert tracker.project(directory) == run_id
    assert everything(root) == before
    assert mlflow_runs.open_tracker(root).project(directory) == run_id  # knows nothing but what the store says
    assert everything(root) == before
    assert len(before[1]) == 10  # 3 training metrics twice, test accuracy and loss, 2 of the record


def test_a_live_run_grows_epoch_by_epoch(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs")
    tracker.project(directory)
    assert points(root, "train/loss") == []
    append(directory, EPOCHS[0])
    tracker.project(directory)
    assert points(root, "train/loss") == [(1, 0.5, 1000)]
    append(directory, EPOCHS[1])
    tracker.project(directory)
    assert points(root, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]
    assert status(root) == [("RUNNING", 0, None)]


@pytest.mark.parametrize("same_process", [True, False])
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(root: Path, tracker: Tracker, same_process: bool) -> None:
    directory = make_run(root / "runs", *EPOCHS)
    append(directory, {"event": "interrupted", "time": "2026-11-21T14:00:09Z", "signal": "SIGTERM"})
    run_id = tracker.project(directory)
    assert status(root) == [("KILLED", 0, 9000)]
    assert tags(root, run_id)["outcome"] == "interrupted: SIGTERM"
    tracker = tracker if same_process else mlflow_runs.open_tracker(root)
    append(
        directory, {"event": "resumed", "time": "2026-11-21T14:01:00Z"}, {**EPOCHS[1], "time": "2026-11-21T14:01:01Z"}
    )
    assert tracker.project(directory) == run_id
    assert status(root)[0][0] == "RUNNING"
    append(directory, {**finished(make_record()), "time": "2026-11-21T14:01:02Z"})
    assert tracker.project(directory) == run_id
    assert status(root) == [("FINISHED", 0, 62_000)]
    assert points(root, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]  # the epoch journaled twice is there once
    stored = root / "mlartifacts" / run_id / "artifacts" / "journal.jsonl"
    assert stored.read_text() == (directory / "journal.jsonl").read_text()


def test_an_epoch_that_came_out_differently_on_resume_is_corrected(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", *EPOCHS)
    tracker.project(directory)
    append(directory, {**EPOCHS[1], "time": "2026-11-21T14:01:01Z", "loss": 0.125})
    tracker.project(directory)
    assert rows(root, "SELECT value, step FROM latest_metrics WHERE key = 'train/loss'") == [(0.125, 2)]
    before = everything(root)
    mlflow_runs.open_tracker(root).project(directory)
    assert everything(root) == before


def test_a_diverged_run_failed_and_says_why(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", epoch(1, loss=math.nan, accuracy=10.0, lr=math.inf))
    nothing = make_record(accuracy_percent=None, num_correct=None, loss=None, predicted_sha256=None)
    append(directory, {"event": "diverged", "time": "2026-11-21T14:00:02Z", "reason": "loss is nan"}, finished(nothing))
    run_id = tracker.project(directory)
    assert status(root) == [("FAILED", 0, 3000)]
    assert tags(root, run_id)["outcome"] == "diverged: loss is nan"
    assert rows(root, "SELECT is_nan FROM metrics WHERE key = 'train/loss'") == [(1,)]
    assert points(root, "test/accuracy_percent") == []
    before = everything(root)
    mlflow_runs.open_tracker(root).project(directory)
    assert everything(root) == before  # although nan is not equal to nan


def test_a_crashed_run_failed_and_says_why(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", {"event": "failed", "time": "2026-11-21T14:00:05Z", "reason": "out of memory"})
    run_id = tracker.project(directory)
    assert status(root) == [("FAILED", 0, 5000)]
    assert tags(root, run_id)["outcome"] == "failed: out of memory"


def test_a_torn_journal_is_projected_up_to_the_tear(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", *EPOCHS)
    with (directory / "journal.jsonl").open("a") as file:
        file.write('{"event": "epoch", "ti')
    tracker.project(directory)
    assert points(root, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]


def test_a_journal_that_has_not_begun_makes_no_run(root: Path, tracker: Tracker) -> None:
    (root / "run-a").mkdir()
    assert tracker.project(root / "run-a") == ""
    (root / "run-a" / "journal.jsonl").write_text('{"event": "star')
    assert tracker.project(root / "run-a") == ""
    assert rows(root, "SELECT * FROM runs") == []


def test_a_deleted_database_is_noticed_and_a_new_one_gets_everything(
    root: Path, tracker: Tracker, empty_store: Path, tmp_path: Path
) -> None:
    directory = make_run(root / "runs", EPOCHS[0])
    tracker.project(directory)
    (root / "mlflow.db").unlink()
    append(directory, EPOCHS[1])
    with pytest.raises(OSError, match=r"mlflow\.db was deleted or replaced"):
        tracker.project(directory)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(empty_store, fresh / "mlflow.db")
    mlflow_runs.open_tracker(fresh).project(directory)
    assert points(fresh, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]


def test_a_send_that_broke_in_the_middle_is_completed(
    root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_run(root / "runs", *EPOCHS, finished(make_record()))

    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(tracker.store.client, "log_artifact", no_space)
        with pytest.raises(OSError, match="No space left"):
            tracker.project(directory)
    assert status(root) == [("RUNNING", 0, None)]  # not finished before all of it is there
    run_id = tracker.project(directory)
    assert status(root) == [("FINISHED", 0, 3000)]
    assert points(root, "train/loss") == [(1, 0.5, 1000), (2, 0.25, 2000)]
    assert (root / "mlartifacts" / run_id / "artifacts" / "config.yaml").is_file()


def test_a_run_that_someone_deleted_is_made_again(root: Path, tracker: Tracker) -> None:
    directory = make_run(root / "runs", *EPOCHS)
    deleted = tracker.project(directory)
    tracker.store.client.delete_run(deleted)
    append(directory, finished(make_record()))
    best_effort = BestEffort()
    run_id = best_effort.at_once(tracker.project, directory) or best_effort.at_once(tracker.project, directory)
    assert run_id not in ("", deleted)
    assert len(rows(root, f"SELECT * FROM metrics WHERE run_uuid = '{run_id}' AND key = 'train/loss'")) == 2


# ---------------------------------------------------------------- rows and committed records

ROW = Row(
    name="mlp2-mnist",
    model="mlp2",
    data="mnist",
    recipe="article",
    mode="train",
    published=Published(
        accuracy_percent=97.5,
        num_digits=1,
        num_params_text="0.2M",
        num_runs=None,
        selection=None,
        sources=(Source(citation="the article", where="table", says="97.5", grade="unsourced"),),
        notes="",
    ),
    rule=Rule(margin_pp=0.25),
)
REPRODUCED = Verdict(
    verdict="reproduced",
    reason="",
    num_seeds=5,
    mean_percent=97.625,
    sd_percent=0.0625,
    interval_low_percent=97.5,
    interval_high_percent=97.75,
)


def project_row(tracker: Tracker, verdict: Verdict, *, running: bool = False) -> str:
    return tracker.project_row(
        Standing(
            row=ROW,
            verdict=verdict,
            num_seeds=verdict.num_seeds + 2,
            spec_sha256=SPEC,
            device_kind="cpu",
            measured="measured here",
            state="running" if running else "finished",
        )
    )


def test_a_row_is_one_parent_run_with_its_verdict(root: Path, tracker: Tracker) -> None:
    run_id = project_row(tracker, REPRODUCED)
    latest = dict(rows(root, "SELECT key, value FROM latest_metrics"))
    assert latest == {
        **{"row/mean_percent": 97.625, "row/sd_percent": 0.062, "row/published_percent": 97.5, "row/gap_pp": 0.125},
        **{"row/interval_low_percent": 97.5, "row/interval_high_percent": 97.75},
        **{"row/num_seeds": 7.0, "row/num_seeds_judged": 5.0},
    }
    expected = {"row": "mlp2-mnist", "verdict": "reproduced", "reason": "", "measured": "measured here"}
    found = tags(root, run_id)
    assert {key: found.get(key) for key in expected} == expected
    assert found["remeasure.campaign"] == "mlp2-mnist/555555555555/cpu"


def test_a_row_is_updated_in_place(root: Path, tracker: Tracker) -> None:
    begun = Verdict(verdict="undecided", reason="below the first look", num_seeds=0)
    run_id = project_row(tracker, begun, running=True)
    assert rows(root, "SELECT status FROM runs") == [("RUNNING",)]
    for _ in range(2):
        assert project_row(tracker, REPRODUCED) == run_id
        assert project_row(mlflow_runs.open_tracker(root), REPRODUCED) == run_id
    assert rows(root, "SELECT status FROM runs") == [("FINISHED",)]
    assert tags(root, run_id)["verdict"] == "reproduced"
    assert tags(root, run_id)["reason"] == ""
    assert len(points(root, "row/mean_percent")) == 1
    assert [value for _, value, _ in points(root, "row/num_seeds_judged")] == [0.0, 5.0]
    fresh = Verdict(verdict="undecided", reason="", num_seeds=2, mean_percent=97.0)
    assert project_row(tracker, fresh) == run_id  # a fresh campaign has fewer seeds, and is what counts
    assert rows(root, "SELECT value FROM latest_metrics WHERE key = 'row/mean_percent'") == [(97.0,)]


def test_the_views_are_of_the_rows_in_the_store_and_find_their_seeds(root: Path, tracker: Tracker) -> None:
    client, experiment_id = tracker.store.client, tracker.store.experiment_id
    vit = views.Measured(row="vit-imagenet", model="vit", published_percent=81.8)
    usual = views.experiment_tags([vit], experiment_id=experiment_id)
    for key, value in (usual | {"mlflow.sharedViewState.0f3a": '{"name": "a user\'s"}'}).items():
        client.set_experiment_tag(experiment_id, key, value)
    parent_id = project_row(tracker, REPRODUCED)
    for _ in range(2):
        tracker.describe()
    names = [key.removeprefix("mlflow.sharedViewState.") for key in client.get_experiment(experiment_id).tags]
    assert sorted(name for name in names if "." not in name) == ["0f3a", "curves-mlp2", "running", "verdicts"]
    seed_id = tracker.project(make_run(root), parent_id=parent_id)
    outside = root / "run-b"
    outside.mkdir()
    append(outside, {**STARTED, "row": "", "run_id": "run-b"})
    tracker.project(outside)
    replaced = make_run(root, finished(make_record()), name="run-a1")
    (later := root / "run-a2").mkdir()
    (later / "record.json").touch()
    tracker.project(replaced)
    seeds = "tags.`model` = 'mlp2' AND params.row LIKE '%' AND tags.outcome != 'replaced'"
    found = client.search_runs([experiment_id], filter_string=seeds)
    assert [run.info.run_id for run in found] == [seed_id]


def test_seeds_hang_below_their_row(root: Path, tracker: Tracker) -> None:
    parent = project_row(tracker, REPRODUCED)
    directory = make_run(root / "runs")
    run_id = tracker.project(directory)
    assert "mlflow.parentRunId" not in tags(root, run_id)
    assert tracker.project(directory, parent_id=parent) == run_id
    assert tags(root, run_id)["mlflow.parentRunId"] == parent
    assert tracker.project(directory) == run_id
    assert tags(root, run_id)["mlflow.parentRunId"] == parent
    assert tags(root, run_id)["mlflow.runName"] == "seed 003"  # the row's name is that of the run above it


def project_record(tracker: Tracker, *, parent_id: str = "", **changes: Any) -> str:
    """Replay a committed record with these changes; the doctor found something. Returns its run's id."""
    place = {"row": "mlp2-mnist", "seed": 3}
    part = SeedResults(
        record=make_record(**changes),
        predicted=None,
        confidence=None,
        filters=None,
        curve=(
            CurvePoint(**place, epoch=1, split="train", loss=0.5, accuracy_percent=90.0, lr=0.001),
            CurvePoint(**place, epoch=2, split="train", loss=0.25, accuracy_percent=95.0, lr=0.0005),
            CurvePoint(**place, epoch=2, split="test", loss=0.375, accuracy_percent=97.5, lr=None),
        ),
        findings=(FoundPoint(**place, finding="dead units", evidence="120 of 256"),),
        spec={key: value for key, value in CONFIG.items() if key not in place},
        environment={},
    )
    (run_id,) = tracker.project_records([part], parent_id=parent_id)
    return run_id


def test_a_committed_record_is_replayed_once(root: Path, tracker: Tracker) -> None:
    run_id = project_record(tracker, parent_id="row-run")
    assert status(root) == [("FINISHED", 500, 3000)]  # finished at 3 s after 2.5 s
    assert points(root, "train/loss") == [(1, 0.5, 3000), (2, 0.25, 3000)]
    assert points(root, "test/accuracy_percent") == [(2, 97.5, 3000)]
    found = tags(root, run_id)
    assert (found["measured"], found["mlflow.parentRunId"]) == ("committed record", "row-run")
    assert (found["model"], found["seed"], found["outcome"]) == ("mlp2", "3", "finished")
    assert (found["findings"], found["finding.dead_units"]) == ("dead units", "120 of 256")
    before = everything(root)
    for again in (tracker, mlflow_runs.open_tracker(root)):
        assert project_record(again, parent_id="row-run") == run_id
    assert everything(root) == before


def test_a_committed_record_of_a_run_made_here_adds_nothing(root: Path, tracker: Tracker) -> None:
    run_id = tracker.project(make_run(root / "runs", *EPOCHS, TESTED, finished(make_record())))
    before = everything(root)
    assert project_record(tracker) == run_id
    assert everything(root) == before


def test_a_committed_record_of_a_seed_that_diverged_here_adds_nothing(root: Path, tracker: Tracker) -> None:
    nothing = dict.fromkeys(("accuracy_percent", "num_correct", "loss", "predicted_sha256"))
    run_id = tracker.project(make_run(root / "runs", finished(make_record(**nothing))))
    assert project_record(tracker, **nothing) == run_id


@pytest.mark.parametrize("change", [{"seed": 4}, {"row": "mlp2-b"}, {"spec_sha256": "6" * 64}, {"device_kind": "cuda"}])
def test_a_committed_record_of_another_run_is_added(root: Path, tracker: Tracker, change: dict[str, Any]) -> None:
    run_id = tracker.project(make_run(root / "runs", *EPOCHS, finished(make_record())))
    assert project_record(tracker, **change) != run_id


def test_a_record_measured_again_elsewhere_stands_beside_the_older_one(root: Path, tracker: Tracker) -> None:
    old = project_record(tracker)
    again = {"finished_at": "2026-11-22T00:00:00Z", "accuracy_percent": 95.0, "num_correct": 38}
    assert project_record(tracker, **again) != old
    assert rows(root, "SELECT count(*) FROM runs") == [(2,)]


def test_a_committed_record_stands_in_for_an_unfinished_run(root: Path, tracker: Tracker) -> None:
    run_id = tracker.project(make_run(root / "runs", *EPOCHS))
    assert project_record(tracker) != run_id


# ---------------------------------------------------------------- live


@contextmanager
def held_by_another(root: Path) -> Iterator[None]:
    """Another process has the store's lock, and was stopped."""
    lock = root / "mlflow.db.lock"
    script = f"import fcntl, sys; f = open({str(lock)!r}, 'a'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield
        process.kill()


def test_a_process_that_was_stopped_with_the_stores_lock_does_not_stop_the_others(
    root: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.store.lock_seconds = 0.1
    with held_by_another(root):
        with pytest.raises(mlflow_store.NotNowError, match=r"mlflow\.db\.lock"):
            mlflow_store.Store(tracker.store.uri, artifact_root=None, lock_seconds=0.1)
        assert BestEffort().at_once(tracker.project, make_run(root / "runs")) == ""
    assert "tracking is behind: another process has held" in capsys.readouterr().err


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def failing(clock: Clock, *, seconds: float) -> Callable[[], str]:
    def send() -> str:
        clock.seconds += seconds
        raise ConnectionError("no answer from http://me:hunter2@host\nand more")

    return send


def test_a_dead_server_costs_one_line_and_little_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    best_effort = BestEffort(clock=clock)
    send = failing(clock, seconds=5.0)
    spent = 0.0
    for _ in range(1000):  # epochs of one second
        before = clock.seconds
        assert best_effort(send) == ""
        spent += clock.seconds - before
        clock.seconds += 1.0
    assert 0 < spent / clock.seconds < 1 / 150
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tracking is behind: no answer from http://***@host; `make track` completes it"]


def test_a_server_that_comes_back_is_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    best_effort = BestEffort(clock=clock)
    best_effort(failing(clock, seconds=0.0))
    clock.seconds = 9.0
    assert best_effort(lambda: "id") == ""
    assert best_effort.at_once(lambda: "id") == "id"
    assert best_effort(str, 7) == "7"
    best_effort(failing(clock, seconds=0.0))
    assert len(capsys.readouterr().err.splitlines()) == 2  # one line for each outage


def test_a_slow_server_is_asked_for_half_a_hundredth_of_the_time() -> None:
    clock = Clock()
    best_effort = BestEffort(clock=clock)

    def send() -> str:
        clock.seconds += 0.5
        return "id"

    assert best_effort(send) == "id"
    clock.seconds += 99.9
    assert best_effort(send) == ""
    clock.seconds += 0.2
    assert best_effort(send) == "id"


def test_system_metrics_go_to_the_runs_own_store(root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/another.db")
    run_id = tracker.project(make_run(root / "runs"))
    with tracker.system_metrics(run_id, interval_seconds=0.05):
        time.sleep(0.5)
    found = rows(root, f"SELECT DISTINCT key FROM metrics WHERE run_uuid = '{run_id}'")
    assert ("system/cpu_utilization_percentage",) in found
    assert not [name for (name,) in found if "disk" in name or "network" in name]
    assert not (root / "another.db").exists()


def test_system_metrics_that_cannot_be_had_do_no_harm(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", None)
    with tracker.system_metrics("a-run"), tracker.system_metrics(""):
        pass
    assert len(capsys.readouterr().err.splitlines()) == 1


PROJECT_TWO = """
import sys
from pathlib import Path
from remeasure.tracking.mlflow_runs import open_tracker

root, own, shared = map(Path, sys.argv[1:])
tracker = open_tracker(root)
tracker.project(own)
tracker.project(shared)
"""


def test_processes_that_start_together_share_a_fresh_store(tmp_path: Path) -> None:
    shared = make_run(tmp_path / "shared", *EPOCHS)
    workers = []
    for number in range(3):
        own = tmp_path / f"own-{number}"
        own.mkdir()
        append(own, {**STARTED, "run_id": own.name}, *EPOCHS)
        workers.append(forking.popen(["-c", PROJECT_TWO, *map(str, (tmp_path, own, shared))], env=environment()))
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert rows(tmp_path, "SELECT count(*) FROM experiments WHERE name = 'remeasure'") == [(1,)]
    assert rows(tmp_path, "SELECT count(*) FROM runs") == [(4,)]  # three of their own and one in common
    assert rows(tmp_path, "SELECT count(*) FROM metrics WHERE key = 'train/lr'") == [(8,)]


def test_a_store_is_made_where_mlflow_lies_below_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    packages = tmp_path / "50%_done"
    packages.symlink_to(sysconfig.get_paths()["purelib"])
    code = (
        "import sys; from pathlib import Path; from remeasure.tracking.mlflow_store import Store\n"
        "Store(f'sqlite:///{sys.argv[1]}/mlflow.db', artifact_root=Path(sys.argv[1]))\n"
        "import mlflow; print(mlflow.__file__)"
    )
    path = os.pathsep.join((str(packages), str(CHECKOUT / "src")))
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "50%_done" in made.stdout
