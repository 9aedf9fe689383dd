"""Recomputes every number in results/ from stored predictions and labels, without training.

Checked for each row: the seal, the SHA-256 of each seed's predictions, shapes, the hashes of spec and environments, the
curves' last points, and, with the labels, every num_correct. Then table.csv, table.md, report.html and the README's
table are rebuilt and compared byte for byte; of report.html not the parts that need a test split which is not here, or
was not where the page was built.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from remeasure.judging import ledger, metrics, publish
from remeasure.judging.reader import read_row
from remeasure.judging.records import FOLDERS, RowResults, from_results
from remeasure.judging.report import page
from remeasure.spec.base import InputError, gathered
from remeasure.spec.claim import Row
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import Array, mismatch
from remeasure.system.validation import counted

_REBUILDS = "`remeasure table` (in a checkout `make report`) rebuilds it"


@dataclass(frozen=True, kw_only=True)
class Report:
    """`lines`: what was checked, one for each row and file. `faults`: one line each: file, expected and found."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


def verify(ledger_path: Path, *, results: Path, splits: page.TestSplits, readme_path: Path | None) -> Report:
    """Check everything under `results` and the README's table.

    `splits(name)`: the test split of the data set of that name, or None where it is missing: then that data set's
    accuracies are not checked, and the row's line says so. It is called once for each data set that has a record, and
    for no other. InputError: the ledger cannot be read.
    """
    rows, article = ledger.read_with_article(ledger_path)
    splits = cache(splits)
    groups, checks = dict[str, RowResults](), list[tuple[str, tuple[str, ...]]]()
    for name, row in rows.items():
        try:
            group = read_row(results, row=name)
        except InputError as error:
            checks.append((f"{name}: FAULTY", error.faults))
            continue
        checks.append(_check_row(row, group=group, results=results, splits=splits))
        if group:
            groups[name] = group
    if any(faults for _, faults in checks):
        checks.append(("report.html: not compared, as a row is faulty", ()))
    else:
        expected = publish.render_page(
            rows, article=article, groups=groups, results=results, conf_dir=ledger_path.parent, splits=splits
        )
        checks.append(_check_page(results / "report.html", expected=expected))
    checks.append(("", tuple(_folder_faults(results, rows=rows))))
    checks += _check_table(rows, results=results, readme_path=readme_path)
    faults = (fault for _, found in checks for fault in found)
    return Report(lines=tuple(line for line, _ in checks if line), faults=tuple(dict.fromkeys(faults)))


def _check_row(
    row: Row, *, group: RowResults | None, results: Path, splits: page.TestSplits
) -> tuple[str, tuple[str, ...]]:
    """The line of the report, and the faults."""
    if group is None:
        return f"{row.name}: no record yet", ()
    seeds = f"{row.name}: {counted(len(group.records), 'seed')}, {group.predicted.size:,} predictions"
    if why := metrics.missing(row, records=group.records):
        return f"{seeds}: FAULTY", (f"{results}/runs/{row.name}.csv: {row.metric}: {why}",)
    if (split := splits(row.data)) is None:
        return f"{seeds}: ok, but not compared with the labels of {row.data}, which are not here", ()
    faults = tuple(f"{results}/{fault}" for fault in _accuracy_faults(group, truth=split.labels, data=row.data))
    return f"{seeds} recomputed: {'FAULTY' if faults else 'ok'}", faults


def _accuracy_faults(group: RowResults, *, truth: Array, data: str) -> Iterator[str]:
    num_test = group.records[0].num_test
    if truth.shape != (num_test,):
        expected_num = f"{len(truth)}, the labels of {data}"
        yield mismatch(f"runs/{group.row}.csv, num_test", expected=expected_num, found=num_test)
        return
    for part in from_results(group):
        expected: dict[str, float] = {}
        if part.predicted is not None:
            expected = metrics.of_predictions(part.predicted, labels=truth, top5=part.top5)
        for column in ("num_correct", "num_top5_correct", "macro_f1", "balanced_accuracy"):
            found, wanted = getattr(part.record, column), expected.get(column)
            if (found is not None or column == "num_correct") and not _same(found, wanted):
                what = f"runs/{group.row}.csv, {column} of seed {part.record.seed}"
                yield mismatch(what, expected=f"{wanted} by the labels of {data}", found=found)


def _same(found: float | None, wanted: float | None) -> bool:
    """Counts must be equal; a fraction was rounded to 6 decimals."""
    return found is wanted if found is None or wanted is None else abs(found - wanted) <= 1e-6


def _folder_faults(results: Path, *, rows: Mapping[str, Row]) -> Iterator[str]:
    """Faults of missing runs files, and one that names the files which belong to no row."""
    for name in rows:
        if not (results / "runs" / f"{name}.csv").exists():
            found = f"none; {_REBUILDS}"
            yield mismatch(f"{results}/runs/{name}.csv", expected="a file, a header alone at least", found=found)
    paths = (path for folder in FOLDERS if folder != "environments" for path in sorted((results / folder).glob("*")))
    if stray := [path for path in paths if path.stem not in rows]:
        others = f", as do {len(stray) - 1} more files, of {', '.join(sorted({path.stem for path in stray}))}"
        more = others if len(stray) > 1 else ""
        yield f"{stray[0]}: belongs to no row of the ledger{more}; remove what is not needed, or name its row"


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
        with gathered(faults := list[str]()):
            faults += _difference(path, expected=expected, found=read_bytes(path))
        yield f"{path.name}: {_state(path) if faults else 'ok'}", tuple(f"{fault}; {_REBUILDS}" for fault in faults)


def _check_page(path: Path, *, expected: str) -> tuple[str, tuple[str, ...]]:
    """The line of report.html, and its faults; `expected`: the whole page, as far as it can be built here."""
    try:
        found = read_bytes(path).decode(errors="replace")
    except InputError as error:
        return f"{path.name}: {_state(path)}", (f"{error}; {_REBUILDS}",)
    skipped = page.left_out(expected) | page.left_out(found)
    wanted, got = (page.without(each, data=skipped).encode() for each in (expected, found))
    faults = tuple(_difference(path, expected=wanted, found=got))
    if not faults and not page.is_sealed(found):
        faults = (f"{path}: its last line is not the SHA-256 of the others",)
    if faults:
        return f"{path.name}: FAULTY", (*faults, f"{path}: {_REBUILDS}")
    but = f", but not compared in what needs the test split of {', '.join(sorted(skipped))}" if skipped else ""
    return f"{path.name}: ok{but}", ()


def _difference(path: Path, *, expected: bytes, found: bytes) -> Iterator[str]:
    if found != expected:
        pairs = enumerate(zip(expected, found, strict=False))
        start = next((at for at, (left, right) in pairs if left != right), min(len(expected), len(found)))
        line = expected.count(b"\n", 0, start) + 1
        around = slice(max(0, start - 20), start + 20)
        shown = (repr(text[around].decode(errors="replace")) for text in (expected, found))
        yield mismatch(f"{path}, line {line}", expected=next(shown), found=next(shown))


def _state(path: Path) -> str:
    """Of a file with faults."""
    return "FAULTY" if path.is_file() else "not built yet"
