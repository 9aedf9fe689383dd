"""The content of an MLflow run, and its numbers and texts as MLflow takes them."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

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
_DECIMALS = {"_percent": 3, "_pp": 3, "_seconds": 1}  # by the end of a metric's name; the rest has six digits


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one MLflow run should hold. `identity`: the tag and value that identify the run.

    `former_name`: what versions before MLflow's sections called it; a name that the user gave stays.
    """

    identity: tuple[str, str]
    name: str
    former_name: str = ""
    status: str
    started_ms: int
    ended_ms: int
    tags: dict[str, str]
    points: Points
    params: dict[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None  # name, digest, source
    files: tuple[Path, ...] = ()


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


def cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def milliseconds(time_utc: str) -> int:
    return round(1000 * datetime.fromisoformat(time_utc).timestamp())
