"""Finished runs, and committed ones, put together as a row of results/."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from remeasure import journal
from remeasure.paths import read_file
from remeasure.records import CurvePoint, FoundPoint, RowResults
from remeasure.rundir import Outcome
from remeasure.spec import RunRecord

_NOT_SPEC = ("row", "seed")


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedResults:
    """One seed's part of a row. `predicted` and `confidence` (N,), None for a seed that diverged; so for `filters`."""

    record: RunRecord
    predicted: npt.NDArray[Any] | None
    confidence: npt.NDArray[Any] | None
    filters: npt.NDArray[Any] | None
    curve: tuple[CurvePoint, ...]
    findings: tuple[FoundPoint, ...]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]


def from_run(outcome: Outcome, *, row: str) -> SeedResults:
    """A finished run's directory."""
    directory = outcome.directory
    predictions, filters = _arrays(directory / "predictions.npz"), _arrays(directory / "filters.npz")
    config = yaml.safe_load(read_file(directory / "config.yaml"))
    events, seed = journal.read(directory), outcome.record.seed
    return SeedResults(
        record=replace(outcome.record, row=row),
        predicted=predictions.get("predicted"),
        confidence=predictions.get("confidence"),
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


def _point(event: journal.Event, *, row: str, seed: int) -> CurvePoint:
    numbers = {key: _finite(event[key]) for key in ("loss", "accuracy_percent", "lr")}
    return CurvePoint(row=row, seed=seed, epoch=event["epoch"], split=event["split"], **numbers)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def from_results(results: RowResults) -> list[SeedResults]:
    """The seeds of a committed row."""
    index = {int(seed): position for position, seed in enumerate(results.seeds)}
    return [
        SeedResults(
            record=record,
            predicted=results.predicted[index[record.seed]] if record.seed in index else None,
            confidence=results.confidence[index[record.seed]] if record.seed in index else None,
            filters=results.filters if record is results.records[0] and results.filters.size else None,
            curve=tuple(point for point in results.curves if point.seed == record.seed),
            findings=tuple(point for point in results.findings if point.seed == record.seed),
            spec=results.spec,
            environment=results.environments[record.versions_sha256],
        )
        for record in results.records
    ]


def put_together(row: str, *, seeds: Sequence[SeedResults]) -> RowResults:
    """The row that these seeds make, in the order of the seeds. All share one spec, data set and device kind."""
    seeds = sorted(seeds, key=lambda part: part.record.seed)
    scored = [part.record.seed for part in seeds if part.predicted is not None]
    predicted = [part.predicted for part in seeds if part.predicted is not None]
    confidence = [part.confidence for part in seeds if part.confidence is not None]
    shape = (0, seeds[0].record.num_test)
    filters = seeds[0].filters
    return RowResults(
        row=row,
        records=tuple(part.record for part in seeds),
        seeds=np.array(scored, np.int64),
        predicted=np.stack(predicted) if scored else np.zeros(shape, np.uint8),
        confidence=np.stack(confidence) if scored else np.zeros(shape, np.float16),
        curves=tuple(point for part in seeds for point in part.curve),
        findings=tuple(point for part in seeds for point in part.findings),
        filters=np.zeros(0, np.float16) if filters is None else filters,
        spec=seeds[0].spec,
        environments={part.record.versions_sha256: part.environment for part in seeds},
    )
