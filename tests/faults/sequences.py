"""Checkouts with committed evidence, and `reproduce` in this process: seeds are instant, and it can be broken off.

Three rows on the digits: `clear` is decided by its first look, `open` never, so that its plan is exhausted, and `late`
by either look, or none. What a seed predicts follows from the row, the seed and the machine.
"""

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.support.project import CHECKOUT
from tests.support.trained import spec as composed

from remeasure.campaign import campaign
from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.cli import reproduce
from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.judging.reader import read_runs
from remeasure.runs.folder import Outcome, Place, finished, open_directory, write_record
from remeasure.runs.journal import Journal, Sink
from remeasure.spec.base import canonical_sha256
from remeasure.spec.config import Config
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.system.clock import now
from remeasure.system.formats import encode_npz, predicted_sha256
from remeasure.tracking import mlflow_store

ROW = """\
  {name}:
    model: mlp2
    data: digits
    recipe: {recipe}
    mode: train
    published:
      accuracy_percent: {published}
      num_digits: 1
      num_params_text: 19,210
      num_runs: null
      selection: null
      sources: [{{citation: nobody, where: nowhere, says: '{published}', grade: unsourced}}]
      notes: made up
    rule: {{margin_pp: {margin}, looks: [3, 5]}}
"""
ROWS = {  # of 500 images, 50 are wrong on average
    "mlp2-digits-clear": {"recipe": "article", "published": 90.0, "margin": 8.0},
    "mlp2-digits-open": {"recipe": "keras_mlp", "published": 91.0, "margin": 1.0},
    "mlp2-digits-late": {"recipe": "lenet5", "published": 90.0, "margin": 1.2},
}
CLEAR, OPEN, LATE = ROWS
ENVIRONMENT = {"python": "3"}
DECIDED = ("reproduced", "exceeds", "falls short")


class Killed(BaseException):
    """In place of SIGKILL: what is on the disk now is all that there will be."""


@cache
def labels() -> np.ndarray:
    return catalog.test_labels(composed().data, root=Path("nowhere"))


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return compose(overrides)


def predictions(spec: RunSpec, *, seed: int, machine: int) -> np.ndarray:
    """(500,) what the net of this seed predicts on this machine; another machine differs in a few images."""
    draw = np.random.default_rng([seed, int(spec.spec_sha256[:8], 16)])
    wrong = draw.permutation(500)[: round(50 + draw.normal(0, 4))]
    wrong = np.concatenate([wrong, np.random.default_rng([seed, machine]).permutation(500)[:2]]) if machine else wrong
    predicted = labels().copy()
    predicted[wrong] = (predicted[wrong] + 1) % 10
    return predicted.astype(np.uint8)


def train(task: Task, *, place: Place, machine: int) -> Outcome:
    """A finished run's folder, written in an instant; one that was finished before is reused."""
    if not task.fresh and (before := finished(task.spec, seed=task.seed, place=place)):
        return before
    directory = open_directory(task.spec, seed=task.seed, place=place, fresh=task.fresh)
    predicted = predictions(task.spec, seed=task.seed, machine=machine)
    num_correct = int((predicted == labels()).sum())
    spec = task.spec
    record = RunRecord(
        row=task.row,
        seed=task.seed,
        spec_sha256=spec.spec_sha256,
        training_version=spec.training_version,
        accuracy_percent=num_correct / 5,
        num_correct=num_correct,
        num_test=500,
        loss=0.5,
        num_params=19_210,
        epochs=spec.recipe.epochs_total,
        wall_seconds=1.0,
        device=f"machine {machine}",
        device_kind="cpu",
        data_sha256=spec.data_sha256,
        data_official="unknown",
        commit="c0ffee",
        dirty=False,
        versions_sha256=canonical_sha256(ENVIRONMENT),
        predicted_sha256=predicted_sha256(predicted),
        mlflow_run_id="",
        finished_at=now(),
    )
    config = {"row": task.row, "seed": task.seed, **json.loads(json.dumps(asdict(spec)))}
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (directory / "environment.json").write_text(json.dumps(ENVIRONMENT))
    arrays = {"predicted": predicted, "confidence": np.full(500, 0.5, np.float16)}
    (directory / "predictions.npz").write_bytes(encode_npz(arrays))
    (directory / "filters.npz").write_bytes(encode_npz({"weights": np.zeros((2, 2), np.float16)}))
    journal = Journal(directory)
    point = {"epoch": 1, "step": 1, "lr": 0.1, "seconds": 1.0, "loss": 0.5}
    journal.write("started", run_id=directory.name, row=task.row, seed=task.seed)
    journal.write("epoch", **point, split="test", accuracy_percent=num_correct / 5)
    journal.write("finished", record=asdict(record))
    write_record(directory, record)
    return Outcome(record=record, directory=directory, reused=False)


class Immediate(Executor):
    """A pool that calls what is submitted at once, in this process."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, call: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        future.set_result(call())
        return future


class Instant(Workers):
    """Workers of one machine, whose seeds take no time. Ctrl-C comes after some seeds."""

    def __init__(self, place: Place, *, machine: int, interrupted_after: int) -> None:
        def execute(task: Task, place: Place, sink: object) -> list[Outcome]:  # noqa: ARG001
            return [train(task, place=place, machine=machine)]

        super().__init__(place, num=2, execute=execute, time_seed=lambda *_, **__: 1.0, new_pool=Immediate)
        self.left = interrupted_after

    def work(
        self, start: Callable[[], bool], *, take: Callable[[Task, Future[list[Outcome]]], None], watch: Sink
    ) -> None:
        def counted(task: Task, future: Future[list[Outcome]]) -> None:
            take(task, future)
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        super().work(start, take=counted, watch=watch)


# ---------------------------------------------------------------- a checkout


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the published table: its verdict, and the correct predictions of each seed."""

    verdict: str
    seeds: dict[int, int | None]


@dataclass(frozen=True, kw_only=True)
class Checkout:
    root: Path
    machine: int

    @property
    def results(self) -> Path:
        return self.root / "results"

    def table(self) -> dict[str, Line]:
        """What the README and results/ say, by row."""
        lines = [line.split(" | ") for line in (self.root / "README.md").read_text().splitlines() if " | " in line]
        verdicts = {line[0].strip("| "): line[-1].strip("| ") for line in lines}
        records = {name: read_runs(self.results, row=name) for name in ROWS}
        return {
            name: Line(verdict=verdicts[name], seeds={entry.seed: entry.num_correct for entry in records[name]})
            for name in ROWS
        }

    def finished(self) -> set[str]:
        """The finished runs."""
        return {path.parent.name for path in self.root.glob("runs/*/record.json")}

    def faults(self) -> list[str]:
        """What `verify` says on stderr, after it has finished what a kill interrupted."""
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.setattr(paths, "_CHECKOUT", self.root)
            with contextlib.redirect_stderr(said):
                reproduce.main(["verify"], compose=compose)
        return said.getvalue().splitlines()


def make(root: Path, *, machine: int) -> Checkout:
    """A checkout without results."""
    shutil.copytree(CHECKOUT / "conf", root / "conf")
    (root / "conf/benchmark.yaml").write_text(
        "rows:\n" + "".join(ROW.format(name=name, **row) for name, row in ROWS.items())
    )
    (root / "pyproject.toml").write_text("")
    (root / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    return Checkout(root=root, machine=machine)


def pull(there: Checkout, *, into: Checkout) -> None:
    """Bring the evidence of one checkout into another, as git does."""
    shutil.rmtree(into.results, ignore_errors=True)
    shutil.copytree(there.results, into.results)
    shutil.copy(there.root / "README.md", into.root)


def call(checkout: Checkout, *arguments: str, interrupted_after: int = 10**6, killed_at: int = 10**6) -> str:
    """Call `reproduce.py`; returns how it ended: "by itself", "SIGINT" after some seeds, "SIGKILL" at some rename.

    Raises AssertionError if it fails.
    """
    new_workers = partial(Instant, machine=checkout.machine, interrupted_after=interrupted_after)
    kept, calls = checkout.root.with_name(f"{checkout.root.name}-killed"), [killed_at]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as quiet:
        patch.setattr(paths, "_CHECKOUT", checkout.root)
        patch.setattr(campaign, "Campaign", partial(campaign.Campaign, new_workers=new_workers))
        patch.setattr(mlflow_store, "available", lambda: False)
        for name in ("replace", "unlink"):
            patch.setattr(os, name, _killing(getattr(os, name), calls=calls, root=checkout.root, into=kept))
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            status = reproduce.main(arguments, compose=lambda overrides: _composed(tuple(overrides)))
            assert status == 0, arguments
            end = "by itself"
        except KeyboardInterrupt:
            end = "SIGINT"
        except Killed:
            end = "SIGKILL"
    if kept.exists():  # also if a handler of the command ended it otherwise
        shutil.rmtree(checkout.root)
        kept.rename(checkout.root)
        return "SIGKILL"
    return end


def _killing(real: Callable[..., None], *, calls: list[int], root: Path, into: Path) -> Callable[..., None]:
    """`real`, counted down with `calls`; at 0 the files are kept as they are in `into`, and from then on it is dead."""

    def counted(*given: Any, **named: Any) -> None:
        calls[0] -= 1
        if calls[0] == -1:
            shutil.copytree(root, into)
        if calls[0] < 0:
            raise Killed
        real(*given, **named)

    return counted


# ---------------------------------------------------------------- sequences


def commands(chance: random.Random) -> tuple[str, ...]:
    """The arguments of one command."""
    arguments = ["reproduce", *chance.choice([[], [], [OPEN], [LATE, CLEAR]])]
    if chance.random() < 0.4:
        arguments += ["--seeds", str(chance.randint(1, 6))]
    if chance.random() < 0.25:
        arguments.append("--fresh")
    if chance.random() < 0.25:
        arguments.append("--continue")
    return tuple(arguments)


def broken(before: Line, after: Line, *, asked_anew: int | None) -> Iterator[str]:
    """What must not have happened to a row; `asked_anew`: FRESH=1 and this many seeds, which replace any record."""
    if before.seeds == after.seeds or not before.seeds:
        return
    if asked_anew is not None and after.seeds.keys() == set(range(asked_anew)):
        return
    ended = after.verdict in DECIDED or after.seeds.keys() >= set(range(5))
    if not ended and before.verdict in DECIDED:
        yield f"weakened: {before} to {after}"
    if not ended and not before.seeds.keys() <= after.seeds.keys():
        yield f"lost: {before} to {after}"


def run_sequence(folder: Path, *, chance: random.Random, num_commands: int) -> Iterator[str]:
    """Random commands in two checkouts that begin with committed evidence; yields what went wrong."""
    origin = make(folder / "origin", machine=0)
    call(origin, "reproduce", *chance.choice([[], [CLEAR, OPEN]]), "--seeds", str(chance.randint(1, 7)))
    checkouts = [make(folder / name, machine=machine) for name, machine in (("one", 0), ("two", 1))]
    for checkout in checkouts:
        pull(origin, into=checkout)
    for _ in range(num_commands):
        checkout, other = chance.sample(checkouts, 2)
        if chance.random() < 0.1:
            pull(other, into=checkout)
            continue
        before, runs, arguments = checkout.table(), checkout.finished(), commands(chance)
        way = chance.choice(["by itself", "SIGINT", "SIGKILL"])
        end = call(
            checkout,
            *arguments,
            interrupted_after=chance.randint(0, 8) if way == "SIGINT" else 10**6,
            killed_at=chance.randint(0, 60) if way == "SIGKILL" else 10**6,
        )
        said = f"{checkout.root.name}: {' '.join(arguments)} ended {end}"
        yield from (f"{said}: {fault}" for fault in checkout.faults())
        after = checkout.table()
        yield from (f"{said}: lost {name}" for name in runs - checkout.finished())
        asked = int(arguments[arguments.index("--seeds") + 1]) if "--seeds" in arguments else None
        for name in ROWS:
            for fault in broken(before[name], after[name], asked_anew=asked if "--fresh" in arguments else None):
                yield f"{said}: {name} {fault}"
