"""Progress on stderr: on a terminal a live line for each row, or for each run of no row; else plain lines."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from remeasure.spec.record import Event
from remeasure.system.console import console, is_live, rendered, show
from remeasure.system.validation import counted
from remeasure.tracking.observer import Observer, Standing

PLAIN_LINE_SECONDS = 10.0  # without a terminal, a run prints at most this often, and at its end
START_SECONDS = 30.0  # until then, a row without a seed of its own tells no time left
DRAW_SECONDS = 0.1  # live lines are drawn at most this often
Verbosity = Literal["quiet", "normal", "verbose"]


class Progress(Observer):
    """Shows runs, and rows with their seeds, while they are under way.

    A closed terminal or pipe ends the display, not the run. `clock` returns seconds. `prints_epochs`: a line for each
    epoch and for the final score, as a hand-written loop prints them. `verbosity`: quiet shows no progress; verbose has
    the lines of each seed on a terminal, too, where a row is one live line.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        prints_epochs: bool = False,
        verbosity: Verbosity = "normal",
    ) -> None:
        self.stream, self.clock, self.prints_epochs = stream or sys.stderr, clock, prints_epochs
        self.is_quiet, self.is_verbose = verbosity == "quiet", verbosity == "verbose"
        self.is_live = is_live(self.stream) and not self.is_quiet
        self.runs: dict[Path, _Run] = {}
        self.rows: dict[str, _Row] = {}
        self.drawn = 0.0
        self.console = console(self.stream)
        self.live = Live(
            console=self.console,
            get_renderable=self._lines,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )

    def started(self, run: Path, event: Event) -> None:
        shown = self.runs[run] = _Run(event, now=self.clock())
        if shown.row in self.rows:
            self.rows[shown.row].trains(1, now=self.clock())
        if not self.is_live or self.is_verbose:
            epochs = f", {counted(shown.total, 'epoch')}" if shown.total else ""
            self._tell(f"{shown.title}: {event['event']}{epochs}")

    def images(self, run: Path, event: Event) -> None:
        if run in self.runs:
            self._advance(self.runs[run], event=event)

    def epoch(self, run: Path, event: Event) -> None:
        if run not in self.runs:
            return
        shown = self.runs[run]
        if event["split"] == "validation" and event["step"] is not None:
            shown.validated = event  # shown beside its epoch's training, which comes next
            return
        if self.prints_epochs:
            self.say(_as_a_loop_prints([event, *shown.beside(event)], epochs_total=shown.total))
        if event["split"] == "train":
            self._advance(shown, event=event)

    def finding(self, run: Path, event: Event) -> None:
        if run in self.runs:
            found = f"{self.runs[run].title}: {event['name']}: {event['evidence']}"
            self.say(f"{found}\n  try first: {event['next_steps'][0]} (docs/doctor.md)")

    def finished(self, run: Path, event: Event) -> None:
        if run in self.runs:
            self._end(self.runs.pop(run), event=event)

    def row(self, standing: Standing) -> None:
        name = standing.row.name
        if standing.state == "running":
            if name not in self.rows:
                under_way = sum(run.row == name for run in self.runs.values())
                self.rows[name] = _Row(standing, now=self.clock(), num_trained=under_way)
            self.rows[name].standing = standing
            self._draw()
        elif self.rows.pop(name, None) and standing.state == "interrupted" and self.is_live:
            done = f"{standing.num_seeds} of {standing.num_asked} seeds"
            self.say(f"{name}: interrupted after {done}; start it again and it goes on")

    def say(self, content: RenderableType) -> None:
        """Print it above the live lines."""
        with self._watched():
            if self.is_live:
                show(content, on=self.console)
                if self.live.is_started:
                    self.live.refresh()  # without the run that has ended
            else:
                self.stream.write(f"{rendered(content, on=self.console)}\n")
                self.stream.flush()

    def close(self) -> None:
        """Replace each remaining line by one that says interrupted."""
        self.rows.clear()
        while self.runs:
            self._end(self.runs.pop(next(iter(self.runs))), event={"event": "interrupted"})
        with self._watched():
            self.live.stop()

    def _tell(self, line: str) -> None:
        """Say it, unless quiet."""
        if not self.is_quiet:
            self.say(line)

    def _end(self, run: "_Run", *, event: Event) -> None:
        """A run's last line; on a terminal, its row's live line tells of it instead, unless something went wrong."""
        if run.row in self.rows:
            self.rows[run.row].trains(-1, now=self.clock())
        went_wrong = event["event"] == "failed" or (event["event"] == "finished" and event.get("reason"))
        if went_wrong or self.is_verbose or not self.is_live or run.row not in self.rows:
            self._tell(f"{run.title}: {_ending(event, epochs_total=run.epochs_total)}")

    def _advance(self, run: "_Run", *, event: Event) -> None:
        now = self.clock()
        goes_on = run.began is None
        run.take(event, now=now)
        if goes_on and run.row in self.rows:
            self.rows[run.row].done_before += run.share
        if self.is_live:
            self._draw()
        elif now - run.spoke >= PLAIN_LINE_SECONDS:
            run.spoke = now
            self._tell(f"{run.title}: {run.state(now)}")

    def _draw(self) -> None:
        if self.is_live and self.clock() - self.drawn >= DRAW_SECONDS:
            with self._watched():
                self.drawn = self.clock()
                self.live.start()
                self.live.refresh()

    def _lines(self) -> Constrain:
        """The live lines: a title, a bar and numbers for each row, and for each run of none of them.

        The end of a line stays free, so that a terminal's ^C there starts no new line.
        """
        now, lines = self.clock(), Table.grid(padding=(0, 1, 0, 0), expand=True)
        lines.add_column(no_wrap=True, overflow="ellipsis")
        lines.add_column(ratio=1, min_width=5, max_width=40)
        lines.add_column(no_wrap=True, overflow="ellipsis")
        for name, row in self.rows.items():
            done = row.standing.num_seeds + sum(run.share for run in self.runs.values() if run.row == name)
            lines.add_row(name, ProgressBar(row.standing.num_asked, done), row.state(now, done=done))
        for run in self.runs.values():
            if run.row not in self.rows:
                lines.add_row(run.title, ProgressBar(run.total or None, run.done), run.state(now))
        return Constrain(lines, self.console.width - len("^C") - 1)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.is_live = False
            self.stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
            self.console.file = self.stream
            with suppress(IndexError):  # rich's, where the terminal was closed before the first line
                self.live.stop()  # gives sys.stderr back


class _Run:
    """The displayed state of one run: how many of its epochs, or of the photographs it evaluates, are done."""

    def __init__(self, event: Event, *, now: float) -> None:
        self.row = event["row"]
        self.title = f"{event['row'] or event['model'] + '-' + event['data']} seed {event['seed']}"
        self.epochs_total = int(event["epochs_total"])
        self.unit, self.total = "epoch", self.epochs_total
        self.work = event.get("work_by_epoch") or [1.0] * self.epochs_total
        self.spoke = self.taken = now
        self.done, self.share = 0, 0.0  # of it all, from 0 to 1
        # When it began, and the share done by then: a resumed run goes on in the midst of an epoch.
        self.began = (now, 0.0) if event["event"] == "started" else None
        self.seconds_left: float | None = None
        self.numbers = ""
        self.validated: Event | None = None

    def beside(self, event: Event) -> list[Event]:
        """The validation score of an epoch that was trained, if there is one."""
        score = self.validated
        return [score] if score and event["split"] == "train" and score["epoch"] == event["epoch"] else []

    def take(self, event: Event, *, now: float) -> None:
        self.taken = now
        if event["event"] == "images":
            self.unit, self.done, self.total = "image", event["done"], event["total"]
            self.share = self.done / self.total
            self.seconds_left = (self.total - self.done) / event["images_per_second"]
            self.numbers = f", {event['images_per_second']:.1f} images/s"
        else:
            self.done = event["epoch"]
            self.share = sum(self.work[: self.done]) / sum(self.work)
            if self.began:
                self.seconds_left = (now - self.began[0]) / (self.share - self.began[1]) * (1 - self.share)
            points = (event, *self.beside(event))
            accuracies = [f"{point['split']} {point['accuracy_percent']:.2f} %" for point in points]
            self.numbers = f", loss {event['loss']:.4f}, {', '.join(accuracies)}"
        self.began = self.began or (now, self.share)

    def state(self, now: float) -> str:
        """Such as "epoch 3/20, 78 s left, loss 0.0750, train 97.73 %", "image 512/50000, 83 s left, 594.2 images/s"."""
        if not self.total:
            return "begins"
        left = ""
        if self.seconds_left is not None:
            seconds = self.seconds_left - (now - self.taken)
            left = f", {duration(max(seconds, 0.0))} left"
        return f"{self.unit} {self.done}/{self.total}{left}{self.numbers}"


class _Row:
    """The displayed state of a row that is measured now."""

    def __init__(self, standing: Standing, *, now: float, num_trained: int) -> None:
        self.standing, self.num_before = standing, standing.num_seeds
        self.done_before = float(standing.num_seeds)
        self.num_trained, self.seconds, self.since = num_trained, 0.0, now

    def trains(self, more: int, *, now: float) -> None:
        """One seed more, or one less, is trained from now on. While none is, the time left does not grow."""
        self.seconds, self.since = self._seconds(now), now
        self.num_trained += more

    def _seconds(self, now: float) -> float:
        """How long at least one of its seeds was trained."""
        return self.seconds + (now - self.since if self.num_trained else 0.0)

    def state(self, now: float, *, done: float) -> str:
        """Such as "12/40 seeds, 12 min left, 97.91 ± 0.16 %, undecided so far". `done`: seeds, with parts of them."""
        verdict, parts = self.standing.verdict, [f"{self.standing.num_seeds}/{self.standing.num_asked} seeds"]
        trained, seconds = done - self.done_before, self._seconds(now)
        # The first epochs of short runs wait for their workers to start.
        if trained > 0 and (self.standing.num_seeds > self.num_before or seconds >= START_SECONDS):
            left = seconds / trained * max(self.standing.num_asked - done, 0.0)
            parts.append(f"{duration(left)} left")
        if verdict.mean_percent is not None:
            spread = "" if verdict.sd_percent is None else f" ± {verdict.sd_percent:.2f}"
            parts += [f"{verdict.mean_percent:.2f}{spread} %", f"{verdict.verdict} so far"]
        return ", ".join(parts)


def _as_a_loop_prints(points: Sequence[Event], *, epochs_total: int) -> str:
    """Such as "Epoch 3/10, train loss 0.1507, train accuracy 95.38 %", with the other splits' points behind it."""
    numbers = [
        f"{point['split']} loss {point['loss']:.4f}, {point['split']} accuracy {point['accuracy_percent']:.2f} %"
        for point in points
    ]
    return ", ".join([f"Epoch {points[0]['epoch']}/{epochs_total}", *numbers])


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _ending(event: Event, *, epochs_total: int) -> str:
    """Such as "97.810 % in 9.8 s", "diverged: …" or "interrupted; …"; why it failed, whoever started it tells."""
    record = event.get("record") or {}
    if record.get("accuracy_percent") is not None:
        stopped = f", stopped by a callback after {record['epochs']} of {epochs_total} epochs"
        early = stopped if record["epochs"] < epochs_total else ""
        return f"{record['accuracy_percent']:.3f} % in {record['wall_seconds']:.1f} s{early}"
    if event["event"] == "interrupted":
        return "interrupted; start it again and it goes on"
    return f"diverged: {event['reason']}" if record and event.get("reason") else "diverged" if record else "failed"
