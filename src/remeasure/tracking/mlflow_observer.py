"""The observer that keeps MLflow up to date with runs and rows."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from remeasure.runs.folder import Outcome, recorded_run_id, replacement, same_seed, write_record
from remeasure.spec.record import Event
from remeasure.system import locks
from remeasure.tracking import mlflow_models, mlflow_runs, mlflow_store
from remeasure.tracking.best_effort import BestEffort
from remeasure.tracking.observer import Observer, Standing, Sweep


class MlflowObserver(Observer):
    """Projects each run's journal into the MLflow store, and each row's standing into the parent run of its seeds.

    Raises InputError when made if the store cannot be reached; one that is locked, refuses the password, or fails
    later, falls behind. Without mlflow it does nothing. `tracker`: one that is open already.
    """

    def __init__(self, *, project: Path, tracker: mlflow_runs.Tracker | None = None) -> None:
        self.tracker = tracker or _tracker(project)
        self.best_effort, self.for_models = BestEffort(), BestEffort()  # a model takes seconds; points need not wait
        self.parents: dict[str, str] = {}  # row to the MLflow run of its campaign
        self.sweep_id = ""
        self.samplers: dict[Path, ExitStack] = {}
        if self.tracker is not None:
            self.best_effort.at_once(self.tracker.describe)

    def started(self, run: Path, event: Event) -> None:
        mlflow_run_id = self._project(run, row=event["row"])
        self.samplers[run] = ExitStack()
        if self.tracker is not None and not event.get("elsewhere"):  # this machine's load would say nothing of the run
            self.samplers[run].enter_context(self.tracker.system_metrics(mlflow_run_id))

    def epoch(self, run: Path, event: Event) -> None:  # noqa: ARG002 - the journal has the event
        if self.tracker is not None:
            self.best_effort(self.tracker.project, run)

    def finished(self, run: Path, event: Event) -> None:  # noqa: ARG002
        self._stop_sampling(run)
        self._project(run, row="")

    def keep(self, outcome: Outcome) -> Outcome:
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
                self.for_models.at_once(mlflow_models.log_model, self.tracker.store, directory, run_id=mlflow_run_id)
                for each in same_seed(directory):
                    if replacement(each) == directory and recorded_run_id(each) not in ("", "?"):
                        self.best_effort.at_once(self.tracker.project, each, parent_id=mlflow_run_id)
        return replace(outcome, record=record)

    def row(self, standing: Standing) -> None:
        if self.tracker is not None and (parent_id := self.best_effort.at_once(self.tracker.project_row, standing)):
            if standing.row.name not in self.parents:
                self.best_effort.at_once(self.tracker.describe)  # the row may be the first of its model
            self.parents[standing.row.name] = parent_id  # "" if the store is unreachable: keep the last id
            if standing.state != "running":
                self.for_models.at_once(mlflow_models.register, self.tracker.store, standing)

    def sweep(self, sweep: Sweep) -> None:
        if self.tracker is not None:
            self.sweep_id = self.best_effort.at_once(self.tracker.project_sweep, sweep) or self.sweep_id

    def abandoned(self, campaign: str) -> bool:
        return self.tracker is not None and bool(self.best_effort.at_once(self.tracker.close_campaign, campaign))

    def close(self) -> None:
        for run in list(self.samplers):
            self._stop_sampling(run)

    def _project(self, run: Path, *, row: str) -> str:
        if self.tracker is None:
            return ""
        return self.best_effort.at_once(self.tracker.project, run, parent_id=self.parents.get(row, "") or self.sweep_id)

    def _stop_sampling(self, run: Path) -> None:
        if sampler := self.samplers.pop(run, None):
            sampler.close()


def _tracker(project: Path) -> mlflow_runs.Tracker | None:
    """None where mlflow is not installed, its database is locked, or its server refuses the password."""
    try:
        return mlflow_runs.open_tracker(project) if mlflow_store.available() else None
    except mlflow_store.NotNowError as error:
        print(f"tracking is behind: {error.faults[0]}; `make track` completes it", file=sys.stderr)
        return None
