"""The content of an MLflow run, and its numbers and texts as MLflow takes them."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) to (value, time in milliseconds)

PARENT_TAG = "mlflow.parentRunId"
MAX_TEXT = 500  # characters of a parameter or tag; MLflow 3 takes 6000 and 8000, but nobody reads them in a table
STATUS = {  # of the run, by the last state in its journal
    "started": "RUNNING",
    "resumed": "RUNNING",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "finished": "FINISHED",
}
SOURCE = {"mlflow.source.name": "src/reproduce.py", "mlflow.source.type": "LOCAL"}  # else the UI hides the commit
_CHECKSUMS = ("sha256", "md5", "known_copies")  # ends of the names of settings
# By the end of a metric's name; the rest has six digits.
_DECIMALS = {"_percent": 3, "_percent_sd": 3, "_pp": 3, "_seconds": 1}


@dataclass(frozen=True, kw_only=True)
class DataInput:
    """A split of a data set. `context`: the split, as in the names of metrics; the rest as mlflow.entities.Dataset."""

    name: str
    context: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one MLflow run should hold. `identity`: the tag and value that identify the run.

    `former_names`: what it was called without its row's run, or by older versions; the user's own name stays. `made`:
    artifacts that are no files here; None where one cannot be made. They are sent again when `made_sha256` differs.
    """

    identity: tuple[str, str]
    name: str
    former_names: tuple[str, ...] = ()
    status: str
    started_ms: int
    ended_ms: int
    tags: dict[str, str]
    points: Points
    params: dict[str, str] = field(default_factory=dict)
    datasets: tuple[DataInput, ...] = ()
    files: tuple[Path, ...] = ()
    made: Mapping[str, Callable[[], bytes | None]] = field(default_factory=dict)
    made_sha256: str = ""


def points(values: Mapping[str, float | str | None], *, step: int, time_ms: int) -> Points:
    """The values that are known, by the metric's name, rounded; infinity as the largest float, which MLflow takes."""
    largest = sys.float_info.max
    known = {name: rounded(name, float(value)) for name, value in values.items() if value not in (None, "")}
    return {
        (name, step): (value if math.isnan(value) else min(max(value, -largest), largest), time_ms)
        for name, value in known.items()
    }


def rounded(name: str, value: float) -> float:
    """A percentage to 3 decimals, as in results/ (one test image of 50,000 is 0.002), and seconds to 1."""
    decimals = next((num for end, num in _DECIMALS.items() if name.endswith(end)), None)
    return float(f"{value:.6g}") if decimals is None else round(value, decimals)


def params(info: Mapping[str, Any], *, config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the resolved config, row and seed, by which the UI groups runs, and the size of the network.

    Without what is not set, and without checksums: the tags and the file config.yaml have them.
    """
    more = ("row", "seed", "num_params")
    return _flat(config) | {key: str(info[key]) for key in more if info.get(key) not in (None, "")}


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, lists as JSON, in characters and lengths that MLflow accepts."""
    if not isinstance(value, Mapping):
        return {} if value in (None, "", []) else {prefix: cut(value)}
    told = ((str(key), inner) for key, inner in value.items() if not str(key).endswith(_CHECKSUMS))
    parts = (_flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in told)
    return {re.sub(r"[^\w.:/ -]", "_", key)[:250]: text for part in parts for key, text in part.items()}


def cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def milliseconds(time_utc: str) -> int:
    return round(1000 * datetime.fromisoformat(time_utc).timestamp())
