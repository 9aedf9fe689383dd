"""What a run costs beside its training: commands from shell to shell, data loading, tracking, memory, table, verify."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from remeasure.bench.baselines import pytorch_loops
from remeasure.bench.baselines.ours import compose_spec
from remeasure.bench.memory import Footprint
from remeasure.bench.series import Measure, Part, Ratio, Series, Setting, interleaved, ratio
from remeasure.bench.speed import place_of
from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.config import compose
from remeasure.data import catalog, fingerprint
from remeasure.judging import ledger, publish, verify
from remeasure.judging.report.page import TestSplit
from remeasure.runs.execute import execute
from remeasure.runs.folder import Place
from remeasure.runs.journal import unwatched
from remeasure.spec.base import DataMissingError
from remeasure.spec.run import DataSpec, RunSpec
from remeasure.system import paths
from remeasure.tracking.mlflow_observer import MlflowObserver
from remeasure.tracking.observer import Observers
from remeasure.tracking.terminal import Progress

TWO_EPOCHS = "train.py, logreg, 2 epochs"
LIMITS = {"train.py --help": 1.0, "reproduce.py table": 3.0, "reproduce.py verify": 3.0, TWO_EPOCHS: 10.0}  # seconds
TRACKING_AT_MOST = 1.02
COMMAND_SECONDS = 3600.0


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rounds(calls: Mapping[str, Callable[[], object]], *, num_rounds: int) -> dict[str, Series]:
    """Seconds of each call, interleaved, after an untimed call that warms the disk's cache and does late imports."""
    if not calls:
        return {}
    for call in calls.values():
        call()
    values = interleaved({name: partial(timed, call) for name, call in calls.items()}, num_rounds=num_rounds)
    return {name: Series(name=name, unit="s", values=tuple(found)) for name, found in values.items()}


def seconds_at_most(series: Series, *, limit: float) -> Ratio:
    """The ratio of a series of seconds to a limit in seconds."""
    one = Series(name="1 s", unit="s", values=(1.0,) * len(series.values))
    return ratio(f"{series.name}, in seconds", series, one, at_most=limit)


# ---------------------------------------------------------------- commands


def commands(setting: Setting) -> Part:
    """Commands from shell to shell, on a copy of the project, which is deleted afterwards."""
    project = copied(setting.project, to=setting.scratch / "project")
    lines = {**command_lines(tiny=setting.tiny), **imports()}
    calls = {name: partial(python, line, cwd=project, setting=setting) for name, line in lines.items()}
    found = rounds(calls, num_rounds=setting.num_rounds)
    return Part(
        name="commands",
        question="How long does a person wait for a command, from shell to shell?",
        series=tuple(found.values()),
        ratios=tuple(seconds_at_most(found[name], limit=limit) for name, limit in LIMITS.items() if name in found),
        remarks=(
            "On a copy of the project outside git, with the committed results; each command was called once before.",
            "The no-op is the second call of a row whose one seed is finished: plan, table and verify, no training.",
            "The imports alone are what a command that needs them cannot be faster than.",
        ),
    )


def command_lines(*, tiny: bool) -> dict[str, tuple[str, ...]]:
    """Command lines by name, as arguments of Python in the project."""
    small = ("data=digits",) if tiny else ()
    noop = ("logreg-digits", "--demo") if tiny else ("logreg-mnist",)
    return {
        "train.py --help": ("src/train.py", "--help"),
        "reproduce.py table": ("src/reproduce.py", "table"),
        "reproduce.py verify": ("src/reproduce.py", "verify"),
        TWO_EPOCHS: ("src/train.py", "model=logreg", *small, "recipe.epochs_total=2", "fresh=true"),
        "reproduce.py, no-op": ("src/reproduce.py", "reproduce", *noop, "--seeds", "1"),
    }


def imports() -> dict[str, tuple[str, ...]]:
    return {f"import {name}": ("-c", f"import {name}") for name in ("torch", "pytorch_lightning", "mlflow")}


def copied(project: Path, *, to: Path) -> Path:
    """A copy of the project's code, configs, results and README; commands run in it write into it."""
    to.mkdir(parents=True)
    for name in ("src", "conf", "results", "pyproject.toml", "README.md"):
        source = project / name
        if source.is_dir():
            shutil.copytree(source, to / name)
        elif source.exists():
            shutil.copy2(source, to / name)
    return to


def python(arguments: Sequence[str], *, cwd: Path, setting: Setting) -> str:
    """The stdout of `python <arguments>`. Raises RuntimeError with the last line of output if it fails, and
    TimeoutExpired after an hour.
    """
    own = {"REMEASURE_DATA": str(setting.data_root), "MLFLOW_TRACKING_URI": f"sqlite:///{setting.scratch}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | own,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=COMMAND_SECONDS,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise RuntimeError(f"python {' '.join(arguments)} ended with {done.returncode}: {last}")
    return done.stdout


# ---------------------------------------------------------------- loading


def loading(setting: Setting) -> Part:
    """Both splits of each data set from files to memory."""
    calls: dict[str, Callable[[], object]] = {}
    remarks = ["The files are in the disk's cache, and were read once before. Here their checksums are verified."]
    for name in ("digits",) if setting.tiny else ("mnist", "cifar10"):
        spec = catalog.read_config(name, conf_dirs=paths.conf_dirs())
        if not _is_here(spec, root=setting.data_root):
            remarks.append(f"{spec.title}: not measured, its files are not here.")
            continue
        calls[f"{name}: load_split"] = partial(_load, spec, root=setting.data_root)
        calls[f"{name}: fingerprint"] = partial(fingerprint.fingerprint, spec, root=setting.data_root)
    if "mnist: load_split" in calls:
        calls |= _mnist_unpacked(setting)
    if (setting.data_root / "cifar-10-batches-py").is_dir():
        calls["cifar10: torchvision"] = partial(_torchvision, "CIFAR10", root=setting.data_root)
    elif "cifar10: load_split" in calls:
        remarks.append("torchvision reads CIFAR-10 from its pickles, which are not here; load_split, binary files.")
    found = rounds(calls, num_rounds=setting.num_rounds)
    pairs = {
        "mnist, unpacked: load_split": "mnist, unpacked: torchvision",
        "cifar10: load_split": "cifar10: torchvision",
    }
    return Part(
        name="loading",
        question="How long does it take to bring a whole data set, both splits, from its files into memory?",
        series=tuple(found.values()),
        ratios=tuple(
            ratio(f"{ours} / torchvision", found[ours], found[theirs])
            for ours, theirs in pairs.items()
            if theirs in found
        ),
        remarks=tuple(remarks),
    )


def _is_here(spec: DataSpec, *, root: Path) -> bool:
    try:
        _load(spec, root=root)
    except DataMissingError:
        return False
    return True


def _load(spec: DataSpec, *, root: Path) -> None:
    for split in catalog.SPLITS:
        catalog.load_split(spec, split, root=root, fetch=False)


def _mnist_unpacked(setting: Setting) -> dict[str, Callable[[], object]]:
    """Calls that read the same four unpacked files: torchvision reads only unpacked ones."""
    pytorch_loops.unpack_unseen(setting.data_root, root=setting.scratch)
    spec = catalog.read_config("mnist", conf_dirs=paths.conf_dirs())
    return {
        "mnist, unpacked: load_split": partial(_load, spec, root=setting.scratch),
        "mnist, unpacked: torchvision": partial(_torchvision, "MNIST", root=setting.scratch),
    }


def _torchvision(name: str, *, root: Path) -> None:
    from torchvision import datasets

    for train in (True, False):
        getattr(datasets, name)(root, train=train)


# ---------------------------------------------------------------- tracking


def tracking(setting: Setting) -> Part:
    """Runs with MLflow on a SQLite file against the same runs without tracking."""
    small = ("data=digits", "recipe.epochs_total=2") if setting.tiny else ()
    specs = {model: compose_spec(f"model={model}", *small, data_root=setting.data_root) for model in ("mlp2", "logreg")}
    place = replace(place_of(setting), project=setting.scratch)
    calls: dict[str, Callable[[], object]] = {}
    with Workers(place) as workers:
        for (name, spec), tracked in itertools.product(specs.items(), (False, True)):
            how = "tracked" if tracked else "plain"
            calls[f"{name}, one run, {how}"] = partial(_single, spec, place=place, tracked=tracked)
            calls[f"{name}, campaign, {how}"] = partial(_campaign, spec, workers=workers, tracked=tracked)
        found = rounds(calls, num_rounds=setting.num_rounds)
    pairs = [f"{name}, {way}" for way in ("one run", "campaign") for name in specs]
    epochs = " and ".join(f"{spec.recipe.epochs_total} epochs of {name}" for name, spec in specs.items())
    return Part(
        name="tracking",
        question="What does tracking in MLflow (a SQLite file) add to a run?",
        series=tuple(found.values()),
        ratios=tuple(
            ratio(
                f"{pair}: tracked / plain", found[f"{pair}, tracked"], found[f"{pair}, plain"], at_most=TRACKING_AT_MOST
            )
            for pair in pairs
        ),
        remarks=(
            f"Whole runs, {epochs}: nothing is extrapolated. Tracking costs so much a run and a little an epoch, so "
            "that its share is smaller in rows with longer runs, which are not measured.",
            "One run: training, scoring, opening the store and all that is sent; mlflow was imported before.",
            f"Campaign: {2 * workers.num} seeds on {workers.num} workers; their parent sends what they journal.",
        ),
    )


def _observers(place: Place) -> Observers:
    return Observers([Progress(io.StringIO()), MlflowObserver(project=place.project)])


def _single(spec: RunSpec, *, place: Place, tracked: bool) -> None:
    """One run, as `python src/train.py` makes it."""
    if not tracked:
        execute(spec, seed=0, row="", place=place, sink=unwatched, fresh=True)
        return
    with _observers(place) as observers:
        observers.keep(execute(spec, seed=0, row="", place=place, sink=observers, fresh=True))


def _campaign(spec: RunSpec, *, workers: Workers, tracked: bool) -> None:
    """Two seeds for each worker, trained and observed as in a campaign."""
    tasks = [Task(row="", seed=seed, spec=spec, fresh=True) for seed in range(2 * workers.num)]
    with _observers(workers.place) as observers:
        if tracked:
            workers.run(tasks, watch=observers, keep=observers.keep)
        else:
            workers.run(tasks)


# ---------------------------------------------------------------- memory


def memory(setting: Setting) -> Part:
    """Memory of a run's process beyond its imports, against what it must hold."""
    series, ratios, remarks = list[Series](), list[Ratio](), list[str]()
    for name, overrides in memory_lines(tiny=setting.tiny).items():
        if not _is_here(compose.compose(overrides).data, root=setting.data_root):
            remarks.append(f"{name}: not measured, its data are not here.")
            continue
        found = _footprint(overrides, folder=setting.scratch / name, setting=setting)
        each = memory_series(name, found)
        series += each.values()
        ratios.append(ratio(f"{name}: trained / accounted for", each["trained"], each["accounted for"]))
    return Part(
        name="memory",
        question="What does a run hold in memory beyond its imports, and is all of it accounted for?",
        series=tuple(series),
        ratios=tuple(ratios),
        remarks=(
            "Resident memory of a process that trains and scores once, untracked: the highest of each stage; one run.",
            "Accounted for: further pages of the libraries' own files; the training split as uint8 with its labels; "
            "weights, gradients, optimiser's tensors; a batch as float32 and what is saved of it. Scoring adds the "
            "test split and its own batches.",
            "Unaccounted for: gradients of activations, and freed memory that is kept, since to give it back and take "
            "it anew at each step costs a ResNet-18 a fifth of its time and more.",
            *remarks,
        ),
    )


def memory_lines(*, tiny: bool) -> dict[str, tuple[str, ...]]:
    """Overrides of train.py for runs of one epoch; ResNet-18 on ten batches, with all other images held back."""
    once = ("recipe.epochs_total=1", "recipe.schedule.epochs_warmup=0")
    if tiny:
        return {"mlp2": ("model=mlp2", "data=digits", *once)}
    ten_batches = ("recipe.resolution=null", "data.num_validation=47440")
    return {
        "mlp2": ("model=mlp2", *once),
        "lenet5": ("model=lenet5", *once),
        "resnet18": ("model=resnet18", *once, *ten_batches),
    }


def memory_series(name: str, found: Footprint) -> dict[str, Series]:
    parts = f"code {found.code:.1f}, data {found.data:.1f}, net {found.net:.1f}, batch {found.batch:.1f}"
    lines = {
        "imports": (found.imported, ""),
        "built": (found.built, "beyond the imports"),
        "trained": (found.trained, "beyond the imports"),
        "scored": (found.scored, "beyond the imports"),
        "accounted for": (found.accounted, parts),
        "unaccounted": (found.trained - found.accounted, "trained, less what is accounted for"),
    }
    return {
        key: Series(name=f"{name}: {key}", unit="MiB", values=(value,), note=note)
        for key, (value, note) in lines.items()
    }


def _footprint(overrides: Sequence[str], *, folder: Path, setting: Setting) -> Footprint:
    """Measured in a separate process. Raises RuntimeError if that fails."""
    stdout = python(["-m", "remeasure.bench.memory", str(folder), *overrides], cwd=setting.scratch, setting=setting)
    return Footprint(**json.loads(stdout))


# ---------------------------------------------------------------- table and verify


def scoring(setting: Setting) -> Part:
    """Reading the ledger, rendering the table and verifying it, in a process that has imported the code."""
    results, ledger_path = setting.project / "results", paths.conf_dir() / "benchmark.yaml"
    readme = setting.project / "README.md"
    rows = ledger.read(ledger_path)
    calls: dict[str, Callable[[], object]] = {
        "ledger.read": partial(ledger.read, ledger_path),
        "table.render": partial(publish.render, rows, results=results, readme_path=readme),
        "verify.verify": partial(
            verify.verify, ledger_path, results=results, splits=partial(_split, setting=setting), readme_path=readme
        ),
    }
    return Part(
        name="scoring",
        question="What do building the table and verifying it take, without starting Python and importing?",
        series=tuple(rounds(calls, num_rounds=setting.num_rounds).values()),
        remarks=("From the committed results and the labels that are here; verify reads them anew each time.",),
    )


def _split(name: str, *, setting: Setting) -> TestSplit | None:
    spec = catalog.read_config(name, conf_dirs=paths.conf_dirs())
    try:
        return TestSplit(*catalog.test_split(spec, root=setting.data_root))
    except DataMissingError:
        return None


HOUSEKEEPING: dict[str, Measure] = {part.__name__: part for part in (commands, loading, tracking, memory, scoring)}
