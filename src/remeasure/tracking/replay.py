"""`make track`: bring MLflow up to date with every run of this checkout and every committed record."""

from collections.abc import Callable, Mapping
from pathlib import Path

from remeasure.judging.reader import read_row
from remeasure.judging.records import from_results
from remeasure.judging.table import verdict_of
from remeasure.runs import journal
from remeasure.runs.folder import directories, participants, replacement
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.system import locks
from remeasure.system.locks import held_folder
from remeasure.system.redaction import masked
from remeasure.system.validation import counted
from remeasure.tracking import mlflow_models, mlflow_runs, mlflow_store
from remeasure.tracking.content.rows import campaign_name
from remeasure.tracking.mlflow_former import forget_former
from remeasure.tracking.mlflow_observer import MlflowObserver
from remeasure.tracking.observer import Observers, Standing


def replay(
    rows: Mapping[str, Row],
    *,
    results: Path,
    runs: Path,
    project: Path,
    table: str,
    say: Callable[[str], None],
    suite: str = "",
) -> None:
    """Send runs and records to MLflow, without what it has already. Raises InputError: no mlflow, or no store.

    `table`: in Markdown, for the experiment's note. `suite`: as in Standing.
    """
    if not mlflow_store.available():
        raise InputError("mlflow is not installed here; `make setup` installs it")
    with mlflow_store.filled_at_once(mlflow_store.store_uri(project)):
        tracker = mlflow_runs.open_tracker(project)
        Observers([MlflowObserver(project=project, tracker=tracker)]).close_orphans(runs)
        campaigns, run_ids = dict[Path, str](), dict[Path | None, str]()  # of the runs' directories
        for directory in directories(runs):  # before the records, so that none is replayed beside its own run
            started = journal.last(journal.read(directory), "started")
            with locks.held_if_free(directory / "lock") as free:
                if free and started:  # else it is being trained, and that process tells MLflow of it
                    sha256, kind = started["spec_sha256"], started["device_kind"]
                    campaigns[directory] = campaign_name(started["row"], spec_sha256=sha256, device_kind=kind)
                    run_ids[directory] = tracker.project(directory)
                    mlflow_models.log_model(tracker.store, directory, run_id=run_ids[directory])
        parents = dict[str, str]()
        for row in rows.values():
            if standing := _standing(row, results=results, runs=runs, suite=suite):
                parents[_campaign_of(standing)] = _replay(standing, tracker=tracker)
        for directory, campaign in campaigns.items():
            tracker.project(directory, parent_id=run_ids.get(replacement(directory)) or parents.get(campaign, ""))
        forget_former(tracker.store)
        tracker.describe(table)
    num_runs, num_rows = counted(len(campaigns), "run"), counted(sum(map(bool, parents.values())), "row")
    say(f"MLflow at {masked(tracker.store.uri)} holds {num_runs} of this checkout and the records of {num_rows}")


def replay_row(row: Row, *, tracker: "mlflow_runs.Tracker", results: Path, runs: Path, suite: str = "") -> str:
    """Replay a row's committed record as a parent run, with a child for each seed; returns the parent's id.

    "" without a record, or while a campaign works on the row: it updates the parent run itself.
    """
    standing = _standing(row, results=results, runs=runs, suite=suite)
    return _replay(standing, tracker=tracker) if standing else ""


def _standing(row: Row, *, results: Path, runs: Path, suite: str) -> Standing | None:
    """How the row's committed record stands; None as in `replay_row`."""
    with held_folder(results):
        group = read_row(results, row=row.name)
    if group is None:
        return None
    standing = Standing(
        row=row,
        verdict=verdict_of(row, records=group.records, spec=group.spec),
        num_seeds=len(group.records),
        spec_sha256=group.records[0].spec_sha256,
        device_kind=group.records[0].device_kind,
        measured="committed record",
        state="finished",
        at=max(record.finished_at for record in group.records),
        seeds=tuple(from_results(group)),
        report=results / "report.html",
        suite=suite,
    )
    is_measured_now = locks.is_shared(participants(runs, campaign=_campaign_of(standing)))
    return None if is_measured_now else standing


def _campaign_of(standing: Standing) -> str:
    return campaign_name(standing.row.name, spec_sha256=standing.spec_sha256, device_kind=standing.device_kind)


def _replay(standing: Standing, *, tracker: "mlflow_runs.Tracker") -> str:
    parent_id = tracker.project_row(standing)
    tracker.project_records(standing.seeds, parent_id=parent_id)
    mlflow_models.register(tracker.store, standing)
    return parent_id
