"""Reads rows from results/ and checks each file against the row's seal and the row's other files."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remeasure.judging.records import FOLDERS, RowResults, record_faults, row_files, seal_of_files, seal_of_sums
from remeasure.spec.base import InputError, gathered, refuse
from remeasure.spec.record import CurvePoint, FoundPoint, RunRecord
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import decode_csv, decode_json, decode_npz, decode_yaml, mismatch

_SEALED = re.compile(rf"^([0-9a-f]{{64}})  ((?:{'|'.join(FOLDERS)})/[\w.-]+)$", re.MULTILINE)  # a line of a seal
_CLASSES = ("|u1", "<u2", "<u4")
_PREDICTION_TYPES = {"seeds": ("<i8",), "predicted": _CLASSES, "confidence": ("<f2",), "top5": _CLASSES}


# ---------------------------------------------------------------- reading


def read_runs(results: Path, *, row: str) -> list[RunRecord]:
    """The row's records, sorted by seed; [] where its runs file is absent or only a header, and there is no seal.

    InputError with one line for each fault: file, line and column, or the file that differs from its seal.
    """
    name, faults, records = f"runs/{row}.csv", list[str](), list[RunRecord]()
    there = (results / name).exists()
    data = read_bytes(results / name) if there else b""
    with _faults_in(results):
        with gathered(faults):
            records = decode_csv(data, cls=RunRecord, name=name) if there else []
            refuse(record_faults(records, row=row))
            if not records and (results / f"sums/{row}.sha256").exists():
                raise InputError(mismatch(name, expected="the sealed records", found="none"))
        refuse([*faults, *_altered(results, row=row, folder="runs")])
    return records


def read_specs(results: Path, *, rows: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The specs of those of these rows that have a record. InputError: a file is altered, or cannot be read."""
    measured = [row for row in rows if (results / f"specs/{row}.yaml").exists()]
    with _faults_in(results):
        refuse(fault for row in measured for fault in _altered(results, row=row, folder="specs"))
        names = {row: f"specs/{row}.yaml" for row in measured}
        return {row: decode_yaml(read_bytes(results / name), name=name) for row, name in names.items()}


def read_findings(results: Path, *, row: str) -> list[FoundPoint]:
    """What the doctor found in the row's seeds. InputError: the file is altered, or cannot be read."""
    name = f"findings/{row}.csv"
    if not _has_findings(results, row=row):
        return []
    with _faults_in(results):
        refuse(_altered(results, row=row, folder="findings"))
        return decode_csv(read_bytes(results / name), cls=FoundPoint, name=name)


def read_row(results: Path, *, row: str) -> RowResults | None:
    """All files of the row, checked against its seal and each other; None for a row without a record.

    InputError: a file is missing, altered, unreadable, or contradicts another; one line for each fault.
    """
    try:
        records = read_runs(results, row=row)
        files = _read_files(results, row=row, records=records)
    except InputError as error:
        altered = (f"{results}/{fault}" for fault in _altered(results, row=row))
        raise InputError(*dict.fromkeys([*error.faults, *altered])) from None
    if not records:
        return None
    with _faults_in(results):
        seal, faults = f"sums/{row}.sha256", list[str]()
        others = {name: data for name, data in files.items() if name != seal}
        if files[seal] != seal_of_files(others, row=row):
            faults += list(_altered(results, row=row)) or [f"{seal}: not as remeasure writes it"]
        with gathered(faults):
            group = _parse(files, row=row, records=records)
        refuse(faults)
    return group


def _read_files(results: Path, *, row: str, records: Sequence[RunRecord]) -> dict[str, bytes]:
    """The content of the row's files. InputError: one line for each file that is missing or cannot be read."""
    faults, files = list[str](), dict[str, bytes]()
    for name in row_files(row, records=records, found=_has_findings(results, row=row)) if records else ():
        if not (results / name).exists():
            expected = f"a file, as {results}/runs/{row}.csv has it"
            faults.append(mismatch(f"{results}/{name}", expected=expected, found="none"))
            continue
        with gathered(faults):
            files[name] = read_bytes(results / name)
    refuse(faults)
    return files


def _has_findings(results: Path, *, row: str) -> bool:
    """Whether the row has a findings file, or its seal names one."""
    name, seal = f"findings/{row}.csv", results / f"sums/{row}.sha256"
    return (results / name).exists() or (seal.is_file() and f"  {name}\n".encode() in read_bytes(seal))


@contextmanager
def _faults_in(results: Path) -> Iterator[None]:
    """Prefix each fault with the results folder."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{results}/{fault}" for fault in error.faults)) from None


def _parse(files: Mapping[str, bytes], *, row: str, records: Sequence[RunRecord]) -> RowResults:
    faults, parts, environments = list[str](), dict[str, Any](), dict[str, Any]()
    for name, data in files.items():
        with gathered(faults):
            match name.partition("/")[0]:
                case "predictions":
                    parts |= decode_npz(data, name=name, dtypes=_PREDICTION_TYPES, optional=("top5",))
                case "curves":
                    parts["curves"] = tuple(decode_csv(data, cls=CurvePoint, name=name))
                case "filters":
                    parts["filters"] = decode_npz(data, name=name, dtypes={"weights": ("<f2",)})["weights"]
                case "findings":
                    parts["findings"] = tuple(decode_csv(data, cls=FoundPoint, name=name))
                case "specs":
                    parts["spec"] = decode_yaml(data, name=name)
                case "environments":
                    environments[Path(name).stem] = decode_json(data, name=name)
    refuse(faults)
    return RowResults(row=row, records=tuple(records), environments=environments, **parts)


# ---------------------------------------------------------------- the seal: covers what no other check does


def _altered(results: Path, *, row: str, folder: str = "") -> Iterator[str]:
    """Faults of existing files in `folder` ("": in all) that differ from the row's seal, and of a malformed seal."""
    seal = f"sums/{row}.sha256"
    if not (results / seal).exists():
        return
    try:
        content = read_bytes(results / seal)
    except InputError as error:
        yield from (fault.removeprefix(f"{results}/") for fault in error.faults)
        return
    sealed = _SEALED.findall(content.decode(errors="replace"))
    sums = {name: sha256 for sha256, name in sealed}
    found = (results / f"findings/{row}.csv").exists()
    least = set(row_files(row, records=(), found=found)) - {seal}
    if not least < sums.keys() or content != seal_of_sums(sums, row=row):  # `<`: it names environments, too
        yield f"{seal}: not as remeasure writes it"
    for sha256, name in sealed:
        path = results / name
        if name.startswith(folder) and path.is_file() and hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
            yield f"{name}: differs from the SHA-256 that {seal} gives for it"
