"""A tiny campaign in a scratch project, to be broken off at will: how it is started, and what must be left in the end.

Three rows on the digits, five seeds: `shaken` has dropout, distortions and a rate that changes at each step; a row
shares its spec, as rows of a ledger may; `plain` has another net, optimiser and batch size. Each epoch is three blocks,
each block ends with a checkpoint.
"""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tests.support.forking import client as forking
from tests.support.project import Project, copy_project

from remeasure.runs import journal

DRIVER = Path(__file__).with_name("driver.py")
EPOCHS = 40 if os.environ.get("REMEASURE_FAULTS") else 10  # of each seed
TIMEOUT_SECONDS = 300.0  # a start that takes so long hangs
TRAIN = ("train", "model=shaken")  # the first seed of the first row, by itself
REPRODUCE = ("reproduce",)
NUM_KILLS = int(os.environ.get("REMEASURE_FAULTS") or 3)  # `make faults` says 100
NUM_CUTS = max(2, 3 * NUM_KILLS // 10)
NEVER = "any 0 before"  # when the power fails
CHANGING = ("wall_seconds", "finished_at", "mlflow_run_id", "seconds_per_seed", "measured_on")

CONFIGS = {
    "model/shaken.yaml": """\
# @package _global_
defaults: [{override /data: digits}, {override /recipe: shaken}]
model:
  name: shaken
  builder: mlp
  options:
    hidden_sizes: [32, 32]
    activation: relu
    dropout: [0.2, 0.2]
    dropout_masks: bernoulli
    batch_norm: false
    initialisation: keras_default
steps_per_block: 7
""",
    "recipe/shaken.yaml": f"""\
defaults: [lenet5, _self_]
name: shaken
epochs_total: {EPOCHS}
schedule: {{epochs_warmup: 1}}
""",
    "model/plain.yaml": """\
# @package _global_
defaults: [{override /data: digits}, {override /recipe: plain}]
model:
  name: plain
  builder: mlp
  options:
    hidden_sizes: [32]
    activation: relu
    dropout: []
    dropout_masks: bernoulli
    batch_norm: false
    initialisation: torch_default
steps_per_block: 4
""",
    "recipe/plain.yaml": f"""\
defaults: [keras_mlp, _self_]
name: plain
epochs_total: {EPOCHS}
""",
}
ROW = """\
  {name}:
    model: {model}
    data: digits
    recipe: {model}
    mode: train
    published:
      accuracy_percent: 90.0
      num_digits: 1
      num_params_text: '{num_params}'
      num_runs: null
      selection: null
      sources: [{{citation: nobody, where: nowhere, says: '90.0', grade: unsourced}}]
      notes: made up
    rule: {{margin_pp: 20.0, looks: [{num_seeds}]}}
"""
ROWS = (
    {"name": "shaken-digits", "model": "shaken", "num_params": "3,466", "num_seeds": 3},
    {"name": "shaken-digits-again", "model": "shaken", "num_params": "3,466", "num_seeds": 2},
    {"name": "plain-digits", "model": "plain", "num_params": "2,410", "num_seeds": 2},
)


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """One scratch project and the watch over it: `watch` is the driver's folder, beside the project."""

    project: Project

    @property
    def root(self) -> Path:
        return self.project.root

    @property
    def watch(self) -> Path:
        return self.root.with_name(f"{self.root.name}-watch")

    def start(self, *command: str, cut: str = NEVER) -> subprocess.Popen[bytes]:
        """The command's process, in a session of its own; what it prints is appended to the watch's `output`."""
        (self.watch / "calls").unlink(missing_ok=True)
        environment = self.project.environment(
            FAULTS_FOLDER=str(self.watch), FAULTS_CUT=cut, REMEASURE_CHECKPOINT_SECONDS="0", TMPDIR=str(self.watch)
        )
        with (self.watch / "output").open("ab") as output:
            return forking.popen(
                [str(DRIVER), *command],
                cwd=self.root,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, *command: str, cut: str = NEVER) -> int:
        """The command's exit status."""
        return self.start(*command, cut=cut).wait(TIMEOUT_SECONDS)

    def output(self) -> str:
        return (self.watch / "output").read_text()

    def journal_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.project.runs.glob(f"*/{journal.JOURNAL_FILE}"))

    def records(self) -> dict[str, Any]:
        """When each finished seed was finished, by its folder."""
        found = sorted(self.project.runs.glob("*/record.json"))
        return {path.parent.name: json.loads(path.read_bytes())["finished_at"] for path in found}


def template(root: Path) -> Project:
    """A scratch project with these configs and this ledger, which nothing was run in."""
    project = copy_project(root, store="")
    for name, text in CONFIGS.items():
        (root / "conf" / name).write_text(text)
    (root / "conf/benchmark.yaml").write_text("rows:\n" + "".join(ROW.format(**row) for row in ROWS))
    return project


def folder(parent: Path, *, name: str) -> Path:
    """One that is not there yet: a campaign may have ended before its first fault, and the next has the same name."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent)) / "project"


def begin(root: Path, *, template: Project) -> Campaign:
    """A campaign of its own that nothing was run in yet."""
    shutil.copytree(template.root, root)
    campaign = Campaign(project=Project(root=root))
    campaign.watch.mkdir()
    return campaign


class Unbroken(NamedTuple):
    """The project before anything was run in it, and what a campaign left that ran through in one go."""

    template: Project
    kept: dict[str, object]

    def begin(self, root: Path) -> Campaign:
        """The same campaign, from nothing."""
        return begin(root, template=self.template)


# ---------------------------------------------------------------- what is left in the end


def kept(campaign: Campaign) -> dict[str, object]:
    """Everything that a campaign leaves, by name, without what cannot be the same twice: times, and MLflow's ids."""
    return {
        **dict(_kept_runs(campaign)),
        **dict(_kept_results(campaign.root)),
        **dict(_kept_weights(campaign)),
        **dict(_kept_in_mlflow(campaign.root / "mlflow.db")),
    }


def faults(found: Mapping[str, object], *, expected: Mapping[str, object]) -> list[str]:
    """What was lost, what is there twice or left over, and what differs; one line each."""
    return [
        *(f"lost: {name}" for name in expected if name not in found),
        *(f"duplicated: {name}" for name in found if name not in expected),
        *(
            f"differing: {name}: {str(found[name])[:200]}, expected {str(value)[:200]}"
            for name, value in expected.items()
            if name in found and found[name] != value
        ),
    ]


def summary(what: str, *, faults: list[str]) -> str:
    """Such as "100 kills: 0 lost, 0 duplicated, 0 differing"."""
    kinds = Counter(fault.partition(":")[0] for fault in faults)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in ("lost", "duplicated", "differing"))
    return f"{what}: {counts}"


def _kept_runs(campaign: Campaign) -> Iterator[tuple[str, object]]:
    for path in sorted(campaign.project.runs.rglob("*")):
        name = str(path.relative_to(campaign.root))
        if path.name == "record.json":
            content = json.loads(path.read_bytes())
            yield name, {key: content[key] for key in content if key not in (*CHANGING, "files_sha256", "seal_sha256")}
        elif path.name == journal.JOURNAL_FILE:
            events = journal.read(path.parent)
            points = [{**point, "time": "", "seconds": ""} for point in journal.curve(events)]
            yield name, (points, events[-1]["event"])
        elif path.parent.name == "rules" and path.name == "since":  # times
            continue
        elif path.parent.name == "rules":
            for seed, rule in json.loads(path.read_bytes() or "{}").items():
                yield f"{name} seed {seed}", rule
        elif path.is_file() and path.stat().st_size > 0:  # locks, and notes of campaigns that ended well, are empty
            yield name, path.read_bytes()


def _kept_results(root: Path) -> Iterator[tuple[str, object]]:
    """Seals are compared without the line of the one file that holds times."""
    paths = (path for path in (root / "results").rglob("*") if path.is_file())
    for path in sorted([*paths, *root.glob("*README*")]):
        name, content = str(path.relative_to(root)), path.read_bytes()
        if path.suffix == ".csv":
            lines = csv.DictReader(io.StringIO(content.decode()))
            yield name, [{key: line[key] for key in line if key not in CHANGING} for line in lines]
        elif path.suffix == ".sha256":
            yield name, [line for line in content.decode().splitlines() if "  runs/" not in line]
        elif path.name in ("table.md", "report.html"):
            changing = r'; [\d.]+ s a seed.*?, the last on [\d-]+|class="cost">[^<]*|<!-- sha256 of all lines.*'
            yield name, re.sub(changing, "", content.decode())
        else:
            yield name, content


def _kept_weights(campaign: Campaign) -> Iterator[tuple[str, object]]:
    """The SHA-256 of the final weights, of each time that a run came to its end."""
    lines = set((campaign.watch / "weights").read_text().splitlines())
    for run in sorted({line.split()[0] for line in lines}):
        yield f"weights of {run}", sorted(line.split()[1] for line in lines if line.split()[0] == run)


def _kept_in_mlflow(database: Path) -> Iterator[tuple[str, object]]:
    """Runs, each with its status and its parent; points, each with its value. One that is there twice gets a number."""
    seen = Counter[str]()
    for name, value in [*_tracked_runs(database), *_tracked_points(database)]:
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), value


NAMED = """
WITH named AS (SELECT runs.run_uuid, status,
                      (CASE WHEN name LIKE 'seed %' THEN value || ' ' ELSE '' END) || name AS name
               FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'row')
"""
RUNS = f"""{NAMED}
SELECT name, status, (SELECT parent.name FROM tags JOIN runs AS parent ON parent.run_uuid = tags.value
                      WHERE tags.run_uuid = named.run_uuid AND tags.key = 'mlflow.parentRunId')
FROM named ORDER BY name
"""
POINTS = f"""{NAMED}
SELECT name, metrics.key, step, value,
       EXISTS (SELECT * FROM tags WHERE tags.run_uuid = named.run_uuid AND tags.key = 'seed')
FROM metrics JOIN named ON named.run_uuid = metrics.run_uuid
WHERE metrics.key NOT LIKE 'system/%' AND NOT is_nan ORDER BY name, metrics.key, step, metrics.timestamp
"""


def _tracked_runs(database: Path) -> Iterator[tuple[str, object]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for name, status, parent in connection.execute(RUNS):
            yield f"MLflow: {name}", (status, parent)


def _tracked_points(database: Path) -> Iterator[tuple[str, object]]:
    """A row's own points are counts as they grow, all at step 0: only the last one is looked at."""
    rows: dict[str, object] = {}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for name, key, step, value, is_seed in connection.execute(POINTS):
            point = f"MLflow: {name}, {key} at step {step}"
            if not is_seed:
                rows[point] = value
            else:
                yield point, "" if key.rpartition("/")[2] in CHANGING else value
    yield from rows.items()


# ---------------------------------------------------------------- what a start may not do


def setbacks(campaign: Campaign) -> Iterator[str]:
    """Of each run, more work done again than that since its last checkpoint, as its journal tells."""
    for path in sorted(campaign.project.runs.glob(f"*/{journal.JOURNAL_FILE}")):
        last_epoch, resumed = 0, False
        for event in journal.read(path.parent):
            if event["event"] == "resumed":
                resumed = True
                if event["checkpoint"] == "corrupt" or (event["checkpoint"] == "none" and last_epoch):
                    yield f"lost: {path.parent.name} began anew after epoch {last_epoch} ({event['checkpoint']})"
            elif event["event"] == "epoch" and event["split"] == "train":
                if event["epoch"] not in ((last_epoch, last_epoch + 1) if resumed else (last_epoch + 1,)):
                    yield f"lost: {path.parent.name} trained epoch {event['epoch']} after epoch {last_epoch}"
                last_epoch, resumed = event["epoch"], False


def leftover_processes(sessions: list[int]) -> Iterator[int]:
    """Who is still there of these sessions."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid
