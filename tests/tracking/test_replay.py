"""`make track`: the records of results/ in an MLflow store, which may be one that an older version filled."""

import shutil
from pathlib import Path

import pytest
from mlflow.entities import Dataset, DatasetInput, Run
from tests.support import measured

from remeasure.judging import ledger
from remeasure.judging.publish import offer
from remeasure.spec.claim import Row
from remeasure.tracking import mlflow_store
from remeasure.tracking.content.base import milliseconds
from remeasure.tracking.mlflow_store import Store
from remeasure.tracking.replay import replay

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
    replay(rows, results=folder / "results", runs=folder / "runs", project=folder, table="", say=list[str]().append)


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
        tags = {key: value, **({} if record is None else {"seed": str(record.seed), "mlflow.parentRunId": ids[0]})}
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


def test_a_store_of_an_older_version_is_brought_up_to_date_without_second_runs(
    store: Store, rows: dict[str, Row], tmp_path: Path
) -> None:
    before = fill_as_before_sections(store)
    store.client.update_run(before[2], name="my favourite")
    track(rows, tmp_path)
    row, *seeds = runs(store)
    assert [run.info.run_id for run in (row, *seeds)] == before
    assert [run.info.run_name for run in (row, *seeds[:2])] == [measured.ROW, "seed 000", "my favourite"]
    assert row.data.metrics["row/mean_percent"] == 94.0
    assert [run.data.metrics["test/accuracy_percent"] for run in seeds] == [95.0, 92.5, 95.0, 92.5, 95.0]
    assert [point.step for point in store.client.get_metric_history(before[1], "train/loss")] == [1, 2]
