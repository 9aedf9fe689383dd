"""MLflow as a projection of the runs' journals and of the committed records.

What an MLflow run should hold is a function of the files alone (tracking/content);
`Tracker._bring_up_to_date` sends what the store lacks of it. So projecting twice adds nothing, and a store that was
down, deleted or only partly updated is completed by projecting again.
"""

import getpass
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remeasure.judging.records import SeedResults
from remeasure.system.redaction import masked
from remeasure.tracking.content.base import Content, DataInput
from remeasure.tracking.content.rows import row_content
from remeasure.tracking.content.runs import RECORD_TAG, record_content, run_content
from remeasure.tracking.content.sweeps import sweep_content
from remeasure.tracking.mlflow_store import Store, artifact_root, store_uri, try_twice
from remeasure.tracking.observer import Standing, Sweep
from remeasure.tracking.views import CAMPAIGN_TAG, IS_ROW, Measured, experiment_tags, former_views

if TYPE_CHECKING:
    from mlflow.entities import Run

USER_TAG = "mlflow.user"
MOST_RUNS = 50_000  # in one answer: MLflow gives no more
MADE_TAG = "remeasure.made_sha256"  # of what the artifacts were made from that are no files


def open_tracker(project_root: Path) -> "Tracker":
    """The tracker over this project's store. Raises InputError if it cannot be reached."""
    uri = store_uri(project_root)
    return Tracker(Store(uri, artifact_root=artifact_root(uri, project_root=project_root)))


@dataclass(kw_only=True)
class _Held:
    """Cached state of one run in the store."""

    run_id: str
    name: str
    status: str
    ended_ms: int | None
    tags: dict[str, str]
    params: set[str]
    points: dict[tuple[str, int], float]
    datasets: set[str]
    files: dict[str, int]  # name to size


class Tracker:
    """Sends runs and rows to a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._held: dict[tuple[str, str], _Held] = {}

    def project(self, run_directory: Path, *, parent_id: str = "") -> str:
        """Bring MLflow up to date with a run directory and return the MLflow run's id.

        `parent_id`: what `project_row` returned for the run's campaign, or as in run_content. "" if the journal has no
        `started` event.
        """
        content = run_content(run_directory, parent_id=parent_id)
        return self._bring_up_to_date(content) if content else ""

    def project_row(self, standing: Standing) -> str:
        """Bring the parent run of a row's campaign up to date and return its id."""
        return self._bring_up_to_date(row_content(standing))

    def project_sweep(self, sweep: Sweep) -> str:
        """Bring the parent run of a sweep up to date and return its id."""
        return self._bring_up_to_date(sweep_content(sweep))

    def describe(self, table: str = "") -> str:
        """Bring the experiment's views up to date with the rows that the store holds, and its note with this Markdown
        table, if there is one.

        Returns the experiment's id.
        """
        from mlflow.exceptions import MlflowException

        client, experiment_id = self.store.client, self.store.experiment_id
        held = client.get_experiment(experiment_id).tags
        wanted = experiment_tags(self._measured(), experiment_id=experiment_id, table=table)
        for key, value in wanted.items():
            if held.get(key) != value:
                try_twice(client.set_experiment_tag, experiment_id, key, value)
        for key in former_views(held, wanted=wanted):
            with suppress(MlflowException):  # another process has deleted it meanwhile
                client.delete_experiment_tag(experiment_id, key)
        return experiment_id

    def close_campaign(self, campaign: str) -> str:
        """End a row's parent run, if a killed campaign left it running; returns `campaign`.

        `campaign`: as content.rows.campaign_name gives it.
        """
        for run in self._search({CAMPAIGN_TAG: campaign}, status="RUNNING")[:1]:
            self.store.client.set_terminated(run.info.run_id, "KILLED")
        return campaign

    def project_records(self, parts: Sequence[SeedResults], *, parent_id: str = "") -> list[str]:
        """Replay the committed records of a row as child runs and return their ids, in order.

        Where the store has a seed's own run, that one's. All runs of the row are looked up at once.
        """
        contents = [record_content(part, parent_id=parent_id) for part in parts]
        self.store.check()
        with self.store.locked():
            there = self._search({"row": parts[0].record.row})
            here = [run for run in there if run.data.tags.get("measured") == "measured here"]
            own = {_measurement(run.data.tags, run.info.status): run.info.run_id for run in here}
            known = {run.data.tags.get(RECORD_TAG): run for run in there}
            for content in contents:
                if _measurement(content.tags, content.status) not in own and content.identity[1] not in known:
                    self._held[content.identity] = self._create(content)
        return [
            own.get(_measurement(content.tags, content.status))
            or self._bring_up_to_date(content, run=known.get(content.identity[1]))
            for content in contents
        ]

    @contextmanager
    def system_metrics(self, mlflow_run_id: str, *, interval_seconds: float = 5.0) -> Iterator[None]:
        """Record the use of processor, memory and GPU beside the run, where that is possible; "" records nothing.

        MLflow's numbers of disk and network say nothing of a run whose data are in memory.
        """
        monitor = None
        if mlflow_run_id:
            try:
                monitor = import_module("mlflow.system_metrics.system_metrics_monitor").SystemMetricsMonitor(
                    mlflow_run_id, sampling_interval=interval_seconds, resume_logging=True, tracking_uri=self.store.uri
                )
                telling = ("CPUMonitor", "GPUMonitor")
                monitor.monitors = [each for each in monitor.monitors if type(each).__name__ in telling]
                monitor.start()
            except Exception as error:  # no psutil, no access to /proc, no store: the run goes on
                print(f"system metrics are not recorded: {masked(str(error))}", file=sys.stderr)
        try:
            yield
        finally:
            if monitor:
                monitor.finish()

    def _bring_up_to_date(self, content: Content, *, run: "Run | None" = None) -> str:
        """Send what the store lacks. A failed call drops the cached state, so that the next reads it from the store.

        `run`: as the store has it, if the caller knows that.
        """
        self.store.check()
        held = self._held.pop(content.identity, None)
        if held is None:
            held = self._read(run, content=content) if run else self._find_or_create(content)
        self._send_batches(content, held=held)
        self._send_files(content, held=held)
        self._send_status(content, held=held)
        self._held[content.identity] = held
        return held.run_id

    def _find_or_create(self, content: Content) -> _Held:
        with self.store.locked():
            found = self._search({content.identity[0]: content.identity[1]})
            if not found:
                return self._create(content)
        return self._read(found[0], content=content)

    def _create(self, content: Content) -> _Held:
        """Make the run; the caller holds the store's lock."""
        run = self.store.client.create_run(
            self.store.experiment_id,
            start_time=content.started_ms,
            tags={**content.tags, content.identity[0]: content.identity[1], USER_TAG: _user()},
            run_name=content.name,
        )
        return _held(run, points={}, files={})

    def _read(self, run: "Run", *, content: Content) -> _Held:
        history = sorted(self.store.history(run), key=lambda metric: metric.timestamp)
        points = {(metric.key, metric.step): metric.value for metric in history}
        there = self.store.client.list_artifacts(run.info.run_id) if content.files or content.made else []
        return _held(run, points=points, files={entry.path: entry.file_size or 0 for entry in there})

    def _search(self, tags: Mapping[str, str], *, status: str = "") -> "list[Run]":
        clauses = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        clauses += [f"attributes.status = '{status}'"] if status else []
        return list(
            self.store.client.search_runs(
                [self.store.experiment_id], filter_string=" and ".join(clauses), max_results=MOST_RUNS
            )
        )

    def _measured(self) -> list[Measured]:
        """The rows that have a parent run in the store, whoever sent it."""
        found = self.store.client.search_runs(
            [self.store.experiment_id],
            filter_string=f"{IS_ROW} AND tags.`model` LIKE '%'",
            max_results=MOST_RUNS,
        )
        return [
            Measured(
                row=run.data.tags["row"],
                model=run.data.tags["model"],
                published_percent=run.data.metrics.get("row/published_percent", 0),
            )
            for run in found
        ]

    def _send_batches(self, content: Content, *, held: _Held) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = {at: point for at, point in content.points.items() if held.points.get(at) != point[0]}
        metrics = [Metric(key, value, time_ms, step) for (key, step), (value, time_ms) in points.items()]
        params = [Param(key, value) for key, value in content.params.items() if key not in held.params]
        wanted = {**content.tags, USER_TAG: held.tags.get(USER_TAG) or _user()}
        tags = [RunTag(key, value) for key, value in wanted.items() if held.tags.get(key) != value]
        if metrics or params or tags:
            try_twice(self.store.client.log_batch, held.run_id, metrics, params, tags, synchronous=True)
        held.points |= {at: value for at, (value, _) in points.items()}
        held.params |= content.params.keys()
        held.tags |= wanted

    def _send_files(self, content: Content, *, held: _Held) -> None:
        if wanted := [each for each in content.datasets if each.name not in held.datasets]:
            try_twice(self.store.client.log_inputs, held.run_id, datasets=[_dataset_input(each) for each in wanted])
            held.datasets |= {each.name for each in wanted}
        for path in content.files:
            size = path.stat().st_size
            if held.files.get(path.name) != size:
                self.store.client.log_artifact(held.run_id, str(path))
                held.files[path.name] = size
        changed = held.tags.get(MADE_TAG) != content.made_sha256
        for name, make in content.made.items():
            if (changed or name not in held.files) and (data := make()) is not None:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / name).write_bytes(data)
                    self.store.client.log_artifact(held.run_id, f"{folder}/{name}")
                held.files[name] = len(data)
        if content.made and changed:
            try_twice(self.store.client.set_tag, held.run_id, MADE_TAG, content.made_sha256)
            held.tags[MADE_TAG] = content.made_sha256

    def _send_status(self, content: Content, *, held: _Held) -> None:
        if held.name in content.former_names:
            self.store.client.update_run(held.run_id, name=content.name)
            held.name = content.name
        if content.status == "RUNNING" and held.status != "RUNNING":
            self.store.client.update_run(held.run_id, status="RUNNING")
        if content.status != "RUNNING" and (content.status, content.ended_ms) != (held.status, held.ended_ms):
            self.store.client.set_terminated(held.run_id, content.status, content.ended_ms)
        held.status, held.ended_ms = content.status, content.ended_ms


def _measurement(tags: Mapping[str, str], status: str) -> tuple[str, ...]:
    """What tells a seed's measurements apart: seed, spec, kind of device, and how it ended."""
    return (*(tags.get(key, "") for key in ("seed", "spec_sha256", "device_kind")), status)


def _user() -> str:
    """The name of the user who runs this; "unknown" where the system has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _held(run: "Run", *, points: dict[tuple[str, int], float], files: dict[str, int]) -> _Held:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return _Held(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        ended_ms=run.info.end_time,
        tags=dict(run.data.tags),
        params=set(run.data.params),
        points=points,
        datasets={entry.dataset.name for entry in inputs},
        files=files,
    )


def _dataset_input(data: DataInput) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(data.name, data.digest, data.source_type, data.source, data.schema, data.profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])
