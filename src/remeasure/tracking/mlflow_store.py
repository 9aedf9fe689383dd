"""MLflow as a projection of the runs' journals and of the committed records. The only file that imports mlflow.

What an MLflow run should hold is a function of the files alone (tracking/content.py);
`Tracker._bring_up_to_date` sends what the store lacks of it. So projecting twice adds nothing, and a store that was
down, deleted or only partly updated is completed by projecting again.

mlflow takes about two seconds to import: it is imported when a Tracker is made, never with this file.
"""

import hashlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remeasure.spec.base import InputError
from remeasure.spec.record import RunRecord
from remeasure.system import locks
from remeasure.system.redaction import masked
from remeasure.tracking.best_effort import first_line
from remeasure.tracking.content import (
    CAMPAIGN_TAG,
    Content,
    record_content,
    row_content,
    run_content,
)
from remeasure.tracking.observer import Standing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


EXPERIMENT = "remeasure"

# Set before mlflow is imported, unless the user has. A dead server then costs 10 s, not minutes.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line on stdout is ours
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


# ---------------------------------------------------------------- where


def available() -> bool:
    """Whether mlflow is installed; without it nothing is tracked, and `make track` can replay the runs elsewhere."""
    return find_spec("mlflow") is not None


def store_uri(project_root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite database at the project root, whatever the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(project_root / 'mlflow.db').resolve()}"


def artifact_root(uri: str, *, project_root: Path) -> Path | None:
    """Where a new store's files go: beside a SQLite database, at the project root, or where the server says (None)."""
    database = _sqlite_path(uri)
    if database is None and re.match(r"(postgresql|mysql|mssql)\b", uri) is None:
        return None
    return (database.parent if database else project_root).resolve() / "mlartifacts"


def open_tracker(project_root: Path) -> "Tracker":
    """The tracker over this project's store. Raises InputError if it cannot be reached."""
    uri = store_uri(project_root)
    return Tracker(uri, artifact_root=artifact_root(uri, project_root=project_root))


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI, None for any other store."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


# ---------------------------------------------------------------- sending it


@dataclass(kw_only=True)
class _Held:
    """Cached state of one run in the store."""

    run_id: str
    status: str
    ended_ms: int | None
    tags: dict[str, str]
    params: set[str]
    points: dict[tuple[str, int], float]
    datasets: set[str]
    files: dict[str, int]  # name to size


class BusyError(InputError):
    """Another process has locked the store; a later try may succeed."""


class Tracker:
    """The experiment `remeasure` of one MLflow store, which is made if it does not exist.

    `artifact_root`: where a new experiment keeps its files; None leaves it to the server. `lock_seconds`: how long a
    call waits for another process that works on the store.
    Raises InputError if the store cannot be reached or used; BusyError if it is locked.
    """

    def __init__(self, uri: str, *, artifact_root: Path | None, lock_seconds: float = locks.LOCK_SECONDS) -> None:
        self.uri = uri
        self._database = _sqlite_path(uri)
        self._lock, self.lock_seconds = _lock_path(uri), lock_seconds
        self._held: dict[tuple[str, str], _Held] = {}
        try:
            # Processes that migrate one new SQLite database at the same time crash each other.
            with _locked(self._lock, seconds=self.lock_seconds):
                if self._database and not self._database.exists():
                    _make(self._database, artifact_root=artifact_root)
                self._client = _client(uri)
                self._experiment_id = _experiment(self._client, artifact_root=artifact_root)
            self._inode = self._database.stat().st_ino if self._database else 0
        except locks.NoLocksError:
            raise
        except Exception as error:
            busy = isinstance(error, TimeoutError) or "database is locked" in str(error)
            kind = BusyError if busy else InputError
            raise kind(*_unreachable(uri, error=error)) from error

    def project(self, run_directory: Path, *, parent_id: str = "") -> str:
        """Bring MLflow up to date with a run directory and return the MLflow run's id.

        `parent_id`: what `project_row` returned for the run's campaign. "" if the journal has no `started` event.
        """
        content = run_content(run_directory, parent_id=parent_id)
        return self._bring_up_to_date(content) if content else ""

    def project_row(self, standing: Standing) -> str:
        """Bring the parent run of a row's campaign up to date and return its id."""
        return self._bring_up_to_date(row_content(standing))

    def close_campaign(self, campaign: str) -> str:
        """End a row's parent run that a killed campaign left running; returns its id, or "" where there is none.

        `campaign`: as content.campaign_name gives it.
        """
        run = self._search({CAMPAIGN_TAG: campaign}, status="RUNNING")
        if run is None:
            return ""
        self._client.set_terminated(run.info.run_id, "KILLED")
        return str(run.info.run_id)

    def project_record(
        self,
        record: RunRecord,
        *,
        spec: Mapping[str, Any],
        curve: Sequence[Mapping[str, Any]],
        findings: Mapping[str, str] | None = None,
        parent_id: str = "",
    ) -> str:
        """Replay a committed record as a child run and return its id; if the store has this seed's own run, that one's.

        `spec`: the row's results/specs/<row>.yaml. `curve`: this seed's lines of results/curves/<row>.csv. `findings`:
        what the doctor found, name to evidence.
        """
        content = record_content(record, spec=spec, curve=curve, findings=findings or {}, parent_id=parent_id)
        same = {key: getattr(record, key) for key in ("row", "seed", "spec_sha256", "device_kind")}
        own = self._search({**same, "measured": "measured here"}, status=content.status)
        return str(own.info.run_id) if own else self._bring_up_to_date(content)

    @contextmanager
    def system_metrics(self, mlflow_run_id: str, *, interval_seconds: float = 5.0) -> Iterator[None]:
        """Record processor, memory, disk and GPU use beside the run, where that is possible; "" records nothing."""
        monitor = None
        if mlflow_run_id:
            try:
                monitor = import_module("mlflow.system_metrics.system_metrics_monitor").SystemMetricsMonitor(
                    mlflow_run_id, sampling_interval=interval_seconds, resume_logging=True, tracking_uri=self.uri
                )
                monitor.start()
            except Exception as error:  # no psutil, no access to /proc, no store: the run goes on
                print(f"system metrics are not recorded: {masked(str(error))}", file=sys.stderr)
        try:
            yield
        finally:
            if monitor:
                monitor.finish()

    def _bring_up_to_date(self, content: Content) -> str:
        """Send what the store lacks. A failed call drops the cached state, so that the next reads it from the store."""
        self._check_database()
        held = self._held.pop(content.identity, None) or self._find_or_create(content)
        self._send_batches(content, held=held)
        self._send_files(content, held=held)
        self._send_status(content, held=held)
        self._held[content.identity] = held
        return held.run_id

    def _check_database(self) -> None:
        """Raise OSError if the database was deleted or replaced: SQLite would silently write to the deleted file."""
        if self._database and not (self._database.exists() and self._database.stat().st_ino == self._inode):
            raise OSError(f"{self._database} was deleted or replaced under this process")

    def _find_or_create(self, content: Content) -> _Held:
        with _locked(self._lock, seconds=self.lock_seconds):
            run = self._search({content.identity[0]: content.identity[1]})
            if run is None:
                run = self._client.create_run(
                    self._experiment_id,
                    start_time=content.started_ms,
                    tags={**content.tags, content.identity[0]: content.identity[1]},
                    run_name=content.name,
                )
                return _held(run, points={}, files={})
        keys = {key for key, _ in content.points} & set(run.data.metrics)
        histories = [self._client.get_metric_history(run.info.run_id, key) for key in sorted(keys)]
        history = sorted((m for h in histories for m in h), key=lambda metric: metric.timestamp)
        points = {(metric.key, metric.step): metric.value for metric in history}
        return _held(run, points=points, files=self._files(run.info.run_id) if content.files else {})

    def _search(self, tags: Mapping[str, object], *, status: str = "") -> "Run | None":
        clauses = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        clauses += [f"attributes.status = '{status}'"] if status else []
        found = self._client.search_runs([self._experiment_id], filter_string=" and ".join(clauses), max_results=1)
        return found[0] if found else None

    def _files(self, run_id: str) -> dict[str, int]:
        return {entry.path: entry.file_size or 0 for entry in self._client.list_artifacts(run_id)}

    def _send_batches(self, content: Content, *, held: _Held) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = {at: point for at, point in content.points.items() if held.points.get(at) != point[0]}
        metrics = [Metric(key, value, time_ms, step) for (key, step), (value, time_ms) in points.items()]
        params = [Param(key, value) for key, value in content.params.items() if key not in held.params]
        tags = [RunTag(key, value) for key, value in content.tags.items() if held.tags.get(key) != value]
        self._client.log_batch(held.run_id, metrics, params, tags, synchronous=True)  # it splits large batches
        held.points |= {at: value for at, (value, _) in points.items()}
        held.params |= content.params.keys()
        held.tags |= content.tags

    def _send_files(self, content: Content, *, held: _Held) -> None:
        if content.dataset and content.dataset[0] not in held.datasets:
            self._log_dataset(content.dataset, run_id=held.run_id)
            held.datasets.add(content.dataset[0])
        for path in content.files:
            size = path.stat().st_size
            if held.files.get(path.name) != size:
                self._client.log_artifact(held.run_id, str(path))
                held.files[path.name] = size

    def _log_dataset(self, dataset: tuple[str, str, str], *, run_id: str) -> None:
        """Try twice: MLflow fails if two processes create the entry of the same data set at once."""
        from mlflow.exceptions import MlflowException

        datasets = [_dataset_input(dataset)]
        try:
            self._client.log_inputs(run_id, datasets=datasets)
        except MlflowException:
            self._client.log_inputs(run_id, datasets=datasets)

    def _send_status(self, content: Content, *, held: _Held) -> None:
        if content.status == "RUNNING" and held.status != "RUNNING":
            self._client.update_run(held.run_id, status="RUNNING")
        if content.status != "RUNNING" and (content.status, content.ended_ms) != (held.status, held.ended_ms):
            self._client.set_terminated(held.run_id, content.status, content.ended_ms)
        held.status, held.ended_ms = content.status, content.ended_ms


def _client(uri: str) -> "MlflowClient":
    """Import mlflow, quietly, and connect."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # faults that matter are raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
        # MLflow's ten tries with doubling delays would report a wrong database after 100 s.
        database: Any = import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = 3
    return MlflowClient(uri)


def _make(database: Path, *, artifact_root: Path | None) -> None:
    """Make a SQLite store, and rename it when complete: MLflow refuses for ever one that a kill left half made."""
    partial = database.with_name(f"{database.name}.partial")
    for leftover in database.parent.glob(f"{partial.name}*"):
        leftover.unlink()
    _experiment(_client(f"sqlite:///{partial}"), artifact_root=artifact_root)
    os.replace(partial, database)


def _experiment(client: "MlflowClient", *, artifact_root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            location = artifact_root.absolute().as_uri() if artifact_root else None
            return str(client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:  # another process has made it meanwhile
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"the experiment {EXPERIMENT} was deleted there; "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back"
        )
    return str(experiment.experiment_id)


def _unreachable(uri: str, *, error: Exception) -> tuple[str, str]:
    what = f"MLflow's store {masked(uri)} cannot be used: {first_line(error)}"
    return what, "start that server, correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the project"


def _lock_path(uri: str) -> Path:
    """The lock file: beside a SQLite database; for any other store in the temporary folder, one a user and URI."""
    if database := _sqlite_path(uri):
        return database.with_name(f"{database.name}.lock")
    name = f"remeasure-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    return Path(tempfile.gettempdir()) / name


@contextmanager
def _locked(path: Path, *, seconds: float) -> Iterator[None]:
    """Hold the store's lock file: no store prevents two processes from creating the same run at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(path, seconds=seconds):
        yield


def _held(run: "Run", *, points: dict[tuple[str, int], float], files: dict[str, int]) -> _Held:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return _Held(
        run_id=run.info.run_id,
        status=run.info.status,
        ended_ms=run.info.end_time,
        tags=dict(run.data.tags),
        params=set(run.data.params),
        points=points,
        datasets={entry.dataset.name for entry in inputs},
        files=files,
    )


def _dataset_input(dataset: tuple[str, str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest, source = dataset
    return DatasetInput(Dataset(name, digest, "remeasure", source), [InputTag("mlflow.data.context", "train and test")])
