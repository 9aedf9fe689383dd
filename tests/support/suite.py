"""A small suite to try concurrency and outages on: a project with a ledger of two short rows on the bundled digits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.support.project import Project, copy_project

from remeasure.judging.reader import read_runs
from remeasure.runs import journal
from remeasure.tracking.mlflow_store import EXPERIMENT

ROWS = ("logreg-digits", "mlp2-digits")
SEEDS = range(5)
SHORT = "defaults: [article, _self_]\nname: short\nepochs_total: {epochs}\n"


def small_suite(root: Path, *, rows: Sequence[str] = ROWS, epochs: int = 40, store: str = "mlflow.db") -> Project:
    """A scratch project whose ledger is these rows of the demo's, five seeds each; mlp2 trains for so many epochs.

    `store`: as for `copy_project`.
    """
    project = copy_project(root, store=store)
    conf = project.root / "conf"
    entries = yaml.safe_load((conf / "demo.yaml").read_text())["rows"]
    entries["mlp2-digits"]["recipe"] = "short"
    (conf / "recipe" / "short.yaml").write_text(SHORT.format(epochs=epochs))
    (conf / "benchmark.yaml").write_text(yaml.safe_dump({"rows": {name: entries[name] for name in rows}}))
    return project


def sqlite_uri(project: Project) -> str:
    """The store that a project has when nobody names another."""
    return f"sqlite:///{project.root}/mlflow.db"


def in_mlflow(uri: str) -> list[Any]:
    """All runs of the one experiment in a store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [entry for entry in client.search_experiments() if entry.name == EXPERIMENT]
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def full_name(run: Any) -> str:
    """The name of a run in MLflow, a seed's after that of its row, such as "mlp2-digits seed 003"."""
    is_seed = "mlflow.parentRunId" in run.data.tags
    return f"{run.data.tags['row']} {run.info.run_name}" if is_seed else str(run.info.run_name)


def statuses(uri: str) -> dict[str, str]:
    """Status of each run by its full name; fails where two runs have one name."""
    runs = in_mlflow(uri)
    found = {full_name(run): run.info.status for run in runs}
    assert len(found) == len(runs), sorted(map(full_name, runs))
    return found


def times_started(project: Project) -> Counter[tuple[str, int]]:
    """How often the training of each row's seed was begun, in all processes together."""
    directories = [path.parent for path in project.runs.glob("*/journal.jsonl")]
    events = [event for directory in directories for event in journal.read(directory)]
    return Counter((event["row"], event["seed"]) for event in events if event["event"] == "started")


def finished_seeds(project: Project) -> int:
    """How many runs have their record."""
    return len(list(project.runs.glob("*/record.json")))


def assert_whole(project: Project, *, uri: str, rows: Sequence[str] = ROWS) -> None:
    """Each seed of the rows was begun once, is finished, in results/, and in MLflow below its row."""
    wanted = [(row, seed) for row in rows for seed in SEEDS]
    assert times_started(project) == Counter(wanted)
    assert finished_seeds(project) == len(wanted)
    results = project.root / "results"
    found = {record.mlflow_run_id: (row, record.seed) for row in rows for record in read_runs(results, row=row)}
    assert sorted(found.values()) == wanted
    runs = in_mlflow(uri)
    names = {run.info.run_id: full_name(run) for run in runs}
    assert sorted(names.values()) == sorted([*rows, *(f"{row} seed {seed:03d}" for row, seed in wanted)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {run.info.run_id: run for run in runs if run.info.run_id in found}
    assert {names[key] for key in children} == {f"{row} seed {seed:03d}" for row, seed in wanted}
    assert {key: names[run.data.tags["mlflow.parentRunId"]] for key, run in children.items()} == {
        key: row for key, (row, _) in found.items()
    }
