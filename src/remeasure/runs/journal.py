"""The journal of a run: one JSON object a line, appended during the run. MLflow and results/ are projections of it.

The files of a run, in `runs/<run id>/`:

    journal.jsonl      events, below            config.yaml        the resolved RunSpec, row and seed
    code.json          hashes of the code       diff.patch         uncommitted changes, if any
    environment.json   versions and machine
    checkpoint.ckpt    while it is unfinished   predictions.npz    predicted (N,), confidence (N,) float16,
                                                                   top5 (N, min(5, K))
    filters.npz        first-layer weights      model.safetensors  weights, and model.json, what rebuilds the network,
                                                                   if the run keeps them (models/saved.py)
    record.json        the RunRecord; written last: the completion marker

Events, each with `event` and `time` (ISO 8601, UTC):

    started    run_id, row, seed, model, data, recipe, spec_sha256, code_sha256, device, device_kind, commit, dirty,
               epochs_total
    resumed    row, seed, model, data, epochs_total, checkpoint ("used"; "none" or "corrupt": from the first step again)
    epoch      epoch, step, split ("train", "test" or "validation"), loss, accuracy_percent, lr, seconds. Where images
               are held back, an epoch's "validation" (lr null) comes before its "train"; the final score comes last
               (step, lr and seconds null)
    finding    name, evidence, causes, next_steps: what the doctor found (spec/findings.py); most runs have none
    diverged   epoch, step, reason
    failed     reason                           interrupted   reason
    finished   record (the RunRecord as a dict); reason, if it diverged

A resumed run may journal an epoch again: `curve` keeps the last entry for each (epoch, split). Each line ends with
the key "crc32": the CRC-32, in hexadecimal, of the object without it. `read` skips a line that is cut short or changed.
"""

import errno
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from remeasure.spec.record import Event
from remeasure.system.clock import now
from remeasure.system.paths import naming, read_file

JOURNAL_FILE = "journal.jsonl"
Sink = Callable[[Path, Event], None]  # called with (run directory, event) when it happens
_LINE = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}')


class Journal:
    """Appends events to `directory`/journal.jsonl; each line is on the disk, whole, before `write` returns."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / JOURNAL_FILE
        if self.path.exists() and not read_file(self.path).endswith(b"\n"):
            self._append("\n")  # end a torn line, or the next event would be appended to it

    def write(self, event: str, /, **values: object) -> Event:
        """Append one event with the current time and return it."""
        entry = {"event": event, "time": now(), **values}
        self._append(encode(entry))
        return entry

    def _append(self, line: str) -> None:
        with naming(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if os.write(descriptor, line.encode()) < len(line):
                    raise OSError(errno.ENOSPC, "the disk took only a part of a line")
                os.fsync(descriptor)  # lines must reach the disk before a later checkpoint or record
            finally:
                os.close(descriptor)


def unwatched(directory: Path, event: Event) -> None:
    """A sink that does nothing."""


def encode(entry: Event) -> str:
    """The line of an event."""
    text = json.dumps(entry, allow_nan=True)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def read(directory: Path) -> list[Event]:
    """All events of a run, in order, without damaged lines; [] without a journal."""
    path = directory / JOURNAL_FILE
    return list(_parse(read_file(path))) if path.exists() else []


def _parse(content: bytes) -> Iterator[Event]:
    """Skip damaged lines: a resumed run journals their events again."""
    for line in content.splitlines():
        found = _LINE.fullmatch(line)
        if found and zlib.crc32(text := found[1] + b"}") == int(found[2], 16):
            yield json.loads(text)


def curve(events: list[Event]) -> list[Event]:
    """The `epoch` events, the last one for each (epoch, split), in order of epoch."""
    points = {(event["epoch"], event["split"]): event for event in events if event["event"] == "epoch"}
    return [points[key] for key in sorted(points)]


def under_way(directory: Path) -> bool:
    """Whether the last state in the journal is `started` or `resumed`."""
    states = [event["event"] for event in read(directory) if event["event"] not in ("epoch", "finding")]
    return bool(states) and states[-1] in ("started", "resumed")


def last(events: list[Event], name: str) -> Event | None:
    """The last event of that name, if any."""
    return next((event for event in reversed(events) if event["event"] == name), None)
