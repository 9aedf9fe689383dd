"""Recomputes every number in results/ from stored predictions and labels, without training.

Checked for each row: the seal, the SHA-256 of each seed's predictions, shapes, the hashes of spec and environments, the
curves' last points, and, with the labels, every num_correct. Then table.csv, table.md, report.html and the README's
table are rebuilt and compared byte for byte.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from remeasure.judging import ledger, publish
from remeasure.judging.reader import read_row
from remeasure.judging.records import FOLDERS, RowResults
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import Array, mismatch

Labels = Callable[[str], Array | None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """`lines`: what was checked, one for each row and file. `faults`: one line each: file, expected and found."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


def verify(ledger_path: Path, *, results: Path, labels: Labels, readme_path: Path | None) -> Report:
    """Check everything under `results` and the README's table.

    `labels(name)`: the test labels (N,) integer of the data set of that name, or None where they are missing:
    then that data set's accuracies are not checked, and the row's line says so. It is called once for each data set
    that has a record, and for no other. InputError: the ledger cannot be read.
    """
    rows = ledger.read(ledger_path)
    labels = cache(labels)
    checks = [_check_row(row, results=results, labels=labels) for row in rows.values()]
    checks += [("", tuple(_folder_faults(results, rows=rows)))]
    checks += _check_table(rows, results=results, readme_path=readme_path)
    faults = (fault for _, found in checks for fault in found)
    return Report(lines=tuple(line for line, _ in checks if line), faults=tuple(dict.fromkeys(faults)))


def _check_row(row: Row, *, results: Path, labels: Labels) -> tuple[str, tuple[str, ...]]:
    """The line of the report, and the faults."""
    try:
        group = read_row(results, row=row.name)
    except InputError as error:
        return f"{row.name}: FAULTY", error.faults
    if group is None:
        return f"{row.name}: no record yet", ()
    seeds = f"{row.name}: {len(group.records)} seeds, {group.predicted.size:,} predictions"
    if (truth := labels(row.data)) is None:
        return f"{seeds}: ok, but not compared with the labels of {row.data}, which are not here", ()
    faults = tuple(f"{results}/{fault}" for fault in _accuracy_faults(group, truth=truth, data=row.data))
    return f"{seeds} recomputed: {'FAULTY' if faults else 'ok'}", faults


def _accuracy_faults(group: RowResults, *, truth: Array, data: str) -> Iterator[str]:
    num_test = group.records[0].num_test
    if truth.shape != (num_test,):
        yield mismatch(
            f"runs/{group.row}.csv, num_test", expected=f"{len(truth)}, the labels of {data}", found=num_test
        )
        return
    num_correct = dict(zip(group.seeds.tolist(), np.sum(group.predicted == truth, axis=1).tolist(), strict=True))
    for record in group.records:
        if record.num_correct != (expected := num_correct.get(record.seed)):
            what = f"runs/{group.row}.csv, num_correct of seed {record.seed}"
            yield mismatch(what, expected=f"{expected} by the labels of {data}", found=record.num_correct)


def _folder_faults(results: Path, *, rows: Mapping[str, Row]) -> Iterator[str]:
    """Faults of missing runs files, and of files that belong to no row."""
    for name in rows:
        if not (results / "runs" / f"{name}.csv").exists():
            yield mismatch(f"{results}/runs/{name}.csv", expected="a file, a header alone at least", found="none")
    for folder in FOLDERS:
        for path in sorted((results / folder).glob("*")):
            if folder != "environments" and path.stem not in rows:
                yield f"{path}: belongs to no row of the ledger; remove it, or name its row"


def _check_table(
    rows: Mapping[str, Row], *, results: Path, readme_path: Path | None
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A line and the faults for each file that is computed from the ledger and the records."""
    try:
        files = publish.render(rows, results=results, readme_path=readme_path)
    except InputError as error:
        yield "table: FAULTY, not compared", error.faults
        return
    for path, expected in files.items():
        faults = tuple(_difference(path, expected=expected))
        yield f"{path.name}: {'FAULTY' if faults else 'ok'}", faults


def _difference(path: Path, *, expected: bytes) -> Iterator[str]:
    try:
        found = read_bytes(path)
    except InputError as error:
        yield from error.faults
        return
    if found != expected:
        pairs = enumerate(zip(expected, found, strict=False))
        start = next((at for at, (left, right) in pairs if left != right), min(len(expected), len(found)))
        line = expected.count(b"\n", 0, start) + 1
        around = slice(max(0, start - 20), start + 20)
        yield mismatch(f"{path}, line {line}", expected=repr(expected[around]), found=repr(found[around]))
