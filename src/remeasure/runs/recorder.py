"""One attempt at a run: writes its directory, from the first journal line to the record."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from remeasure.data import catalog
from remeasure.models import registry, saved
from remeasure.runs import code, provenance
from remeasure.runs.folder import Place, read_record, write_record
from remeasure.runs.journal import Journal, Sink, curve, last, read
from remeasure.spec.base import DivergenceError, InputError, canonical_sha256
from remeasure.spec.findings import Finding
from remeasure.spec.recipe import Evaluation, Recipe
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system.atomic import read_bytes, read_json, write_atomic
from remeasure.system.clock import now
from remeasure.system.formats import decode_yaml, encode_npz, predicted_sha256, smallest_unsigned
from remeasure.system.redaction import masked
from remeasure.system.validation import convert
from remeasure.training import augment, losses, optimizers  # noqa: F401 - the recipe's choices
from remeasure.training.diagnostics.curves import CurveMonitor
from remeasure.training.diagnostics.leaks import refuse_early_scores
from remeasure.training.engines.base import Scored
from remeasure.training.negative_controls import evaluated_with


class Attempt:
    """A run's directory while the run is under way; `row`: the ledger row it belongs to, "" for none.

    `keeps`: whether the directory keeps the trained network. `num_devices`: those that compute it. Of seeds that train
    together, some may be finished already: their directories are not written again.
    """

    def __init__(
        self,
        directory: Path,
        *,
        spec: RunSpec,
        seed: int,
        row: str,
        place: Place,
        sink: Sink,
        keeps: bool = False,
        num_devices: int = 1,
    ) -> None:
        self.directory, self.spec, self.seed, self.row, self.place = directory, spec, seed, row, place
        self.keeps, self._num_devices = keeps, num_devices
        self._journal, self._sink, self._facts = Journal(directory), sink, dict[str, Any]()
        self._epochs = 0  # trained so far; a resumed run ends with one that it reports
        self.finished = (directory / "record.json").is_file()
        events = read(directory)
        self._started = last(events, "started")
        self.chart = CurveMonitor(
            num_classes=spec.data.num_classes,
            epochs_total=spec.recipe.epochs_total,
            report=self._found,
            known=[event["name"] for event in events if event["event"] == "finding"],
            points=[point for point in curve(events) if point["split"] == "train"],
        )

    def report(self, event: str, /, **values: object) -> None:
        """Journal an event."""
        if not self.finished:
            self._sink(self.directory, self._journal.write(event, **values))

    def epoch(self, values: dict[str, Any]) -> None:
        """Journal an epoch's training or its validation score; and what the training's curve shows by now."""
        self.report("epoch", **values)
        if values["split"] == "train":
            self._epochs = values["epoch"]
            self.chart.see(values)

    def _found(self, finding: Finding) -> None:
        if self.place.doctor:
            self.report("finding", **asdict(finding))

    def images(self, values: dict[str, Any]) -> None:
        """Report the images done so far to the sink only; it is not journaled."""
        self._sink(self.directory, {"event": "images", "time": now(), **values})

    def announce(self, *, num_params: int, data_official: str, checkpoint: str) -> None:
        """Journal that the run is resumed; or write config, environment and diff, and journal that it started."""
        if self.finished:
            return
        if started := self._started:
            self.row = started["row"] or self.row  # a resumed run keeps the row that started it
        self._facts = self._known(num_params=num_params, data_official=data_official)
        sizes = isinstance(self.spec.recipe, Recipe) and self.spec.recipe.resolution
        work: dict[str, Any] = {"work_by_epoch": self.spec.work_by_epoch} if sizes else {}  # else all alike
        if started:
            # The same code and libraries trained it (runs/folder.py): it keeps commit, diff and versions of its start.
            self._facts |= {key: started[key] for key in ("commit", "dirty")}
            if environment := read_json(self.directory / "environment.json"):
                self._facts["versions_sha256"] = canonical_sha256(environment)
            names = {key: started[key] for key in ("row", "seed", "model", "data", "epochs_total")}
            self.report("resumed", **names, **work, checkpoint=checkpoint)
            return
        spec, facts = self.spec, self._facts
        config = json.loads(json.dumps({"row": self.row, "seed": self.seed, **asdict(spec)}))  # tuples as lists
        write_atomic(self.directory / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        environment = provenance.environment(facts["device"])
        write_atomic(self.directory / "environment.json", json.dumps(environment, indent=1, sort_keys=True).encode())
        if diff := provenance.revision(self.place.project).diff:
            write_atomic(self.directory / "diff.patch", diff.encode())
        names = {"model": spec.model.name, "data": spec.data.name, "recipe": spec.recipe.name}
        names["code_sha256"] = code.kept(self.directory)
        work["epochs_total"] = spec.recipe.epochs_total
        self.report("started", run_id=self.directory.name, **names, **facts, **work)

    def fail(self, error: BaseException) -> None:
        """Journal why the run ended without a result."""
        event = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
        reason = masked(str(error) if isinstance(error, InputError) else repr(error))
        try:
            self.report(event, reason=reason)
        except OSError:  # the disk is full: the next start closes the run (Observers.close_orphans)
            self._sink(self.directory, {"event": event, "time": now(), "reason": reason})

    def close(self, result: Scored | DivergenceError) -> RunRecord:
        """The record, after writing the files of the result; record.json comes last and marks the run as finished."""
        if self.finished:
            return read_record(self.directory)
        why = dict[str, str]()
        if isinstance(result, DivergenceError):
            why = {"reason": str(result)}
            self.chart.note("not finite", str(result))
            self.report("diverged", epoch=result.epoch, step=result.step, **why)
            record = RunRecord(
                **self._facts, **_no_result(self.spec), epochs=result.epoch, wall_seconds=0.0, finished_at=now()
            )
        else:
            seconds = round(result.wall_seconds, 1)
            record = RunRecord(
                **self._facts, **_result(result), epochs=self._epochs, wall_seconds=seconds, finished_at=now()
            )
            refuse_early_scores(read(self.directory), epochs=self._epochs)
            _keep_arrays(self.directory, scored=result)
            if self.keeps:
                saved.write(
                    self.directory,
                    network=result.network,
                    spec=self.spec,
                    seed=self.seed,
                    normalisation=evaluated_with(self.spec),
                    classes=catalog.class_names(self.spec.data),
                    published=self.spec.recipe.weights if isinstance(self.spec.recipe, Evaluation) else None,
                )
            split, percent = self.spec.data.split, record.accuracy_percent
            score = dict[str, Any](split=split, loss=record.loss, accuracy_percent=percent)
            self.report("epoch", epoch=record.epochs, step=None, **score, lr=None, seconds=None)
            self.chart.scored(**score)
        finished = self._journal.write("finished", record=asdict(record), **why)
        if self.spec.data.split == "test":  # tuning writes no record
            write_record(self.directory, record)
        self._sink(self.directory, finished)  # last: a run that is killed here is resumed, and ends at another time
        return record

    def _known(self, *, num_params: int, data_official: str) -> dict[str, Any]:
        """The fields of the record that are known before training."""
        spec, device = self.spec, provenance.device_name(self.place.device_kind, num=self._num_devices)
        revision = provenance.revision(self.place.project)
        return {
            "row": self.row,
            "seed": self.seed,
            "spec_sha256": spec.spec_sha256,
            "training_version": spec.training_version,
            "num_params": num_params,
            "device": device,
            "device_kind": self.place.device_kind,
            "data_sha256": spec.data_sha256,
            "data_official": data_official,
            "commit": revision.commit,
            "dirty": revision.dirty,
            "versions_sha256": canonical_sha256(provenance.environment(device)),
            "mlflow_run_id": "",
            "own_code_sha256": code.own_code_sha256(spec),
        }


def spec_of(directory: Path) -> RunSpec:
    """The spec in a run's config.yaml. InputError: it is not there, or not of this version."""
    path = directory / "config.yaml"
    values = decode_yaml(read_bytes(path), name=str(path))
    spec = {key: value for key, value in values.items() if key not in ("row", "seed")}
    return convert(RunSpec, spec, where=str(path))


def _result(scored: Scored) -> dict[str, Any]:
    predictions, labels = scored.predictions, scored.labels
    num_correct = int((predictions.predicted == labels).sum())
    return {
        "accuracy_percent": 100 * num_correct / len(labels),
        "num_correct": num_correct,
        "num_test": len(labels),
        "loss": predictions.loss,
        "predicted_sha256": predicted_sha256(predictions.predicted.numpy()),
        **_other_metrics(scored),
    }


def _other_metrics(scored: Scored) -> dict[str, Any]:
    """Top-5 and the means over classes of F1 = 2·tp/(2·tp + fp + fn) and of recall = tp/(tp + fn).

    A class without a test image has no recall; one that is not predicted either has no F1.
    """
    predicted, labels, best = scored.predictions.predicted, scored.labels, scored.predictions.top5
    num_classes = 1 + int(torch.cat([predicted, labels]).max())
    right, support, taken = (  # tp, tp + fn, tp + fp of each class
        torch.bincount(classes, minlength=num_classes).double()
        for classes in (labels[predicted == labels], labels, predicted)
    )
    return {
        "num_top5_correct": int((best == labels[:, None]).any(dim=1).sum()),
        "macro_f1": round((2 * right / (support + taken))[support + taken > 0].mean().item(), 6),
        "balanced_accuracy": round((right / support)[support > 0].mean().item(), 6),
    }


def _no_result(spec: RunSpec) -> dict[str, Any]:
    """The result fields of a diverged seed. `num_test` comes from the spec: the scored split may not have been read."""
    num_test = spec.data.num_test if spec.data.split == "test" else spec.data.num_validation
    return {"accuracy_percent": None, "num_correct": None, "num_test": num_test, "loss": None, "predicted_sha256": None}


def _keep_arrays(directory: Path, *, scored: Scored) -> None:
    predicted = scored.predictions.predicted.numpy().astype(np.uint16)
    confidence = scored.predictions.confidence.numpy().astype(np.float16)
    arrays = {"predicted": predicted, "confidence": confidence}
    arrays["top5"] = smallest_unsigned(scored.predictions.top5.numpy())
    write_atomic(directory / "predictions.npz", encode_npz(arrays))
    weights = registry.first_layer_weights(scored.network).numpy().astype(np.float16)
    write_atomic(directory / "filters.npz", encode_npz({"weights": weights}))
