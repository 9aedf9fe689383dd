"""The content of a seed's MLflow run, from the run's files or from a committed record."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remeasure.judging.records import SeedResults
from remeasure.runs import folder, journal
from remeasure.spec.base import InputError
from remeasure.spec.record import Event
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import decode_yaml
from remeasure.tracking.content.base import (
    PARENT_TAG,
    SOURCE,
    STATUS,
    Content,
    Points,
    cut,
    milliseconds,
    params,
    points,
)
from remeasure.tracking.content.datasets import inputs
from remeasure.tracking.observer import Measured
from remeasure.tracking.views import REPLACED

RECORD_TAG = "remeasure.record"
_FILES_AT_START = ("config.yaml", "environment.json", "diff.patch")
_FILES_AT_END = ("predictions.npz", "record.json", journal.JOURNAL_FILE)
_INFO_TAGS = ("row", "seed", "model", "data", "recipe", "spec_sha256", "device", "device_kind")
_MORE_TAGS = ("code_sha256", "data_sha256", "data_official", "dirty", "precision", "engine")


def run_content(directory: Path, *, parent_id: str) -> Content | None:
    """The content for a run directory; None if its journal holds no `started` event (a crash tore it).

    `parent_id`: the MLflow run of its row's campaign; of a run that was replaced, the one of its replacement.
    """
    events = journal.read(directory)
    started = next((event for event in events if event["event"] == "started"), None)
    if started is None:
        return None
    state = next(event for event in reversed(events) if event["event"] in STATUS)
    record = state.get("record") or {}
    end_ms = max(milliseconds(each["time"]) for each in (started, state))  # a clock that was set back
    if record and record["accuracy_percent"] is None:
        state = journal.last(events, "diverged") or {**state, "event": "diverged"}
    status = STATUS[state["event"]]
    path, config = directory / "config.yaml", dict[str, Any]()
    with suppress(InputError):  # it is damaged; the journal has the rest
        config = decode_yaml(read_bytes(path), name=str(path))
    info = {**_names(config), **started, **record}
    is_replaced = folder.replacement(directory) is not None
    names = _FILES_AT_START if status == "RUNNING" else (*_FILES_AT_START, *_FILES_AT_END)
    return Content(
        identity=("remeasure.run_id", str(started.get("run_id", directory.name))),
        **_run_names(info, parent_id=parent_id, attempt=folder.attempt(directory) if is_replaced else None),
        status=status,
        started_ms=milliseconds(started["time"]),
        ended_ms=end_ms,
        tags={
            **_tags(info, measured="measured here", parent_id=parent_id),
            **_findings({event["name"]: event["evidence"] for event in events if event["event"] == "finding"}),
            "outcome": REPLACED if is_replaced else _outcome(state),
            **({"trained_model": _kept(directory)} if status == "FINISHED" else {}),
        },
        points={**_final_points(record, config=config, time_ms=end_ms), **_curve_points(journal.curve(events))},
        params=params(info, config=config),
        datasets=inputs(config, sha256=info.get("data_sha256")),
        files=tuple(path for name in names if (path := directory / name).is_file()),
    )


def record_content(part: SeedResults, *, parent_id: str) -> Content:
    """The content for a committed record."""
    record, spec = part.record, part.spec
    info = {**_names(spec), **asdict(record)}
    found = {point.finding: point.evidence for point in part.findings}
    curve = [asdict(point) for point in part.curve]
    end_ms = milliseconds(record.finished_at)
    status = "FAILED" if record.accuracy_percent is None else "FINISHED"
    identity = f"{record.row}/{record.seed}/{record.spec_sha256[:12]}/{record.device_kind}/{record.finished_at}"
    outcome = {
        "outcome": "finished" if status == "FINISHED" else "diverged",
        "trained_model": "none: a committed record holds no weights",
    }
    return Content(
        identity=(RECORD_TAG, identity),
        **_run_names(info, parent_id=parent_id),
        status=status,
        started_ms=end_ms - round(1000 * record.wall_seconds),
        ended_ms=end_ms,
        tags={**_tags(info, measured="committed record", parent_id=parent_id), **_findings(found), **outcome},
        points={**_final_points(info, config=spec, time_ms=end_ms), **_curve_points(curve, time_ms=end_ms)},
        params=params(info, config=spec),
        datasets=inputs(spec, sha256=record.data_sha256),
    )


def _names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a resolved config that become tags, by the names of the tags."""
    names = {key: config[key]["name"] for key in ("model", "data", "recipe") if key in config}
    return names | {key: config[key] for key in ("precision", "engine", "data_sha256") if key in config}


def _run_names(info: Mapping[str, Any], *, parent_id: str, attempt: int | None = None) -> dict[str, Any]:
    """Such as "seed 003" below its row's run, in this order by name up to 1000 seeds; else with the row before it.

    `attempt`: of a run that was replaced, which hangs below the one that replaced it: "seed 003 attempt 1".
    """
    seed, row = f"seed {info['seed']:03d}", info.get("row") or f"{info['model']}-{info['data']}"
    if not parent_id:
        return {"name": f"{row} {seed}"}
    former = (f"{row} {seed}", f"{row} seed {info['seed']}")
    if attempt is not None:
        return {"name": f"{seed} attempt {attempt}", "former_names": (seed, *former)}
    return {"name": seed, "former_names": former}


def _tags(info: Mapping[str, Any], *, measured: Measured, parent_id: str) -> dict[str, str]:
    known = {key: cut(info[key]) for key in (*_INFO_TAGS, *_MORE_TAGS) if info.get(key) is not None}
    parent = {PARENT_TAG: parent_id} if parent_id else {}
    return {**known, **parent, **SOURCE, "measured": measured, "mlflow.source.git.commit": str(info.get("commit", ""))}


def _kept(directory: Path) -> str:
    """Where the run's network is."""
    if (directory / "model.safetensors").is_file():
        return "kept"
    return "published weights, not copied" if (directory / "model.json").is_file() else "none: keep said so"


def _findings(found: Mapping[str, str]) -> dict[str, str]:
    """Tags of the doctor's findings (name to evidence): one that lists the names, one for each; {} without findings."""
    each = {f"finding.{re.sub('[^a-z0-9]+', '_', name.lower())}": cut(evidence) for name, evidence in found.items()}
    return {"findings": cut(", ".join(found)), **each} if found else {}


def _outcome(state: Event) -> str:
    """The state of the run: `running`, `finished`, or `<event>: <why>`."""
    if STATUS[state["event"]] == "RUNNING":
        return "running"
    why = state.get("reason") or state.get("signal")
    return cut(f"{state['event']}: {why}") if why else str(state["event"])


def _curve_points(curve: Sequence[Mapping[str, Any]], *, time_ms: int = 0) -> Points:
    """The step is the epoch. `time_ms`: for points without a time."""
    found: Points = {}
    for point in curve:
        split, epoch = point["split"], int(point["epoch"])
        values = {f"{split}/{key}": point.get(key) for key in ("loss", "accuracy_percent", "lr")}
        found |= points(values, step=epoch, time_ms=milliseconds(point["time"]) if "time" in point else time_ms)
    return found


def _final_points(record: Mapping[str, Any], *, config: Mapping[str, Any], time_ms: int) -> Points:
    """The record's numbers, named after the scored split; {} while there is no record."""
    if not record:
        return {}
    split = config["data"]["split"] if config else "test"
    keys = ("accuracy_percent", "loss", "num_correct", "num_top5_correct", "macro_f1", "balanced_accuracy")
    values = {f"{split}/{key}": record.get(key) for key in keys}  # an older record lacks the last ones
    return points({**values, "run/wall_seconds": record["wall_seconds"]}, step=record["epochs"], time_ms=time_ms)
