"""Reads finished runs as the parts of a row of results/."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from remeasure.judging.metrics import METRICS
from remeasure.judging.records import SeedResults
from remeasure.runs import journal
from remeasure.runs.folder import Outcome
from remeasure.spec.claim import Metric
from remeasure.spec.record import CurvePoint, Event, FoundPoint
from remeasure.system.paths import read_file

_NOT_SPEC = ("row", "seed")


_LATER = ("num_top5_correct", "macro_f1", "balanced_accuracy")


def from_run(outcome: Outcome, *, row: str, metric: Metric = "accuracy_percent") -> SeedResults:
    """The results of a finished run, read from its directory; beside the accuracy only what the claim is about."""
    directory = outcome.directory
    predictions, filters = _arrays(directory / "predictions.npz"), _arrays(directory / "filters.npz")
    config = yaml.safe_load(read_file(directory / "config.yaml"))
    events, seed = journal.read(directory), outcome.record.seed
    others: dict[str, Any] = {column: None for column in _LATER if column != METRICS[metric].column}
    return SeedResults(
        record=replace(outcome.record, row=row, **others),
        predicted=predictions.get("predicted"),
        confidence=predictions.get("confidence"),
        top5=predictions.get("top5") if metric == "top5_percent" else None,
        filters=filters.get("weights"),
        curve=tuple(_point(event, row=row, seed=seed) for event in journal.curve(events)),
        findings=tuple(
            FoundPoint(row=row, seed=seed, finding=event["name"], evidence=event["evidence"])
            for event in events
            if event["event"] == "finding"
        ),
        spec={key: value for key, value in config.items() if key not in _NOT_SPEC},
        environment=json.loads(read_file(directory / "environment.json")),
    )


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _point(event: Event, *, row: str, seed: int) -> CurvePoint:
    numbers = {key: _finite(event[key]) for key in ("loss", "accuracy_percent", "lr")}
    return CurvePoint(row=row, seed=seed, epoch=event["epoch"], split=event["split"], **numbers)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
