"""Which promise of identical numbers holds on this machine: `make determinism` runs each, and writes what it saw.

    python -m remeasure.cli.determinism [--results FOLDER]

Promised is: the same spec, seed and machine give the same bits, however many processes there are, whatever else they
trained, and however often the run was cut short. Other threads, engines and precisions are other specs; whether they
differ is shown beside it. A run's bits are its predictions, confidences, first-layer weights and loss.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.config import compose, errors
from remeasure.config.resolve import identified
from remeasure.runs import provenance
from remeasure.runs.execute import execute, execute_together
from remeasure.runs.folder import Outcome, Place
from remeasure.runs.journal import unwatched
from remeasure.spec.base import DataMissingError
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import paths, startup
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.clock import now
from remeasure.training.device import resolve_device
from remeasure.training.engines.base import can_be_batched

SEED, OTHER_SEEDS = 0, (1, 2, 3)
RUNS = {
    "logreg, L-BFGS": ("model=logreg", "recipe.epochs_total=4"),
    "mlp4, dropout and distortions": (
        "model=mlp4",
        "recipe=lenet5",
        "recipe.epochs_total=3",
        "recipe.schedule.epochs_warmup=1",
    ),
    "lenet5, distortions": ("model=lenet5", "data=mnist", "recipe.epochs_total=2", "recipe.schedule.epochs_warmup=1"),
    "resnet18, bfloat16, ten batches": (
        *("model=resnet18", "data=cifar10", "recipe.epochs_total=2", "recipe.schedule.epochs_warmup=0"),
        *("recipe.resolution=null", "data.num_validation=47440", "steps_per_block=5"),
    ),
}
ON_THE_DIGITS = ("logreg, L-BFGS", "mlp4, dropout and distortions")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`same`: whether the bits were those of the first run; None: not tried, for the reason in `note`."""

    run: str
    case: str
    promised: bool
    same: bool | None
    note: str = ""


class CutError(Exception):
    """Cuts a run short."""


def bits(outcome: Outcome) -> str:
    """SHA-256 of all that a run comes to."""
    parts = [(outcome.directory / name).read_bytes() for name in ("predictions.npz", "filters.npz")]
    return hashlib.sha256(b"".join(parts) + repr(outcome.record.loss).encode()).hexdigest()


class Runs:
    """Each call trains in a folder of its own, from nothing."""

    def __init__(self, place: Place) -> None:
        self.place, self._num = place, 0

    def fresh(self) -> Place:
        self._num += 1
        return replace(self.place, runs=self.place.runs / str(self._num))

    def alone(self, spec: RunSpec) -> str:
        return bits(execute(spec, seed=SEED, row="", place=self.fresh(), sink=unwatched))

    def in_processes(self, spec: RunSpec, *, beside: Sequence[int] = ()) -> str:
        """In a pool of one process a core, after and beside other seeds."""
        seeds = (*beside, SEED)
        tasks = [Task(row="", seed=seed, spec=spec, fresh=False) for seed in seeds]
        with Workers(self.fresh()) as workers:
            return bits(workers.run(tasks)[-1])

    def cut_short(self, spec: RunSpec) -> str:
        """Cut after each epoch's report, before its checkpoint; checkpoints after every block."""
        place = self.fresh()
        with mock.patch.dict(os.environ, REMEASURE_CHECKPOINT_SECONDS="0"):
            for epoch in range(1, spec.recipe.epochs_total + 1):
                try:
                    execute(spec, seed=SEED, row="", place=place, sink=_cutting(epoch))
                except CutError:
                    continue
            return bits(execute(spec, seed=SEED, row="", place=place, sink=unwatched))

    def batched(self, spec: RunSpec) -> str:
        group = replace(spec, engine="batched", engine_width=2)
        return bits(execute_together(group, seed=SEED, row="", place=self.fresh(), sink=unwatched)[0])


def _cutting(epoch: int) -> Callable[[Path, Event], None]:
    def sink(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event["event"] == "epoch" and event["epoch"] == epoch and event["split"] == "train":
            raise CutError

    return sink


PROMISED: dict[str, Callable[[Runs, RunSpec], str]] = {  # the cases of every run, each against its first training
    "again in the same process": Runs.alone,
    "in a process of its own": Runs.in_processes,
    "beside and after other seeds, one process a core": partial(Runs.in_processes, beside=OTHER_SEEDS),
    "cut short in every epoch and resumed": Runs.cut_short,
}
BATCHED = "seeds as one (engine=batched)"
TWICE = f"{BATCHED}, twice"  # promised of runs that can be batched


def findings(name: str, spec: RunSpec, *, runs: Runs) -> Iterator[Finding]:
    """All cases of one run, each against its first."""
    first = runs.alone(spec)
    for case, call in PROMISED.items():
        yield Finding(run=name, case=case, promised=True, same=call(runs, spec) == first)
    if can_be_batched(spec):
        one, two = runs.batched(spec), runs.batched(spec)
        yield Finding(run=name, case=TWICE, promised=True, same=one == two)
        yield Finding(run=name, case=f"{BATCHED}, against one seed alone", promised=False, same=one == first)
    others = {
        "two threads, against one": replace(spec, cpu_threads=3 - min(spec.cpu_threads, 2)),
        "the other precision": replace(spec, precision="float32" if spec.precision == "bfloat16" else "bfloat16"),
    }
    for case, other in others.items():
        yield Finding(run=name, case=case, promised=False, same=runs.alone(other) == first)


def untried(name: str, spec: RunSpec, *, note: str) -> Iterator[Finding]:
    """The promised cases of a run that cannot be tried."""
    for case in (*PROMISED, *([TWICE] if can_be_batched(spec) else ())):
        yield Finding(run=name, case=case, promised=True, same=None, note=note)


def to_markdown(found: Sequence[Finding], *, device: str, when: str) -> str:
    """A table, a line a case."""
    words = {True: "identical", False: "differs", None: "not tried"}
    lines = [
        "# Determinism",
        "",
        f"Written by `make determinism` on {device}, {when}. Identical means: predictions, confidences, first-layer",
        "weights and loss, bit for bit, against the first run of the same spec and seed.",
        "",
        "| run | case | promised | seen |",
        "| --- | --- | --- | --- |",
    ]
    for each in found:
        seen = words[each.same] + (f" ({each.note})" if each.note else "")
        lines.append(f"| {each.run} | {each.case} | {'yes' if each.promised else 'no: another spec'} | {seen} |")
    promises = Counter(each.same for each in found if each.promised)
    broken = f"{promises[False]} promises broken" if promises[False] else "No promise was broken"
    lines += ["", broken + (f"; {promises[None]} of {promises.total()} were not tried." if promises[None] else ".")]
    return "\n".join(lines) + "\n"


def num_tried(report: str) -> int:
    """How many promises were tried, by a report that `to_markdown` made."""
    return len(re.findall(r"\| yes \| (?:identical|differs)", report))


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where a promise is broken, or where the report stays because it tried more than this call."""
    parser = argparse.ArgumentParser(prog="python -m remeasure.cli.determinism", description=__doc__)
    parser.add_argument("--results", type=Path, default=paths.project_root() / "results", help="where the report goes")
    options = parser.parse_args(arguments)
    found: list[Finding] = []
    kind = resolve_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)  # without the curve: images are held back only to train on fewer
        place = Place(runs=root, project=root, data_root=paths.data_root(), device_kind=kind, curve=False)
        for name, overrides in RUNS.items():
            print(f"{name} …", file=sys.stderr, flush=True)
            config = compose.compose([*overrides, *(("data=digits",) if name in ON_THE_DIGITS else ())])
            try:
                spec = identified(config, data_root=place.data_root, device_kind=kind)
            except DataMissingError:
                found += untried(name, config.spec(data_sha256=""), note="its data are not here")
                continue
            found += findings(name, spec, runs=Runs(place))
    report = to_markdown(found, device=provenance.device_name(kind), when=now())
    print(report)
    path, tried = options.results / "determinism.md", num_tried(report)
    before = num_tried(read_bytes(path).decode()) if path.exists() else 0
    if before > tried and any(each.same is None for each in found):
        print(f"{path} stays: it tried {before} promises, this call {tried}", file=sys.stderr)
        return 1
    write_atomic(path, report.encode())
    return int(any(each.promised and each.same is False for each in found))


if __name__ == "__main__":
    startup.run(lambda: errors.guarded(lambda: main(sys.argv[1:])))
