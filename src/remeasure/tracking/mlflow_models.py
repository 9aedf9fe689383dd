"""Trained networks in the MLflow store: a LoggedModel for each run that keeps one, and a registered model for its row.

A LoggedModel is a pt2 program (torch.export), without pickle, from images (N, C, H, W) uint8 to logits. A store that
lacks it gets it again from the run's folder.
"""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remeasure.runs.folder import read_record
from remeasure.tracking.mlflow_store import Store, try_twice
from remeasure.tracking.observer import Standing

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

    from remeasure.models.saved import Classifier

ALIAS = "reproduced"
RUN_TAG = "remeasure.mlflow_run_id"


def log_model(store: Store, directory: Path, *, run_id: str) -> str:
    """The id of the LoggedModel of a finished run, which is made if the store lacks it; "" if the run keeps no network.

    `run_id`: of the run in the store. The caller holds the run's lock, so that an unfinished model is a dead process's.
    """
    if not run_id or not all((directory / name).is_file() for name in ("record.json", "model.safetensors")):
        return ""
    store.check()
    found = _search(store, {RUN_TAG: run_id})
    for model in found:
        if str(model.status) == "READY":
            return str(model.model_id)
        store.client.delete_logged_model(model.model_id)
    return _make(store, directory, run_id=run_id)


def _make(store: Store, directory: Path, *, run_id: str) -> str:
    from mlflow.entities import LoggedModelOutput

    from remeasure.models import saved  # torch: seconds to import

    record, run, classifier = read_record(directory), store.client.get_run(run_id), saved.load(directory)
    keys = ("row", "model", "data", "seed", "spec_sha256", "device_kind")
    model = store.client.create_logged_model(
        store.experiment_id,
        name=record.row or f"{run.data.tags['model']}-{run.data.tags['data']}",
        source_run_id=run_id,
        tags={RUN_TAG: run_id, **{key: run.data.tags[key] for key in keys if run.data.tags.get(key)}},
        params=dict(run.data.params),
        model_type="image classifier",
    )
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.epochs)])
    with tempfile.TemporaryDirectory() as folder:
        _save(classifier, Path(folder) / "model", model=model, extra=directory / saved.MODEL_FILE)
        store.client.log_model_artifacts(model.model_id, f"{folder}/model")
    _link_scores(store, model=model, run=run, step=record.epochs)
    store.client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _save(classifier: "Classifier", path: Path, *, model: "LoggedModel", extra: Path) -> None:
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = classifier.input_shape
    signature = ModelSignature(  # without names: mlflow.pyfunc makes a dict of named arrays, and refuses that
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(classifier.classes)))]),
    )
    home = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=model.source_run_id,
        model_id=model.model_id,
    )
    with warnings.catch_warnings(action="ignore"):  # of torch.export and MLflow about themselves
        mlflow.pytorch.save_model(
            classifier,
            str(path),
            mlflow_model=home,
            signature=signature,
            input_example=np.zeros((2, *shape), np.uint8),  # one image would make a program for one
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # else MLflow looks for them, for long
            extra_files=[str(extra)],
        )


def _link_scores(store: Store, *, model: "LoggedModel", run: Any, step: int) -> None:
    """Log the run's last metrics again, as they are, with the model and the data set that they belong to."""
    from mlflow.entities import Metric

    splits = {tag.value: each.dataset for each in run.inputs.dataset_inputs for tag in each.tags} if run.inputs else {}
    linked = []
    for each in store.history(run):
        if each.step == step:
            split = splits.get(each.key.partition("/")[0])
            data = {"dataset_name": split.name, "dataset_digest": split.digest} if split else {}
            point = (each.key, each.value, each.timestamp, each.step)
            linked.append(Metric(*point, model_id=model.model_id, run_id=run.info.run_id, **data))
    store.client.log_batch(run.info.run_id, metrics=linked)


def register(store: Store, standing: Standing) -> str:
    """The version of `remeasure-<row>` with the alias `reproduced`, the first seed's network, if that is the verdict.

    "" if it is not, or no seed of this spec and kind of device has a network here; the alias is then removed.
    """
    return try_twice(_register, store, standing)


def _register(store: Store, standing: Standing) -> str:
    client, name = store.client, f"remeasure-{standing.row.name}"
    models = []
    if standing.verdict.verdict == "reproduced":
        same = {"row": standing.row.name, "spec_sha256": standing.spec_sha256, "device_kind": standing.device_kind}
        models = [model for model in _search(store, same) if str(model.status) == "READY"]
    registered = client.search_registered_models(f"name = '{name}'")
    if not models:
        if registered and ALIAS in registered[0].aliases:
            client.delete_registered_model_alias(name, ALIAS)
        return ""
    model = min(models, key=lambda each: (int(each.tags["seed"]), -each.creation_timestamp))
    if not registered:
        client.create_registered_model(name, description=f"The network of {standing.row.name}, by its seed")
    known = [each for each in client.search_model_versions(f"name = '{name}'") if each.run_id == model.source_run_id]
    if not known:
        source = {"run_id": model.source_run_id, "model_id": model.model_id}
        known = [client.create_model_version(name, model.artifact_location, **source)]
    version = known[0]
    client.set_registered_model_alias(name, ALIAS, version.version)
    return str(version.version)


def _search(store: Store, tags: dict[str, str]) -> "list[LoggedModel]":
    clauses = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return list(store.client.search_logged_models([store.experiment_id], filter_string=clauses))
