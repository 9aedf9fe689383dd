"""Results of a run: its record, the points of its curve, its findings, the events of its journal."""

from dataclasses import dataclass
from typing import Any, Literal

from remeasure.spec.base import DeviceKind, Strict


@dataclass(frozen=True, kw_only=True)
class RunRecord(Strict):
    """One finished seed: one line of results/runs/<row>.csv, whose columns are these fields in this order.

    `commit`: "unknown" if it could not be determined; `dirty` is None then.

    A seed that diverged has a line, too: accuracy_percent, num_correct, loss and predicted_sha256 are None.

    The last five are None in records older than they are; a file none of whose lines has one has no such column.
    `macro_f1` and `balanced_accuracy` (the mean of the classes' recalls) are fractions, with 6 decimals; these and
    `num_top5_correct` are None where the row's claim is not about them. `own_code_sha256`: of the user's own modules
    that made it; None where the spec names none. `rule`: the row's claim and rule (Row.rule_text) when the seed's
    number was first seen; None in a run's own folder.
    """

    row: str
    seed: int
    spec_sha256: str
    training_version: int
    accuracy_percent: float | None
    num_correct: int | None
    num_test: int
    loss: float | None
    num_params: int
    epochs: int
    wall_seconds: float
    device: str
    device_kind: DeviceKind
    data_sha256: str
    data_official: Literal["yes", "no", "unknown"]
    commit: str
    dirty: bool | None
    versions_sha256: str
    predicted_sha256: str | None
    mlflow_run_id: str
    finished_at: str
    num_top5_correct: int | None = None
    macro_f1: float | None = None
    balanced_accuracy: float | None = None
    own_code_sha256: str | None = None
    rule: str | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One line of results/curves/<row>.csv, whose columns are these fields in this order. None: not a finite number."""

    row: str
    seed: int
    epoch: int
    split: Literal["train", "test", "validation"]
    loss: float | None
    accuracy_percent: float | None
    lr: float | None


@dataclass(frozen=True, kw_only=True)
class FoundPoint:
    """One line of results/findings/<row>.csv, whose columns are these fields in this order (findings.Finding)."""

    row: str
    seed: int
    finding: str
    evidence: str


Event = dict[str, Any]
