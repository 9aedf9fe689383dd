"""Observers: who watches runs. Each is a small class and a YAML in conf/observer; none can stop a run."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from rich.console import RenderableType

from remeasure.judging.records import SeedResults
from remeasure.runs.folder import CAMPAIGNS, Outcome, directories, read_record, recorded_run_id, remove_leftovers
from remeasure.runs.journal import JOURNAL_FILE, Journal, under_way
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row, Verdict
from remeasure.spec.plugin import Plugin
from remeasure.spec.record import Event
from remeasure.system import locks
from remeasure.system.console import console, rendered
from remeasure.tracking.best_effort import first_line

METHODS = {  # event of the journal to the method that gets it
    **{"started": "started", "resumed": "started", "epoch": "epoch", "images": "images", "finding": "finding"},
    **dict.fromkeys(("finished", "failed", "interrupted"), "finished"),
}
Measured = Literal["measured here", "committed record"]
State = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a ledger row stands: its verdict on the seeds so far, and whether its campaign goes on.

    `num_seeds`: all that are finished; the verdict has its own number, of those in its mean. `num_asked`: what they are
    to become, at the present look.
    `agreement`: how the older record compares, in words. `at`: the time of the measurement, ISO 8601; None is now.
    `seeds`: the finished ones; () while the campaign goes on. `report`: the page of all rows, where there is one.
    `suite`: the ledger that the row is of, such as demo; "": benchmark.yaml.
    """

    row: Row
    verdict: Verdict
    num_seeds: int
    spec_sha256: str
    device_kind: str
    measured: Measured
    state: State
    num_asked: int = 0
    agreement: str = ""
    at: str | None = None
    seeds: tuple[SeedResults, ...] = ()
    report: Path | None = None
    suite: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A multirun or a study: the lines of its table so far, and the accuracy of each finished job in percent.

    `started`, `at`: ISO 8601, UTC; `at` is now.
    """

    name: str
    state: State
    started: str
    at: str
    table: tuple[str, ...] = ()
    percents: tuple[float, ...] = ()


class Observer:
    """Watches runs; override what is of interest. `run`: the run's directory; runs/journal.py lists the keys of events.

    An observer is called in the process that the user started, never in a worker. What it raises is reported in one
    line, and the run goes on.
    """

    def started(self, run: Path, event: Event) -> None:
        """A run has started, or was resumed."""

    def epoch(self, run: Path, event: Event) -> None:
        """An epoch was trained; or scored on held-back images, which comes before it (`split` is "validation"); or the
        final weights were scored (`step` is None).
        """

    def images(self, run: Path, event: Event) -> None:
        """Photographs were scored: `done` of `total`, at `images_per_second`."""

    def finding(self, run: Path, event: Event) -> None:
        """The doctor found something."""

    def finished(self, run: Path, event: Event) -> None:
        """A run has ended, once: it is finished, failed or interrupted. One that diverged is finished: the accuracy in
        its `record` is None, and it has a `reason`.
        """

    def keep(self, outcome: Outcome) -> Outcome:
        """The outcome of a finished or reused run, perhaps with an id of its own."""
        return outcome

    def row(self, standing: Standing) -> None:
        """A row has begun, has another seed, or has ended."""

    def sweep(self, sweep: Sweep) -> None:
        """A sweep is about to start a job, or has ended; the runs that start from now on are its own."""

    def abandoned(self, campaign: str) -> bool:  # noqa: ARG002
        """The processes of a row's campaign (content.rows.campaign_name) were killed.

        Returns whether that is settled; else the next command tells it again.
        """
        return False

    def say(self, content: RenderableType) -> None:
        """Something for the person at the terminal: a line, or what else rich can print."""

    def close(self) -> None:
        """The command ends."""

    def __call__(self, run: Path, event: Event) -> None:
        """Pass an event to its method."""
        if name := METHODS.get(event["event"]):
            getattr(self, name)(run, event)


class Observers(Observer):
    """Passes everything to each of them, in order; as a context manager, closes them on exit."""

    def __init__(self, each: Sequence[Observer]) -> None:
        self.each, self._failed = tuple(each), set[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, run: Path, event: Event) -> None:
        self._tell("__call__", run, event)

    def row(self, standing: Standing) -> None:
        self._tell("row", standing)

    def sweep(self, sweep: Sweep) -> None:
        self._tell("sweep", sweep)

    def abandoned(self, campaign: str) -> bool:
        settled = False
        for observer in self.each:
            with self._reported(observer):
                settled |= observer.abandoned(campaign)
        return settled

    def say(self, content: RenderableType) -> None:
        if all(type(observer).say is Observer.say for observer in self.each):
            print(rendered(content, on=console(sys.stderr)), file=sys.stderr, flush=True)
        self._tell("say", content)

    def close(self) -> None:
        self._tell("close")

    def keep(self, outcome: Outcome) -> Outcome:
        for observer in self.each:
            with self._reported(observer):
                outcome = observer.keep(outcome)
        return outcome

    def _tell(self, method: str, *arguments: object) -> None:
        for observer in self.each:
            with self._reported(observer):
                getattr(observer, method)(*arguments)

    @contextmanager
    def _reported(self, observer: Observer) -> Iterator[None]:
        """Tell what the observer raises in the block: one line for each kind of failure of each observer."""
        try:
            yield
        except Exception as error:
            fault = f"{type(observer).__name__}: {type(error).__name__}"
            if fault not in self._failed:
                self._failed.add(fault)
                print(f"observer {fault}: {first_line(error)}; the run goes on without it", file=sys.stderr, flush=True)

    def close_orphans(self, runs: Path, *, is_alive: Callable[[Path], bool] = lambda _: False) -> None:
        """Close the runs and campaigns of this checkout that killed processes left unfinished.

        `is_alive`: says of a run's folder whether another machine trains it, whose lock may not be seen here.
        """
        for directory in directories(runs):
            if (directory / JOURNAL_FILE).exists() and not is_alive(directory):
                self._close_run(directory)
        for path in sorted(runs.glob(f"{CAMPAIGNS}/*")):
            locks.settle(path, take=self.abandoned)

    def _close_run(self, directory: Path) -> None:
        """Journal that a run whose process was killed is interrupted; pass on a finished one that nobody has kept."""
        if (directory / "record.json").is_file():
            with suppress(InputError):  # damaged: told where its seed is wanted
                remove_leftovers(directory)  # first: a run that MLflow has is not looked at again
                if not recorded_run_id(directory):
                    self.keep(Outcome(record=read_record(directory), directory=directory, reused=False))
            return
        with locks.held_if_free(directory / "lock") as free:
            if free and under_way(directory):
                self(directory, Journal(directory).write("interrupted", reason="its process was killed"))


def build(plugins: Mapping[str, Plugin], *, project: Path) -> Observers:
    """The observers of a config. `project`: the folder of the tracking database, unless MLFLOW_TRACKING_URI names one.

    Raises InputError: a class that is not there, or does not take its options; a store that cannot be reached.
    """
    return Observers(
        [plugin.build(Observer, where=f"observer.{name}", project=project) for name, plugin in plugins.items()]
    )
