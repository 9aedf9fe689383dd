"""`make track`: the records of results/ in an MLflow store, which may be one that an older version filled."""

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from matplotlib.image import imread
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, Run
from tests.support import measured
from tests.support.project import CHECKOUT

from remeasure.data import catalog
from remeasure.judging import ledger
from remeasure.judging.publish import offer
from remeasure.runs.journal import Journal
from remeasure.spec.claim import Row
from remeasure.system import locks
from remeasure.tracking import mlflow_store
from remeasure.tracking.content.base import milliseconds
from remeasure.tracking.content.datasets import inputs
from remeasure.tracking.content.figures import confusion
from remeasure.tracking.mlflow_store import Store
from remeasure.tracking.replay import replay as make_track

pytestmark = pytest.mark.skipif(not mlflow_store.available(), reason="mlflow is not installed")


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    (tmp_path / "ledger.yaml").write_text(measured.LEDGER)
    return {measured.ROW: ledger.read(tmp_path / "ledger.yaml")[measured.ROW]}


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, of a project whose results/ hold one row of five seeds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    offer(tmp_path / "results", measured.group(), row=rows[measured.ROW])
    return Store(f"sqlite:///{tmp_path}/mlflow.db", artifact_root=tmp_path / "mlartifacts")


def track(rows: dict[str, Row], folder: Path) -> None:
    """`make track` of this row."""
    make_track(rows, results=folder / "results", runs=folder / "runs", project=folder, table="", say=list[str]().append)


def runs(store: Store) -> list[Run]:
    """All runs, the row's first."""
    found = store.client.search_runs([store.experiment_id])
    return sorted(found, key=lambda run: int(run.data.tags.get("seed", -1)))


def fill_as_before_sections(store: Store) -> list[str]:
    """The row and its seeds as they were sent until metrics had sections; returns the ids of the runs."""
    client, records = store.client, measured.group().records
    spec_sha256, ids = records[0].spec_sha256, list[str]()
    identities = [("remeasure.campaign", f"{measured.ROW}/{spec_sha256[:12]}/cpu")]
    for record in records:
        identity = f"{record.row}/{record.seed}/{spec_sha256[:12]}/cpu/{record.finished_at}"
        identities.append(("remeasure.record", identity))
    for (key, value), record in zip(identities, [None, *records], strict=True):
        name = measured.ROW if record is None else f"{measured.ROW} seed {record.seed}"
        tags = {key: value, "row": measured.ROW}
        if record is not None:
            tags |= {"seed": str(record.seed), "mlflow.parentRunId": ids[0]}
        run_id = client.create_run(store.experiment_id, run_name=name, tags=tags).info.run_id
        metrics = {"mean_percent": 94.0, "num_seeds": 5}
        if record is not None:
            metrics = {"test_accuracy_percent": record.accuracy_percent, "train_loss": 0.5, "num_params": 61}
            client.log_param(run_id, "recipe.clip_norm", "null")
            client.log_param(run_id, "seed", str(record.seed))
            client.log_inputs(run_id, [DatasetInput(Dataset("shapes", "d" * 36, "remeasure", "{}"), [])])
        for metric, number in metrics.items():
            client.log_metric(run_id, metric, number, step=2)
        client.set_terminated(run_id, "FINISHED", milliseconds(records[0].finished_at))
        ids.append(run_id)
    return ids


def test_a_row_and_its_seeds_are_replayed(store: Store, rows: dict[str, Row], tmp_path: Path) -> None:
    track(rows, tmp_path)
    row, *seeds = runs(store)
    assert (row.info.run_name, row.info.status, row.data.metrics["row/num_seeds"]) == (measured.ROW, "FINISHED", 5)
    assert [run.data.metrics["test/accuracy_percent"] for run in seeds] == [95.0, 92.5, 95.0, 92.5, 95.0]
    assert [run.info.run_name for run in seeds] == ["seed 000", "seed 001", "seed 002", "seed 003", "seed 004"]
    assert {run.data.tags["mlflow.parentRunId"] for run in seeds} == {row.info.run_id}
    assert {name.partition("/")[0] for run in (row, *seeds) for name in run.data.metrics} == {
        *("row", "run", "test", "train")
    }


def test_a_run_is_below_the_row_of_its_own_spec_alone(store: Store, rows: dict[str, Row], tmp_path: Path) -> None:
    """A seed of an older recipe, which is not in the record, does not join the record's seeds."""
    for name, spec_sha256 in (("old", "0" * 64), ("own", measured.record(0).spec_sha256)):
        directory = tmp_path / f"runs/{name}-cpu-s7-a1"
        directory.mkdir(parents=True)
        about = {"row": measured.ROW, "seed": 7, "spec_sha256": spec_sha256, "device_kind": "cpu"}
        (directory / "config.yaml").touch()  # a power cut can leave it empty
        Journal(directory).write("started", run_id=name, model="tiny", data="shapes", recipe="short", **about)
    track(rows, tmp_path)
    row, *_ = runs(store)
    found = {each.data.tags.get("remeasure.run_id"): each.data.tags.get("mlflow.parentRunId") for each in runs(store)}
    assert (found["old"], found["own"]) == (None, row.info.run_id)


@pytest.mark.parametrize("was_known", [False, True])
def test_a_seed_that_was_trained_again_has_its_older_runs_below_it(
    store: Store, rows: dict[str, Row], tmp_path: Path, was_known: bool
) -> None:
    """`was_known`: to a store that an older version filled, where the run is a seed like any other."""
    about = {"row": measured.ROW, "seed": 7, "spec_sha256": measured.record(0).spec_sha256, "device_kind": "cpu"}
    for number in (1, 2, 3):  # the third is not finished
        directory = tmp_path / f"runs/tiny-cpu-s7-a{number}"
        directory.mkdir(parents=True)
        (directory / "config.yaml").touch()
        Journal(directory).write("started", run_id=str(number), model="tiny", data="shapes", recipe="short", **about)
        if number == 1 and was_known:
            track(rows, tmp_path)
    (tmp_path / "runs/tiny-cpu-s7-a2/record.json").touch()
    for _ in range(2):
        track(rows, tmp_path)
    row, *seeds = runs(store)
    assert len(seeds) == 5 + 3
    found = {run.data.tags["remeasure.run_id"]: run for run in seeds if "remeasure.run_id" in run.data.tags}
    assert {each: run.info.run_name for each, run in found.items()} == {
        **{"1": "seed 007 attempt 1", "2": "seed 007", "3": "seed 007"}
    }
    parents = {each: run.data.tags["mlflow.parentRunId"] for each, run in found.items()}
    assert parents == {"1": found["2"].info.run_id, "2": row.info.run_id, "3": row.info.run_id}
    assert [found[each].data.tags["outcome"] == "replaced" for each in "123"] == [True, False, False]


def test_a_run_that_is_being_trained_is_left_to_its_own_process(
    store: Store, rows: dict[str, Row], tmp_path: Path
) -> None:
    directory = tmp_path / "runs/tiny-cpu-s7-a1"
    directory.mkdir(parents=True)
    Journal(directory).write("started", run_id="x", row=measured.ROW, seed=7, spec_sha256="0" * 64, device_kind="cpu")
    with locks.held(directory / "lock"):
        track(rows, tmp_path)
    assert "x" not in {run.data.tags.get("remeasure.run_id") for run in runs(store)}


def artifacts(store: Store, run: Run) -> dict[str, Path]:
    """The files of a run, by name."""
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return {entry.path: folder / entry.path for entry in store.client.list_artifacts(run.info.run_id)}


def test_a_row_has_the_mean_curves_of_its_seeds_under_their_names(
    store: Store, rows: dict[str, Row], tmp_path: Path
) -> None:
    """(95 + 92.5 + 95 + 92.5 + 95) / 5 = 94; the deviations are 1, -1.5, 1, -1.5, 1: sd = √(7.5 / 4)."""
    track(rows, tmp_path)
    row = runs(store)[0]
    history = {name: store.client.get_metric_history(row.info.run_id, name) for name in row.data.metrics}
    assert [(point.step, point.value) for point in history["train/accuracy_percent"]] == [(1, 81.25), (2, 90.0)]
    assert [(point.step, point.value) for point in history["test/accuracy_percent"]] == [(2, 94.0)]
    assert [(point.step, point.value) for point in history["test/accuracy_percent_sd"]] == [(2, 1.369)]
    assert row.data.params["recipe.epochs_total"] == "2"
    assert row.data.params.keys().isdisjoint({"row", "seed"})  # by which the views group and find seeds


def test_a_row_has_a_table_of_its_seeds_that_mlflow_loads(store: Store, rows: dict[str, Row], tmp_path: Path) -> None:
    (tmp_path / "results/report.html").write_text("<p>all rows</p>")
    track(rows, tmp_path)
    row = runs(store)[0]
    table = store.client.load_table(store.experiment_id, "seeds.json", run_ids=[row.info.run_id])
    assert table["seed"].tolist() == [0, 1, 2, 3, 4]
    assert table["accuracy_percent"].tolist() == [95.0, 92.5, 95.0, 92.5, 95.0]
    assert sorted(artifacts(store, row)) == ["report.html", "seeds.json"]  # there is no data set of this name


def test_other_seeds_of_a_row_make_its_table_anew(store: Store, rows: dict[str, Row], tmp_path: Path) -> None:
    track(rows, tmp_path)
    path = artifacts(store, runs(store)[0])["seeds.json"]
    before = path.read_bytes()
    other = measured.seeds(*range(5), finished_at="2026-11-23T14:05:00Z", wall_seconds=7.25)
    assert offer(tmp_path / "results", other, row=rows[measured.ROW], fresh=True)
    track(rows, tmp_path)
    assert b"2026-11-23" in path.read_bytes() != before


def test_train_and_test_data_are_inputs_apart_whose_source_mlflow_opens(
    store: Store, rows: dict[str, Row], tmp_path: Path
) -> None:
    track(rows, tmp_path)
    for run in runs(store)[:2]:  # the row and a seed
        found = {tag.value: each.dataset for each in run.inputs.dataset_inputs for tag in each.tags}
        names = {context: data.name for context, data in found.items()}
        assert names == {"train": "shapes-train", "test": "shapes-test"}
        for data in found.values():
            assert mlflow.data.get_source(data).to_dict()
            schema = TensorDatasetSchema.from_dict(json.loads(data.schema))
            assert [each.type.name for each in schema.features.inputs] == ["uint8"]
            assert [each.type.name for each in schema.targets.inputs] == ["int64"]


def test_mnist_is_opened_where_it_can_be_downloaded() -> None:
    spec = {"data": {"name": "mnist", "source": "mnist", "split": "test", "num_train": 60000, "num_test": 10000}}
    (test,) = inputs(spec, sha256="d" * 64)  # without a recipe that trains
    source = mlflow.data.get_source(Dataset(test.name, test.digest, test.source_type, test.source))
    assert source.url.endswith("/t10k-images-idx3-ubyte.gz")
    assert json.loads(test.profile)["num_images"] == 10000


def test_tracking_again_changes_nothing(store: Store, rows: dict[str, Row], tmp_path: Path) -> None:
    def history(run: Run) -> dict[str, int]:
        return {name: len(store.client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}

    track(rows, tmp_path)
    before = [(run.info.run_id, run.data.to_dictionary(), history(run)) for run in runs(store)]
    track(rows, tmp_path)
    assert [(run.info.run_id, run.data.to_dictionary(), history(run)) for run in runs(store)] == before


def test_the_confusion_matrix_is_drawn_where_the_labels_are_here() -> None:
    spec = catalog.read_config("digits", conf_dirs=[CHECKOUT / "conf"])
    labels = catalog.test_labels(spec, root=Path("nowhere"))
    part = replace(measured.part(0), predicted=labels, spec={"data": asdict(spec)})
    drawn = confusion([part])
    assert drawn is not None
    assert imread(io.BytesIO(drawn), format="png").shape[2] == 4
    assert drawn != confusion([replace(part, predicted=np.roll(labels, 1))])
    assert confusion([measured.part(0)]) is None


def test_a_store_of_an_older_version_is_brought_up_to_date_without_second_runs(
    store: Store, rows: dict[str, Row], tmp_path: Path
) -> None:
    before = fill_as_before_sections(store)
    another = store.client.create_run(store.experiment_id, run_name="the user's own", tags={"seed": "9"}).info.run_id
    store.client.log_metric(another, "train_loss", 0.5)
    store.client.update_run(before[2], name="my favourite")
    track(rows, tmp_path)
    row, *seeds, users = runs(store)
    assert [run.info.run_id for run in (row, *seeds)] == before
    assert [run.info.run_name for run in (row, *seeds[:2])] == [measured.ROW, "seed 000", "my favourite"]
    assert row.data.metrics["row/mean_percent"] == 94.0
    assert [run.data.metrics["test/accuracy_percent"] for run in seeds] == [95.0, 92.5, 95.0, 92.5, 95.0]
    assert [point.step for point in store.client.get_metric_history(before[1], "train/loss")] == [1, 2]
    for run in seeds:  # each number is there once, by its present name
        assert {name.partition("/")[1] for name in run.data.metrics} == {"/"}
        assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["shapes-train", "shapes-test"]
        assert "recipe.clip_norm" not in run.data.params
    assert users.data.metrics == {"train_loss": 0.5}
