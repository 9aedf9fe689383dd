"""Observes runs while they train: progress on the terminal, and MLflow. Neither can stop a run."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from remeasure.runs.folder import CAMPAIGNS, Outcome, read_record, recorded_run_id, remove_leftovers, write_record
from remeasure.runs.journal import JOURNAL_FILE, Journal, under_way
from remeasure.spec.record import Event
from remeasure.system import locks
from remeasure.tracking import mlflow_store
from remeasure.tracking.best_effort import BestEffort
from remeasure.tracking.terminal import Progress

ENDINGS = ("finished", "failed", "diverged", "interrupted")


class Observer:
    """Called with each journal event; as a context manager, it closes progress bars and metric samplers on exit.

    Raises InputError when made if the store cannot be reached; one that is locked, or fails later, falls behind.
    """

    def __init__(self, *, project: Path, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.tracker = _tracker(project)
        self.best_effort = BestEffort()
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

    def close_orphans(self, runs: Path) -> None:
        """Close the runs and campaigns of this checkout that killed processes left RUNNING."""
        for path in sorted(runs.glob(f"*/{JOURNAL_FILE}")):
            self._close_run(path.parent)
        if self.tracker is None:
            return
        for path in sorted(runs.glob(f"{CAMPAIGNS}/*")):
            for campaign in locks.orphaned(path):
                self.best_effort.at_once(self.tracker.close_campaign, campaign)

    def _close_run(self, directory: Path) -> None:
        """Mark a run whose process was killed as interrupted; send a finished one that MLflow lacks."""
        if (directory / "record.json").is_file():
            if self.tracker and not recorded_run_id(directory):
                self.finish(Outcome(record=read_record(directory), directory=directory, reused=False))
            remove_leftovers(directory)
            return
        with locks.held_if_free(directory / "lock") as free:
            if free and under_way(directory):
                Journal(directory).write("interrupted", reason="its process was killed")
                if self.tracker:
                    self._project(directory, row="")

    def finish(self, outcome: Outcome) -> Outcome:
        """The outcome with its MLflow run id, also put into its record; a reused outcome with an id is unchanged."""
        if self.tracker is None or (outcome.reused and outcome.record.mlflow_run_id):
            return outcome
        directory, row = outcome.directory, outcome.record.row
        with locks.held(directory / "lock"):  # another campaign may finish it at the same time
            mlflow_run_id = self._project(directory, row=row)
            record = replace(outcome.record, mlflow_run_id=mlflow_run_id)
            if mlflow_run_id and (directory / "record.json").is_file():  # tuning writes none
                write_record(directory, record)
                self._project(directory, row=row)
        return replace(outcome, record=record)

    def _project(self, directory: Path, *, row: str) -> str:
        assert self.tracker is not None
        return self.best_effort.at_once(self.tracker.project, directory, parent_id=self.parents.get(row, ""))

    def _stop_sampling(self, directory: Path) -> None:
        if sampler := self.samplers.pop(directory, None):
            sampler.close()


def _tracker(project: Path) -> mlflow_store.Tracker | None:
    """None where mlflow is not installed, or its database is locked."""
    try:
        return mlflow_store.open_tracker(project) if mlflow_store.available() else None
    except mlflow_store.BusyError as error:
        print(f"tracking is behind: {error.faults[0]}; `make track` completes it", file=sys.stderr)
        return None
