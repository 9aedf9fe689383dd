"""What watches runs while they train: progress for a person, MLflow for later. Neither can stop a run."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from remeasure import tracking
from remeasure.journal import Event
from remeasure.progress import Progress
from remeasure.rundir import Outcome, write_record

ENDINGS = ("finished", "failed", "diverged", "interrupted")


class Observer:
    """Called with each journal event; as a context, it closes bars and samplers whatever happens.

    Raises InputError at once if the tracking store cannot be reached; a store that dies later only falls behind.
    """

    def __init__(self, *, project: Path, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.tracker = tracking.open_tracker(project) if tracking.available() else None
        self.best_effort = tracking.BestEffort()
        self.parents: dict[str, str] = {}  # row to the MLflow run of its campaign
        self.samplers: dict[Path, ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for directory in list(self.samplers):
            self._stop_sampling(directory)
        self.progress.close()

    def __call__(self, directory: Path, event: Event) -> None:
        self.progress(directory, event)
        if self.tracker is None:
            return
        if event["event"] in ("started", "resumed"):
            mlflow_run_id = self._project(directory, row=event["row"])
            sampler = ExitStack()
            sampler.enter_context(self.tracker.system_metrics(mlflow_run_id))
            self.samplers[directory] = sampler
        elif event["event"] == "epoch":
            self.best_effort(self.tracker.project, directory)
        elif event["event"] in ENDINGS:
            self._stop_sampling(directory)
            self._project(directory, row="")

    def finish(self, outcome: Outcome) -> Outcome:
        """The outcome with its MLflow run id, in the run's directory as in MLflow; a run of before is left alone."""
        if outcome.reused or self.tracker is None:
            return outcome
        mlflow_run_id = self._project(outcome.directory, row=outcome.record.row)
        record = replace(outcome.record, mlflow_run_id=mlflow_run_id)
        if not (outcome.directory / "record.json").is_file():  # tuning leaves none
            return replace(outcome, record=record)
        write_record(outcome.directory, record)
        self._project(outcome.directory, row=record.row)
        return replace(outcome, record=record)

    def _project(self, directory: Path, *, row: str) -> str:
        assert self.tracker is not None
        return self.best_effort.at_once(self.tracker.project, directory, parent_id=self.parents.get(row, ""))

    def _stop_sampling(self, directory: Path) -> None:
        if sampler := self.samplers.pop(directory, None):
            sampler.close()
