"""A kept network in the MLflow store: loaded without this package's code, linked to its run, registered by its row."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from tests.support import measured, trained

from remeasure.data import catalog
from remeasure.runs.folder import Outcome
from remeasure.spec.claim import Published, Row, Rule, Source, Verdict, VerdictName
from remeasure.tracking import mlflow_models, mlflow_store
from remeasure.tracking.mlflow_observer import MlflowObserver
from remeasure.tracking.mlflow_runs import Tracker
from remeasure.tracking.observer import Standing
from remeasure.tracking.replay import replay

pytestmark = pytest.mark.skipif(not mlflow_store.available(), reason="mlflow is not installed")
ROW = "logreg-digits"
SPEC = ("model=logreg", "recipe.epochs_total=1")


def project(folder: Path, *, empty_store: Path, patch: pytest.MonkeyPatch) -> MlflowObserver:
    """The observer of a project with an empty store, which is also that of mlflow's own functions."""
    shutil.copy(empty_store, folder / "mlflow.db")
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return MlflowObserver(project=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def observer(folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowObserver:
    return project(folder, empty_store=empty_store, patch=monkeypatch)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[MlflowObserver, Outcome]]:
    """A run that keeps its network, in a store of its own."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        observer = project(folder, empty_store=empty_store, patch=patch)
        yield observer, kept(folder, observer)


def kept(folder: Path, observer: MlflowObserver, *, seed: int = 0, keeps: bool = True, fresh: bool = False) -> Outcome:
    keeping = [seed] if keeps else []
    outcome = trained.run(trained.spec(*SPEC), folder, seed=seed, row=ROW, keeps=keeping, sink=observer, fresh=fresh)
    return observer.keep(outcome)


def tracker(observer: MlflowObserver) -> Tracker:
    assert observer.tracker is not None
    return observer.tracker


def models(observer: MlflowObserver) -> list[mlflow.entities.LoggedModel]:
    store = tracker(observer).store
    return list(store.client.search_logged_models([store.experiment_id]))


def standing(verdict: VerdictName) -> Standing:
    source = Source(citation="Nobody 1999", where="nowhere", says="a number", grade="unsourced")
    published = Published(
        accuracy_percent=90.0,
        num_digits=1,
        num_params_text="650",
        num_runs=None,
        selection=None,
        sources=(source,),
        notes="",
    )
    row = Row(
        name=ROW,
        model="logreg",
        data="digits",
        recipe="article",
        mode="train",
        published=published,
        rule=Rule(margin_pp=5.0, looks=(2,)),
    )
    return Standing(
        row=row,
        verdict=Verdict(verdict=verdict, reason="", num_seeds=2),
        num_seeds=2,
        spec_sha256=trained.spec(*SPEC).spec_sha256,
        device_kind="cpu",
        measured="measured here",
        state="finished",
    )


def aliases(observer: MlflowObserver) -> dict[str, str]:
    """Of the registered models: name, or name and alias, to the MLflow run of the model."""
    client, found = tracker(observer).store.client, {}
    for registered in client.search_registered_models():
        for alias in registered.aliases:
            version = client.get_model_version_by_alias(registered.name, alias)
            found[f"{registered.name}@{alias}"] = version.run_id
    return found


def test_the_logged_model_scores_the_test_split_image_by_image(tracked: tuple[MlflowObserver, Outcome]) -> None:
    observer, outcome = tracked
    (model,) = models(observer)
    split = catalog.load_split(trained.spec().data, "test", root=Path("nowhere"))
    network = mlflow.pytorch.load_model(f"models:/{model.model_id}")
    predicted = network(torch.from_numpy(split.images)).argmax(dim=1).numpy()
    with np.load(outcome.directory / "predictions.npz") as arrays:
        assert predicted.tolist() == arrays["predicted"].tolist()
    assert int((predicted == split.labels).sum()) == outcome.record.num_correct
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(split.images)
    assert served.argmax(axis=1).tolist() == predicted.tolist()
    described = mlflow.models.get_model_info(f"models:/{model.model_id}")
    assert described.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 1, 8, 8)}
    files = [path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()]
    assert {"model.pt2", "model.json", "input_example.json", "MLmodel"} <= set(files)
    assert not [name for name in files if name.endswith((".pth", ".pkl"))]


def test_the_logged_model_is_linked_to_run_data_set_and_step(tracked: tuple[MlflowObserver, Outcome]) -> None:
    observer, outcome = tracked
    (model,) = models(observer)
    assert (model.source_run_id, str(model.status), model.name) == (outcome.record.mlflow_run_id, "READY", ROW)
    run = tracker(observer).store.client.get_run(outcome.record.mlflow_run_id)
    assert [(each.model_id, each.step) for each in run.outputs.model_outputs] == [(model.model_id, 1)]
    scores = {metric.key: (metric.value, metric.dataset_name) for metric in model.metrics}
    accuracy = {value for key, value in scores.items() if key == "test/accuracy_percent"}
    assert accuracy == {(outcome.record.accuracy_percent, "digits-test")}
    assert run.data.tags["trained_model"] == "kept"


def test_a_model_is_sent_once_and_a_half_sent_one_is_replaced(tracked: tuple[MlflowObserver, Outcome]) -> None:
    observer, outcome = tracked
    store, run_id = tracker(observer).store, outcome.record.mlflow_run_id
    (model,) = models(observer)
    assert mlflow_models.log_model(store, outcome.directory, run_id=run_id) == model.model_id
    assert len(models(observer)) == 1
    store.client.delete_logged_model(model.model_id)
    half = store.client.create_logged_model(store.experiment_id, tags={mlflow_models.RUN_TAG: run_id})
    again = mlflow_models.log_model(store, outcome.directory, run_id=run_id)
    assert [each.model_id for each in models(observer)] == [again]
    assert again not in (model.model_id, half.model_id)


def test_a_seed_that_keeps_nothing_has_no_model_and_says_so(folder: Path, observer: MlflowObserver) -> None:
    outcome = kept(folder, observer, keeps=False)
    assert models(observer) == []
    tags = tracker(observer).store.client.get_run(outcome.record.mlflow_run_id).data.tags
    assert tags["trained_model"] == "none: keep said so"


def test_a_seed_that_is_trained_again_takes_the_place_of_its_older_run(folder: Path, observer: MlflowObserver) -> None:
    first, second = (kept(folder, observer, keeps=False, fresh=fresh).record.mlflow_run_id for fresh in (False, True))
    tags = tracker(observer).store.client.get_run(first).data.tags
    assert (tags["outcome"], tags["mlflow.parentRunId"]) == ("replaced", second)
    assert tracker(observer).store.client.get_run(second).data.tags["outcome"] == "finished"


def test_a_reproduced_row_has_its_first_network_under_the_alias_and_another_verdict_removes_it(
    folder: Path, observer: MlflowObserver
) -> None:
    kept(folder, observer, seed=1)
    first = kept(folder, observer, seed=0).record.mlflow_run_id
    observer.row(standing("undecided"))
    assert aliases(observer) == {}
    for _ in range(2):
        observer.row(standing("reproduced"))
        assert aliases(observer) == {f"remeasure-{ROW}@reproduced": first}
    assert len(tracker(observer).store.client.search_model_versions(f"name = 'remeasure-{ROW}'")) == 1
    assert mlflow.pytorch.load_model(f"models:/remeasure-{ROW}@reproduced")(torch.zeros(3, 1, 8, 8).byte()).shape == (
        3,
        10,
    )
    observer.row(standing("falls short"))
    assert aliases(observer) == {}


def test_make_track_gives_another_store_its_models(
    tracked: tuple[MlflowObserver, Outcome], tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another, outcome = project(tmp_path, empty_store=empty_store, patch=monkeypatch), tracked[1]
    replay({}, results=tmp_path, runs=outcome.directory.parent, project=tmp_path, table="", say=list[str]().append)
    (model,) = models(another)
    assert model.tags["spec_sha256"] == outcome.record.spec_sha256


def test_a_replayed_record_says_that_there_is_no_model(observer: MlflowObserver) -> None:
    (run_id,) = tracker(observer).project_records([measured.part(0)])
    tags = tracker(observer).store.client.get_run(run_id).data.tags
    assert tags["trained_model"] == "none: a committed record holds no weights"
