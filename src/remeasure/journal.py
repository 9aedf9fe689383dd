"""The journal of a run: one JSON object a line, appended as things happen. MLflow and results/ are projections of it.

A run lives in `runs/<run id>/`:

    journal.jsonl      events, below            config.yaml        the resolved RunSpec, row and seed
    environment.json   versions and machine     diff.patch         uncommitted changes, if any
    checkpoint.ckpt    while it is unfinished   predictions.npz    predicted (N,), confidence (N,) float16
    filters.npz        first-layer weights      record.json        the RunRecord; written last: the completion marker

Events, each with `event` and `time` (ISO 8601, UTC):

    started    run_id, row, seed, model, data, recipe, spec_sha256, device, device_kind, commit, dirty, epochs_total
    resumed    row, seed, model, data, epochs_total, checkpoint ("used"; "none" or "corrupt": from the first step again)
    epoch      epoch, step, split ("train", "test" or "validation"), loss, accuracy_percent, lr, seconds
    finding    name, evidence, causes, next_steps: what the doctor found (findings.py); most runs have none
    diverged   epoch, step, reason
    failed     reason                           interrupted   reason
    finished   record (the RunRecord as a dict)

A resumed run may journal an epoch again: `curve` keeps the last entry for each (epoch, split).
"""

import errno
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remeasure.paths import naming, read_file

Event = dict[str, Any]
JOURNAL_FILE = "journal.jsonl"


class Journal:
    """Appends events to `directory`/journal.jsonl; each line is on the disk, whole, before `write` returns."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / JOURNAL_FILE
        if self.path.exists() and not read_file(self.path).endswith(b"\n"):
            self._append("\n")  # end a torn line, lest it swallow the next

    def write(self, event: str, /, **values: object) -> Event:
        """Append one event with the current time and return it."""
        entry = {"event": event, "time": now(), **values}
        self._append(json.dumps(entry, allow_nan=True) + "\n")
        return entry

    def _append(self, line: str) -> None:
        with naming(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if os.write(descriptor, line.encode()) < len(line):
                    raise OSError(errno.ENOSPC, "the disk took only a part of a line")
                os.fsync(descriptor)  # no checkpoint and no record may outlive the lines before it
            finally:
                os.close(descriptor)


def now() -> str:
    """The current time in UTC, to the second, such as 2026-11-22T14:05:09Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(directory: Path) -> list[Event]:
    """All whole events of a run, in order; a line cut short by a crash is left out. No journal: no events."""
    path = directory / JOURNAL_FILE
    return list(_parse(read_file(path))) if path.exists() else []


def _parse(content: bytes) -> Iterator[Event]:
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a crash, or damaged; the event it announced is journaled again on resume
        if isinstance(entry, dict) and "event" in entry:
            yield entry


def curve(events: list[Event]) -> list[Event]:
    """The `epoch` events, the last one for each (epoch, split), in order of epoch."""
    points = {(event["epoch"], event["split"]): event for event in events if event["event"] == "epoch"}
    return [points[key] for key in sorted(points)]


def under_way(directory: Path) -> bool:
    """Whether the journal says that somebody works on the run."""
    states = [event["event"] for event in read(directory) if event["event"] not in ("epoch", "finding")]
    return bool(states) and states[-1] in ("started", "resumed")


def last(events: list[Event], name: str) -> Event | None:
    """The last event of that name, if any."""
    return next((event for event in reversed(events) if event["event"] == name), None)
