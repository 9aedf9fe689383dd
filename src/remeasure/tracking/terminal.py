"""Progress of runs on stderr: a bar for each run on a terminal, else plain lines."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from remeasure.spec.record import Event
from remeasure.tracking.observer import Observer

PLAIN_LINE_SECONDS = 10.0  # without a terminal, a run prints at most this often, and at its end
DRAW_SECONDS = 0.1  # bars are drawn at most this often
CLEAR = "\r\x1b[J"  # from the start of this line to the end of the screen


class Progress(Observer):
    """Shows each run while it is under way.

    The bars are drawn below all lines, with the cursor at the start of the first bar: after other output there, such
    as a terminal's ^C, they are drawn again. A closed terminal or pipe ends the display, not the run. `clock` returns
    seconds. `prints_epochs`: a line for each epoch and for the final score, as a hand-written loop prints them.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        prints_epochs: bool = False,
    ) -> None:
        self.stream, self.clock, self.prints_epochs = stream or sys.stderr, clock, prints_epochs
        self.bars = self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.runs: dict[Path, _Run] = {}
        self.drawn = 0.0

    def started(self, run: Path, event: Event) -> None:
        shown = self.runs[run] = _Run(event, now=self.clock())
        if not self.bars:
            epochs = f", {shown.total} epochs" if shown.total else ""
            self.say(f"{shown.title}: {event['event']}{epochs}")

    def images(self, run: Path, event: Event) -> None:
        if run in self.runs:
            self._advance(self.runs[run], event=event)

    def epoch(self, run: Path, event: Event) -> None:
        if run in self.runs:
            if self.prints_epochs:
                self.say(_as_a_loop_prints(event, epochs_total=self.runs[run].total))
            if event["split"] == "train":
                self._advance(self.runs[run], event=event)

    def finding(self, run: Path, event: Event) -> None:
        if run in self.runs:
            self.say(f"{self.runs[run].title}: {_found(event)}")

    def finished(self, run: Path, event: Event) -> None:
        if run in self.runs:
            self.say(f"{self.runs.pop(run).title}: {_ending(event)}")

    def say(self, line: str) -> None:
        """A line of its own, above the bars."""
        self._draw(f"{line}\n")

    def close(self) -> None:
        """Replace each remaining bar by a line that says interrupted."""
        while self.runs:
            self.say(f"{self.runs.pop(next(iter(self.runs))).title}: {_ending({'event': 'interrupted'})}")

    def _advance(self, run: "_Run", *, event: Event) -> None:
        now = self.clock()
        run.take(event, now=now)
        if self.bars and now - self.drawn >= DRAW_SECONDS:
            self._draw()
        elif not self.bars and now - run.spoke >= PLAIN_LINE_SECONDS:
            run.spoke = now
            self.say(f"{run.title}: {run.state(now)}")

    def _draw(self, above: str = "") -> None:
        with self._watched():
            if not self.bars:
                self.stream.write(above)
            else:
                self.drawn = self.clock()
                columns, rows = _size(self.stream)
                shown = list(self.runs.values())[: rows - 1]
                block = "\n".join(run.bar(self.drawn, columns=columns - 1) for run in shown)
                up = f"\x1b[{len(shown) - 1}A" if len(shown) > 1 else ""
                self.stream.write(f"{CLEAR}{above}{block}{up}\r")
            self.stream.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.bars = False
            self.stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process


class _Run:
    """The displayed state of one run: how many of its epochs, or of the photographs it evaluates, are done."""

    def __init__(self, event: Event, *, now: float) -> None:
        self.title = f"{event['row'] or event['model'] + '-' + event['data']} seed {event['seed']}"
        self.unit, self.total = "epoch", int(event["epochs_total"])
        self.started = self.spoke = self.taken = now
        self.done = self.done_before = 0
        self.seconds_each: float | None = None
        self.numbers = ""

    def take(self, event: Event, *, now: float) -> None:
        self.taken = now
        if event["event"] == "images":
            self.unit, self.done, self.total = "image", event["done"], event["total"]
            self.seconds_each = 1 / event["images_per_second"]
            self.numbers = f", {event['images_per_second']:.1f} images/s"
            return
        if not self.done:
            self.done_before = event["epoch"] - 1  # a resumed run does not start at 1
        self.done = event["epoch"]
        self.seconds_each = (now - self.started) / (self.done - self.done_before)
        self.numbers = f", loss {event['loss']:.4f}, train {event['accuracy_percent']:.2f} %"

    def state(self, now: float) -> str:
        """Such as "epoch 3/20, 78 s left, loss 0.0750, train 97.73 %", "image 512/50000, 83 s left, 594.2 images/s"."""
        if not self.total:
            return "begins"
        left = ""
        if self.seconds_each is not None:
            seconds = self.seconds_each * (self.total - self.done) - (now - self.taken)
            left = f", {duration(max(seconds, 0.0))} left"
        return f"{self.unit} {self.done}/{self.total}{left}{self.numbers}"

    def bar(self, now: float, *, columns: int) -> str:
        """The title, a bar that fills the line, and the state."""
        state = self.state(now)
        width = min(columns - len(self.title) - len(state) - 2, 40)
        if width < 5 or not self.total:
            return f"{self.title} {state}"[:columns]
        filled = width * self.done // self.total
        return f"{self.title} {'█' * filled}{'░' * (width - filled)} {state}"


def _as_a_loop_prints(event: Event, *, epochs_total: int) -> str:
    """Such as "Epoch 3/10, train loss 0.1507, train accuracy 95.38 %"."""
    split = event["split"]
    numbers = f"{split} loss {event['loss']:.4f}, {split} accuracy {event['accuracy_percent']:.2f} %"
    return f"Epoch {event['epoch']}/{epochs_total}, {numbers}"


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _found(event: Event) -> str:
    """Two lines: what the doctor found, and what to try first."""
    return f"{event['name']}: {event['evidence']}\n  try first: {event['next_steps'][0]} (docs/doctor.md)"


def _ending(event: Event) -> str:
    """Such as "97.810 % in 9.8 s", "diverged: …" or "interrupted; …"."""
    record = event.get("record") or {}
    if record.get("accuracy_percent") is not None:
        return f"{record['accuracy_percent']:.3f} % in {record['wall_seconds']:.1f} s"
    if event["event"] == "interrupted":
        return "interrupted; start it again and it goes on"
    ended = "diverged" if record else event["event"]
    return f"{ended}: {event['reason']}" if event.get("reason") else str(ended)


def _size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal; 80 and 24 if unknown."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24
