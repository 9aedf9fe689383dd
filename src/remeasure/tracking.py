"""MLflow as a projection of the runs' journals and of the committed records. The only file that imports mlflow.

What an MLflow run should hold is a function of the files alone (`_run_content`, `_record_content`, `_row_points`);
`Tracker._bring_up_to_date` sends what the store lacks of it. So projecting twice adds nothing, and a store that was
down, deleted or left behind in the middle is completed by projecting again.

mlflow takes about two seconds to import: it is imported when a Tracker is made, never with this file.
"""

import fcntl
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import yaml

from remeasure import journal
from remeasure.spec import InputError, Row, RunRecord, Verdict

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

P = ParamSpec("P")
Measured = Literal["measured here", "committed record"]
Points = dict[tuple[str, int], tuple[float, int]]  # (metric, step) to (value, time in milliseconds)

EXPERIMENT = "remeasure"
PARENT_TAG = "mlflow.parentRunId"
MAX_TEXT = 500  # characters of a parameter or tag; MLflow 3 takes 6000 and 8000, but nobody reads them in a table
MAX_DIGEST = 36  # characters of a data set's digest in MLflow; the whole fingerprint is in the tag data_sha256

# Set before mlflow is imported, where the user has not. A dead server is then known in 10 s, not in minutes.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line on stdout is ours
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_STATUS = {
    "started": "RUNNING",
    "resumed": "RUNNING",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "finished": "FINISHED",
}
_FILES_AT_START = ("config.yaml", "environment.json", "diff.patch")
_FILES_AT_END = ("predictions.npz", "record.json", journal.JOURNAL_FILE)
_INFO_TAGS = ("row", "seed", "model", "data", "recipe", "spec_sha256", "device", "device_kind")
_MORE_TAGS = ("data_sha256", "data_official", "dirty", "precision", "engine")


# ---------------------------------------------------------------- where


def available() -> bool:
    """Whether mlflow is installed; without it nothing is tracked, and `make track` replays the runs elsewhere."""
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


def masked(text: str) -> str:
    """The text without the passwords of the URIs in it: `scheme://user:secret@host` becomes `scheme://***@host`."""
    return re.sub(r"://[^\s'\"]*@", "://***@", text)


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI, None for any other store."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


# ---------------------------------------------------------------- what a run in MLflow should hold


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What one MLflow run should hold. `identity`: the tag, and its value, by which the run is found again."""

    identity: tuple[str, str]
    name: str
    status: str
    started_ms: int
    ended_ms: int
    tags: dict[str, str]
    points: Points
    params: dict[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None  # name, digest, source
    files: tuple[Path, ...] = ()


def _run_content(directory: Path, *, parent_id: str) -> _Content | None:
    """Of a run directory; None if its journal holds no `started` event (a crash tore it)."""
    events = journal.read(directory)
    started = next((event for event in events if event["event"] == "started"), None)
    if started is None:
        return None
    state = next(event for event in reversed(events) if event["event"] in _STATUS)
    record = state.get("record") or {}
    end_ms = _milliseconds(state["time"])
    if record and record["accuracy_percent"] is None:
        state = journal.last(events, "diverged") or {**state, "event": "diverged"}
    status = _STATUS[state["event"]]
    config = _config(directory / "config.yaml")
    info = {**_names(config), **started, **record}
    names = _FILES_AT_START if status == "RUNNING" else (*_FILES_AT_START, *_FILES_AT_END)
    return _Content(
        identity=("remeasure.run_id", str(started.get("run_id", directory.name))),
        name=_run_name(info),
        status=status,
        started_ms=_milliseconds(started["time"]),
        ended_ms=end_ms,
        tags={**_tags(info, measured="measured here", parent_id=parent_id), "outcome": _outcome(state)},
        points={**_final_points(record, config=config, time_ms=end_ms), **_curve_points(journal.curve(events))},
        params=_flat(config),
        dataset=_dataset(info, config=config),
        files=tuple(path for name in names if (path := directory / name).is_file()),
    )


def _record_content(
    record: RunRecord, *, spec: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], parent_id: str
) -> _Content:
    info = {**_names(spec), **asdict(record)}
    end_ms = _milliseconds(record.finished_at)
    status = "FAILED" if record.accuracy_percent is None else "FINISHED"
    identity = f"{record.row}/{record.seed}/{record.spec_sha256[:12]}/{record.device_kind}/{record.finished_at}"
    outcome = {"outcome": "finished" if status == "FINISHED" else "diverged"}
    return _Content(
        identity=("remeasure.record", identity),
        name=_run_name(info),
        status=status,
        started_ms=end_ms - round(1000 * record.wall_seconds),
        ended_ms=end_ms,
        tags={**_tags(info, measured="committed record", parent_id=parent_id), **outcome},
        points={**_final_points(info, config=spec, time_ms=end_ms), **_curve_points(curve, time_ms=end_ms)},
        params=_flat(spec),
        dataset=_dataset(info, config=spec),
    )


def _row_points(verdict: Verdict, *, published_percent: float) -> Points:
    """All at step 0, now: MLflow shows what is last at the largest step, and a fresh campaign starts with few seeds."""
    mean = verdict.mean_percent
    values = {
        "mean_percent": mean,
        "sd_percent": verdict.sd_percent,
        "interval_low_percent": verdict.interval_low_percent,
        "interval_high_percent": verdict.interval_high_percent,
        "published_percent": published_percent,
        "gap_pp": None if mean is None else mean - published_percent,
        "num_seeds": verdict.num_seeds,
    }
    return _points(values, step=0, time_ms=round(1000 * time.time()))


def _names(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a resolved config says about the run, under the names that tags use."""
    names = {key: config[key]["name"] for key in ("model", "data", "recipe") if key in config}
    return names | {key: config[key] for key in ("precision", "engine", "data_sha256") if key in config}


def _run_name(info: Mapping[str, Any]) -> str:
    what = info.get("row") or f"{info['model']}-{info['data']}"
    return f"{what} seed {info['seed']}"


def _tags(info: Mapping[str, Any], *, measured: Measured, parent_id: str) -> dict[str, str]:
    known = {key: _cut(info[key]) for key in (*_INFO_TAGS, *_MORE_TAGS) if info.get(key) is not None}
    parent = {PARENT_TAG: parent_id} if parent_id else {}
    return {**known, **parent, "measured": measured, "mlflow.source.git.commit": str(info.get("commit", ""))}


def _outcome(state: journal.Event) -> str:
    """How the run stands: `running`, `finished`, or `<event>: <why>`."""
    if _STATUS[state["event"]] == "RUNNING":
        return "running"
    why = state.get("reason") or state.get("signal")
    return _cut(f"{state['event']}: {why}") if why else str(state["event"])


def _curve_points(curve: Sequence[Mapping[str, Any]], *, time_ms: int = 0) -> Points:
    """One step an epoch. `time_ms` stands for points without a time of their own."""
    points: Points = {}
    for point in curve:
        split, epoch = point["split"], int(point["epoch"])
        values = {f"{split}_loss": point["loss"], f"{split}_accuracy_percent": point["accuracy_percent"]}
        at_ms = _milliseconds(point["time"]) if "time" in point else time_ms
        points |= _points({**values, "lr": point.get("lr")}, step=epoch, time_ms=at_ms)
    return points


def _final_points(record: Mapping[str, Any], *, config: Mapping[str, Any], time_ms: int) -> Points:
    """The record's numbers, named after the split that they were taken on; none while there is no record."""
    if not record:
        return {}
    split = config["data"]["split"] if config else "test"
    values = {key: record[key] for key in ("num_correct", "num_params", "wall_seconds")}
    values |= {f"{split}_accuracy_percent": record["accuracy_percent"], f"{split}_loss": record["loss"]}
    return _points(values, step=record["epochs"], time_ms=time_ms)


def _points(values: Mapping[str, Any], *, step: int, time_ms: int) -> Points:
    """Those that are known; infinity as the largest float, which is what MLflow keeps of it."""
    largest = sys.float_info.max
    known = {key: float(value) for key, value in values.items() if value not in (None, "")}
    return {
        (key, step): (value if math.isnan(value) else min(max(value, -largest), largest), time_ms)
        for key, value in known.items()
    }


def _dataset(info: Mapping[str, Any], *, config: Mapping[str, Any]) -> tuple[str, str, str] | None:
    data, sha256 = config.get("data"), info.get("data_sha256")
    if not data or not sha256:
        return None
    known_copy = data["known_copies"].get(sha256)
    source = {"title": data["title"], "sha256": sha256, "official": info.get("data_official"), "known_copy": known_copy}
    return data["name"], sha256[:MAX_DIGEST], json.dumps(source)


def _config(path: Path) -> Mapping[str, Any]:
    return _read_yaml(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=16)
def _read_yaml(path: Path, _modified_ns: int) -> Mapping[str, Any]:
    """Read once a version: a live run asks every epoch, and a parse takes longer than the rest of the call."""
    config = yaml.safe_load(path.read_text())
    return config if isinstance(config, dict) else {}


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, lists as JSON, in characters and lengths that MLflow accepts."""
    if not isinstance(value, Mapping):
        return {prefix: _cut(value)}
    parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {re.sub(r"[^\w.:/ -]", "_", key)[:250]: text for part in parts for key, text in part.items()}


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _milliseconds(time_utc: str) -> int:
    return round(1000 * datetime.fromisoformat(time_utc).timestamp())


# ---------------------------------------------------------------- sending it


@dataclass(kw_only=True)
class _Held:
    """What the store is known to hold of one run."""

    run_id: str
    status: str
    ended_ms: int | None
    tags: dict[str, str]
    params: set[str]
    points: dict[tuple[str, int], float]
    datasets: set[str]
    files: dict[str, int]  # name to size


class Tracker:
    """The experiment `remeasure` of one MLflow store, which is made if it does not exist.

    `artifact_root`: where a new experiment keeps its files; None leaves it to the server.
    Raises InputError if the store cannot be reached or used.
    """

    def __init__(self, uri: str, *, artifact_root: Path | None) -> None:
        self.uri = uri
        self._database = _sqlite_path(uri)
        self._held: dict[tuple[str, str], _Held] = {}
        try:
            # Processes that migrate one fresh SQLite database together crash each other.
            with _locked(self._database):
                self._client = _client(uri)
                self._experiment_id = _experiment(self._client, artifact_root=artifact_root)
            self._inode = self._database.stat().st_ino if self._database else 0
        except Exception as error:
            raise InputError(*_unreachable(uri, error=error)) from error

    def project(self, run_directory: Path, *, parent_id: str = "") -> str:
        """Bring MLflow up to date with a run directory and return the MLflow run's id.

        `parent_id`: what `project_row` returned for the run's campaign. Returns "" if the journal has not begun.
        """
        content = _run_content(run_directory, parent_id=parent_id)
        return self._bring_up_to_date(content) if content else ""

    def project_row(
        self,
        row: Row,
        *,
        verdict: Verdict,
        spec_sha256: str,
        device_kind: str,
        measured: Measured,
        agreement: str = "",
        running: bool = False,
        at: str | None = None,
    ) -> str:
        """Bring the parent run of a row's campaign up to date and return its id.

        `agreement`: how the older record compares, in words. `at`: the time of the measurement, ISO 8601; None is now.
        """
        time_ms = _milliseconds(at or journal.now())
        tags = {
            **{"row": row.name, "model": row.model, "data": row.data, "recipe": row.recipe, "mode": row.mode},
            **{"verdict": verdict.verdict, "reason": verdict.reason, "agreement": agreement, "measured": measured},
            **{"spec_sha256": spec_sha256, "device_kind": device_kind},
        }
        content = _Content(
            identity=("remeasure.campaign", f"{row.name}/{spec_sha256[:12]}/{device_kind}"),
            name=row.name,
            status="RUNNING" if running else "FINISHED",
            started_ms=time_ms,
            ended_ms=time_ms,
            tags={key: _cut(value) for key, value in tags.items()},
            points=_row_points(verdict, published_percent=row.published.accuracy_percent),
        )
        return self._bring_up_to_date(content)

    def project_record(
        self, record: RunRecord, *, spec: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], parent_id: str = ""
    ) -> str:
        """Replay a committed record as a child run and return its id; nothing if this seed's own run is in the store.

        `spec`: the row's results/specs/<row>.yaml. `curve`: this seed's lines of results/curves/<row>.csv.
        """
        content = _record_content(record, spec=spec, curve=curve, parent_id=parent_id)
        same = {key: getattr(record, key) for key in ("row", "seed", "spec_sha256", "device_kind")}
        own = self._search({**same, "measured": "measured here"}, status=content.status)
        return str(own.info.run_id) if own else self._bring_up_to_date(content)

    @contextmanager
    def system_metrics(self, mlflow_run_id: str, *, interval_seconds: float = 5.0) -> Iterator[None]:
        """Record processor, memory, disk and GPU use beside the run, where the machine lets us; "" records nothing."""
        monitor = None
        if mlflow_run_id:
            try:
                monitor = import_module("mlflow.system_metrics.system_metrics_monitor").SystemMetricsMonitor(
                    mlflow_run_id, sampling_interval=interval_seconds, resume_logging=True, tracking_uri=self.uri
                )
                monitor.start()
            except Exception as error:  # no psutil, no access to /proc, a store that has gone: the run matters more
                print(f"system metrics are not recorded: {masked(str(error))}", file=sys.stderr)
        try:
            yield
        finally:
            if monitor:
                monitor.finish()

    def _bring_up_to_date(self, content: _Content) -> str:
        """Send what the store lacks. A call that fails forgets what was known, so that the next looks it up again."""
        self._check_database()
        held = self._held.pop(content.identity, None) or self._find_or_create(content)
        self._send_batches(content, held=held)
        self._send_files(content, held=held)
        self._send_status(content, held=held)
        self._held[content.identity] = held
        return held.run_id

    def _check_database(self) -> None:
        """SQLite goes on writing into a deleted file without a word."""
        if self._database and not (self._database.exists() and self._database.stat().st_ino == self._inode):
            raise OSError(f"{self._database} was deleted or replaced under this process")

    def _find_or_create(self, content: _Content) -> _Held:
        with _locked(self._database):
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

    def _send_batches(self, content: _Content, *, held: _Held) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = {at: point for at, point in content.points.items() if not _same(held.points.get(at), point[0])}
        metrics = [Metric(key, value, time_ms, step) for (key, step), (value, time_ms) in points.items()]
        params = [Param(key, value) for key, value in content.params.items() if key not in held.params]
        tags = [RunTag(key, value) for key, value in content.tags.items() if held.tags.get(key) != value]
        while metrics or params or tags:  # MLflow takes at most 1000 in all and 100 of the latter two
            self._client.log_batch(held.run_id, metrics[:800], params[:100], tags[:100], synchronous=True)
            metrics, params, tags = metrics[800:], params[100:], tags[100:]
        held.points |= {at: value for at, (value, _) in points.items()}
        held.params |= content.params.keys()
        held.tags |= content.tags

    def _send_files(self, content: _Content, *, held: _Held) -> None:
        if content.dataset and content.dataset[0] not in held.datasets:
            self._client.log_inputs(held.run_id, datasets=[_dataset_input(content.dataset)])
            held.datasets.add(content.dataset[0])
        for path in content.files:
            size = path.stat().st_size
            if held.files.get(path.name) != size:
                self._client.log_artifact(held.run_id, str(path))
                held.files[path.name] = size

    def _send_status(self, content: _Content, *, held: _Held) -> None:
        if content.status == "RUNNING" and held.status != "RUNNING":
            self._client.update_run(held.run_id, status="RUNNING")
        if content.status != "RUNNING" and (content.status, content.ended_ms) != (held.status, held.ended_ms):
            self._client.set_terminated(held.run_id, content.status, content.ended_ms)
        held.status, held.ended_ms = content.status, content.ended_ms


class BestEffort:
    """Calls a tracker for a live run: what fails is reported in one line on stderr, and the run goes on.

    After a call, the next ones are skipped for 20 times as long as it took, and for 10 s at least if it failed: so
    that tracking costs a twentieth of the time at most, however slow or dead the store is. `clock` returns seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resting_until = -math.inf
        self._behind = False

    def __call__(self, send: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
        """`send(*args, **kwargs)`, as in `best_effort(tracker.project, directory)`; "" if it failed or was skipped."""
        return "" if self._clock() < self._resting_until else self.at_once(send, *args, **kwargs)

    def at_once(self, send: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
        """The same, but never skipped: for a run's last call, and wherever the id is needed."""
        began = self._clock()
        try:
            sent = send(*args, **kwargs)
        except Exception as error:
            self._rest(began=began, at_least=10.0)
            if not self._behind:
                print(f"tracking is behind: {_first_line(error)}; `make track` completes it", file=sys.stderr)
            self._behind = True
            return ""
        self._rest(began=began, at_least=0.0)
        self._behind = False
        return sent

    def _rest(self, *, began: float, at_least: float) -> None:
        ended = self._clock()
        self._resting_until = ended + max(at_least, 20 * (ended - began))


def _client(uri: str) -> "MlflowClient":
    """Import mlflow, quietly, and connect."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # the faults that matter come as exceptions
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
        # Ten tries, each twice as long after the one before, would report a wrong database after 100 s.
        database: Any = import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = 3
    return MlflowClient(uri)


def _experiment(client: "MlflowClient", *, artifact_root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            location = artifact_root.absolute().as_uri() if artifact_root else None
            return str(client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:  # another process was faster
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
    what = f"MLflow's store {masked(uri)} cannot be used: {_first_line(error)}"
    return what, "start that server, correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the project"


def _first_line(error: Exception) -> str:
    text = masked(str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


@contextmanager
def _locked(database: Path | None) -> Iterator[None]:
    """Alone among this machine's processes at a SQLite database; other stores look after themselves."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
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


def _same(held: float | None, value: float) -> bool:
    return held is not None and (held == value or (math.isnan(held) and math.isnan(value)))
