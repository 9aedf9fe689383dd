"""The folders of runs: which are finished, which go on, and what is in them. No torch: looking must be quick.

`runs/<model>-<data>-<spec>-<device kind>-s<seed>-a<attempt>/`; journal.py says what stands in one.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from remeasure import journal
from remeasure.spec import DeviceKind, RunRecord, RunSpec


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs happen: the folder that holds them, the project, the data root, and the device's kind."""

    runs: Path
    project: Path
    data_root: Path
    device_kind: DeviceKind


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its record, its directory, and whether it was finished before."""

    record: RunRecord
    directory: Path
    reused: bool


def finished(spec: RunSpec, *, seed: int, place: Place) -> Outcome | None:
    """The newest finished run with this key (spec_sha256, seed, device kind) in this checkout, if any."""
    for directory in reversed(attempts(spec, seed=seed, place=place)):
        if (directory / "record.json").is_file():
            return Outcome(record=read_record(directory), directory=directory, reused=True)
    return None


def open_directory(spec: RunSpec, *, seed: int, place: Place, fresh: bool) -> Path:
    """The newest attempt's directory, to go on with it; a new one where it ended, or there is none, or `fresh`."""
    earlier = attempts(spec, seed=seed, place=place)
    if earlier and not fresh and not _ended(earlier[-1]):
        return earlier[-1]
    number = _attempt(earlier[-1]) + 1 if earlier else 1
    name = f"{spec.model.name}-{spec.data.name}-{spec.spec_sha256[:12]}-{place.device_kind}-s{seed}-a{number}"
    (place.runs / name).mkdir(parents=True, exist_ok=True)
    return place.runs / name


def attempts(spec: RunSpec, *, seed: int, place: Place) -> list[Path]:
    """The directories of this key, oldest first, whatever has become of them."""
    return sorted(place.runs.glob(f"*-{spec.spec_sha256[:12]}-{place.device_kind}-s{seed}-a*"), key=_attempt)


def _ended(directory: Path) -> bool:
    """Whether a tuning run is finished, which leaves no record."""
    events = journal.read(directory)
    return bool(events) and events[-1]["event"] == "finished" and not (directory / "record.json").is_file()


def _attempt(directory: Path) -> int:
    return int(directory.name.rpartition("-a")[2])


def read_record(directory: Path) -> RunRecord:
    """The record of a finished run."""
    return RunRecord(**json.loads((directory / "record.json").read_text()))


def write_record(directory: Path, record: RunRecord) -> None:
    """Write record.json whole: from then on the run is finished."""
    write_whole(directory / "record.json", json.dumps(asdict(record), indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and onto the disk before it has its name."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
