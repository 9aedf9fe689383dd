"""Run directories: finds finished and unfinished runs, reads and writes records. Imports no torch, to be fast.

`runs/<model>-<data>-<spec>-<device kind>-s<seed>-a<attempt>/`; journal.py lists the files in one. record.json holds the
SHA-256 of itself and of the files beside it; reading a record names every file that has changed since.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remeasure.runs import code, journal, provenance
from remeasure.spec.base import DeviceKind, InputError, canonical_sha256
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import locks
from remeasure.system.atomic import read_json, write_atomic
from remeasure.system.paths import read_file, refuse_no_file

SEALED = (
    *(code.CODE_FILE, "config.yaml", "environment.json", "diff.patch", journal.JOURNAL_FILE),
    *("predictions.npz", "filters.npz", "model.json", "model.safetensors"),
    *("divergence.json", "divergence.safetensors"),  # training/diagnostics/nonfinite.py
)
_SEALS = ("code_sha256", "files_sha256", "seal_sha256")  # what record.json holds beside the record
CAMPAIGNS = ".campaigns"  # folder of lock files, one a campaign, in the folder of runs (locks.Presence)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs happen: the folder that holds them, the project, the data root, and the device's kind.

    `doctor`: trainings are checked for faults, which are reported as findings (spec/findings.py). `curve`: images that
    are held back for validation are scored after each epoch. `devices`, `num_nodes`: of a run on photographs; None: as
    torchrun or srun says, else all GPUs of this machine.
    """

    runs: Path
    project: Path
    data_root: Path
    device_kind: DeviceKind
    doctor: bool = True
    curve: bool = True
    devices: int | None = None
    num_nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its record, its directory, and whether it was finished before."""

    record: RunRecord
    directory: Path
    reused: bool


def finished(spec: RunSpec, *, seed: int, place: Place) -> Outcome | None:
    """The newest finished run of this spec, seed, device kind and code in this checkout, if any."""
    for directory in reversed(attempts(spec, seed=seed, place=place)):
        if (directory / "record.json").is_file():
            record = read_record(directory)
            refuse_renamed(directory, record=record)
            return Outcome(record=record, directory=directory, reused=True)
    return None


def refuse_renamed(directory: Path, *, record: RunRecord) -> None:
    """Raise InputError if the folder's name says another spec, seed or kind of device than its record."""
    name = run_key(record.spec_sha256, seed=record.seed, device_kind=record.device_kind)
    if not directory.name.rpartition("-a")[0].endswith(f"-{name}"):
        raise InputError(
            f"{directory}: was renamed; it holds seed {record.seed} of spec {record.spec_sha256[:12]} on "
            f"{record.device_kind}; give it a name that ends with {name}-a1 or a later number, or remove it"
        )


def tuned(spec: RunSpec, *, seed: int, place: Place) -> Outcome | None:
    """The newest finished run of this spec, seed, device kind and code that leaves no record, if any."""
    for directory in reversed(attempts(spec, seed=seed, place=place)):
        if spec.data.split != "test" and _ended(directory):
            return Outcome(record=ended_record(directory), directory=directory, reused=True)
    return None


def open_directory(spec: RunSpec, *, seed: int, place: Place, fresh: bool) -> Path:
    """The newest attempt's directory; a new one if this code has none, if `fresh`, or after a finished tuning run."""
    content = code.content(spec)
    with locks.held_folder(place.runs, writes=True):  # so that no process sees a directory without its code.json
        earlier = attempts(spec, seed=seed, place=place)
        if earlier and not fresh and not (spec.data.split != "test" and _ended(earlier[-1])):
            for path in earlier[-1].iterdir():
                refuse_no_file(path)
            return earlier[-1]
        directory = _next_directory(spec, seed=seed, place=place)
        directory.mkdir(exist_ok=True)
        write_atomic(directory / code.CODE_FILE, content)
        return directory


def _next_directory(spec: RunSpec, *, seed: int, place: Place) -> Path:
    """The next attempt's; the newest one's if a kill left it without its code.json and its journal."""
    earlier = _of_any_code(spec, seed=seed, place=place)
    if earlier and not code.kept(earlier[-1]) and not (earlier[-1] / journal.JOURNAL_FILE).exists():
        return earlier[-1]
    number = attempt(earlier[-1]) + 1 if earlier else 1
    name = run_key(spec.spec_sha256, seed=seed, device_kind=place.device_kind)
    return place.runs / f"{spec.model.name}-{spec.data.name}-{name}-a{number}"


def run_key(spec_sha256: str, *, seed: int, device_kind: str) -> str:
    """How the folders of a seed's runs end, before the number of the attempt."""
    return f"{spec_sha256[:12]}-{device_kind}-s{seed}"


def attempts(spec: RunSpec, *, seed: int, place: Place) -> list[Path]:
    """The directories of this spec_sha256, seed, device kind and code, oldest first, finished or not.

    Without those of unfinished runs that other versions of the libraries began.
    """
    present = code.code_sha256(spec)
    found = _of_any_code(spec, seed=seed, place=place)
    same = [path for path in found if present in (code.kept(path), _recorded(path, "code_sha256"))]
    return [path for path in same if not _other_versions(path)]


def _other_versions(directory: Path) -> str:
    """The packages of an unfinished run that are not as they were when it began; "" if it is finished."""
    if (directory / "record.json").is_file():
        return ""
    return provenance.other_versions(read_json(directory / "environment.json"))


def other_code(spec: RunSpec, *, seed: int, place: Place) -> str:
    """What differs in the code of the newest attempt where no attempt is of this code; "" if there is none, or one is.

    Such as "models/mlp.py differs", or "torch 2.15.0, not 2.14.0".
    """
    begun = [path for path in _of_any_code(spec, seed=seed, place=place) if journal.read(path)]
    if not begun or attempts(spec, seed=seed, place=place):
        return ""
    if code.kept(begun[-1]) == code.code_sha256(spec) and (differs := _other_versions(begun[-1])):
        return differs
    return code.changed(begun[-1], spec=spec)


def _of_any_code(spec: RunSpec, *, seed: int, place: Place) -> list[Path]:
    name = run_key(spec.spec_sha256, seed=seed, device_kind=place.device_kind)
    return sorted(directories(place.runs, of=f"*-{name}"), key=attempt)


def is_under_way(spec: RunSpec, *, seed: int, place: Place) -> bool:
    """Whether some process trains this seed now."""
    earlier = attempts(spec, seed=seed, place=place)
    return bool(earlier) and locks.is_held(earlier[-1] / "lock")


def participants(runs: Path, *, campaign: str) -> Path:
    """The lock file shared by the processes that work on a campaign (locks.Presence)."""
    return runs / CAMPAIGNS / campaign.replace("/", "-")


def _ended(directory: Path) -> bool:
    """Whether a tuning run, which writes no record, is finished."""
    events = journal.read(directory)
    return bool(events) and events[-1]["event"] == "finished" and not (directory / "record.json").is_file()


def directories(runs: Path, *, of: str = "*") -> list[Path]:
    """The runs' directories in a folder, by name; `of`: a pattern. A copy beside one, such as …-a1.bak, is none."""
    found = (path for path in runs.glob(f"{of}-a*") if path.name.rpartition("-a")[2].isdecimal())
    return sorted(path for path in found if path.is_dir())


def attempt(directory: Path) -> int:
    """The number at the end of a run's folder."""
    return int(directory.name.rpartition("-a")[2])


def same_seed(directory: Path) -> list[Path]:
    """The attempts at a run's seed by whatever code, oldest first, this one among them."""
    return sorted(directories(directory.parent, of=directory.name.rpartition("-a")[0]), key=attempt)


def replacement(directory: Path) -> Path | None:
    """The newest finished attempt at the same seed, if it is later than this one."""
    later = [path for path in same_seed(directory) if attempt(path) > attempt(directory)]
    return next((path for path in reversed(later) if (path / "record.json").is_file()), None)


def read_record(directory: Path) -> RunRecord:
    """The record of a finished run. InputError: it or a file beside it has changed since it was written."""
    if damaged := list(_damaged(directory)):
        raise InputError(
            *(f"{directory / name}: damaged, it is not what was written when the run finished" for name in damaged),
            f"remove the folder {directory}, and this seed is measured again",
        )
    return _record(json.loads(read_file(directory / "record.json")))


def _record(content: dict[str, Any]) -> RunRecord:
    """Raises TypeError for missing or unknown keys."""
    return RunRecord(**{key: value for key, value in content.items() if key not in _SEALS})


def _damaged(directory: Path) -> Iterator[str]:
    """The names of the files that have changed since the record was written."""
    try:
        written = read_file(directory / "record.json")
        content = json.loads(written)
        whole, sealed = _to_json(content) == written, dict(content["files_sha256"])
        _record(content)
        if content.pop("seal_sha256") != canonical_sha256(content) or not whole:
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not JSON, or changed
        yield "record.json"
        return
    for name, sha256 in sealed.items():
        try:
            whole = _sha256(read_file(directory / name)) == sha256
        except (OSError, InputError):
            whole = False
        if not whole:
            yield name


def write_record(directory: Path, record: RunRecord) -> None:
    """Write record.json atomically, which marks the run as finished."""
    names = [name for name in SEALED if (directory / name).is_file()]
    content: dict[str, Any] = asdict(record)
    content["code_sha256"] = code.kept(directory)
    content["files_sha256"] = {name: _sha256(read_file(directory / name)) for name in names}
    content["seal_sha256"] = canonical_sha256(content)
    write_atomic(directory / "record.json", _to_json(content))


def find_run(name: str | Path, *, runs: Path) -> Path:
    """The folder of a run, which `name` is, or whose record.json it is, or whose MLflow run id. InputError: none is."""
    path = Path(name)
    if path.name == "record.json" and path.is_file():
        return path.parent
    if (path / journal.JOURNAL_FILE).is_file():
        return path
    # The demo's are in a folder of their own, where MLflow's copies of records are, too: in folders of other names.
    found = [each for each in directories(runs, of="**/*") if recorded_run_id(each) == str(name)]
    if not found:
        raise InputError(f"{name}: neither the folder of a run nor the MLflow run id of one under {runs}")
    return found[0]


def ended_record(directory: Path) -> RunRecord:
    """The record of a finished run; of a tuning run, from its journal. InputError: unfinished, or damaged."""
    if (directory / "record.json").exists():
        return read_record(directory)
    event = journal.last(journal.read(directory), "finished")
    if event is None:
        raise InputError(f"{directory}: this run is not finished; start it again, and it goes on")
    return RunRecord(**event["record"])


def recorded_run_id(directory: Path) -> str:
    """The MLflow run id in a finished run's record, not verified; "" if none, "?" if it cannot be parsed."""
    return _recorded(directory, "mlflow_run_id")


def _recorded(directory: Path, key: str) -> str:
    """A value of record.json, not verified; "?" if it cannot be parsed, or is not there."""
    try:
        return str(json.loads(read_file(directory / "record.json"))[key])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return "?"


def _to_json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remove_leftovers(directory: Path) -> None:
    """Delete the checkpoint of a finished run whose process was killed before it did."""
    left = list(directory.glob("checkpoint.*"))
    if left and b"engine: batched" not in read_file(directory / "config.yaml"):  # else other seeds may resume it
        for path in left:
            path.unlink(missing_ok=True)
