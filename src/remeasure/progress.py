"""What a person watches while runs train: one bar a run on a terminal, plain lines where there is none (stderr)."""

import sys
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from remeasure.journal import Event

PLAIN_LINE_SECONDS = 10.0  # a run without a terminal speaks at most this often, and at its end


class Progress:
    """Called with each journal event of each run; bars are keyed by the run's directory."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.runs: dict[Path, _Bar | _Lines] = {}

    def __call__(self, directory: Path, event: Event) -> None:
        if event["event"] in ("started", "resumed"):
            view = _Bar if self.stream.isatty() else _Lines
            self.runs[directory] = view(event, stream=self.stream)
        elif event["event"] == "epoch":
            if event["split"] == "train":
                self.runs[directory].epoch(event)
        elif run := self.runs.pop(directory, None):
            run.end(event)

    def say(self, line: str) -> None:
        """A line of its own, above the bars."""
        tqdm.write(line, file=self.stream)

    def close(self) -> None:
        """Leave the terminal as it was."""
        for run in self.runs.values():
            run.end({"event": "interrupted"})
        self.runs.clear()


def _title(event: Event) -> str:
    return f"{event['row'] or event['model'] + '-' + event['data']} seed {event['seed']}"


def _ending(event: Event) -> str:
    """Such as "97.810 % in 9.8 s", "diverged" or "interrupted"."""
    record = event.get("record") or {}
    if record.get("accuracy_percent") is None:
        return str(event.get("reason") or event["event"])
    return f"{record['accuracy_percent']:.3f} % in {record['wall_seconds']:.1f} s"


class _Bar:
    def __init__(self, event: Event, *, stream: TextIO) -> None:
        self.stream, self.title = stream, _title(event)
        self.bar = tqdm(
            total=event["epochs_total"], desc=self.title, unit="epoch", file=stream, leave=False, dynamic_ncols=True
        )

    def epoch(self, event: Event) -> None:
        self.bar.n = event["epoch"]
        self.bar.set_postfix_str(f"loss {event['loss']:.4f}, train {event['accuracy_percent']:.2f} %")

    def end(self, event: Event) -> None:
        self.bar.close()
        tqdm.write(f"{self.title}: {_ending(event)}", file=self.stream)


class _Lines:
    def __init__(self, event: Event, *, stream: TextIO) -> None:
        self.stream, self.title, self.epochs_total = stream, _title(event), event["epochs_total"]
        self.started = self.spoke = time.monotonic()
        self.first_epoch: int | None = None
        print(f"{self.title}: {event['event']}, {self.epochs_total} epochs", file=stream, flush=True)

    def epoch(self, event: Event) -> None:
        now = time.monotonic()
        self.first_epoch = self.first_epoch or event["epoch"]  # a resumed run does not begin at 1
        if now - self.spoke < PLAIN_LINE_SECONDS:
            return
        self.spoke = now
        seconds_each = (now - self.started) / (event["epoch"] - self.first_epoch + 1)
        left = seconds_each * (self.epochs_total - event["epoch"])
        print(
            f"{self.title}: epoch {event['epoch']}/{self.epochs_total}, loss {event['loss']:.4f}, "
            f"train {event['accuracy_percent']:.2f} %, {left:.0f} s left",
            file=self.stream,
            flush=True,
        )

    def end(self, event: Event) -> None:
        print(f"{self.title}: {_ending(event)}", file=self.stream, flush=True)
