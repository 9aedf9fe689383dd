"""Replaces files under results/: those of a row together, all or none even after a crash, and those of the table."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from remeasure.judging import ledger, report
from remeasure.judging.reader import read_findings, read_runs
from remeasure.judging.table import build, readme_block, to_csv, to_markdown, update_readme
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.spec.record import RunRecord
from remeasure.system.atomic import read_bytes, sync_folder, write_atomic, write_synced
from remeasure.system.formats import encode_csv
from remeasure.system.locks import held_folder
from remeasure.system.paths import read_file, refuse_no_file

_COMPLETE = "COMPLETE"  # marker file in a staging folder: all files are staged, so `recover` finishes the replacement


def publish(results: Path, *, row: str, files: Mapping[str, bytes]) -> None:
    """Replace the row's files by these (relative path to content), so that a crash leaves all of them or none.

    The files are staged and fsynced, then marked complete, then renamed into place; `recover` finishes or discards a
    replacement that a crash interrupted. Environments and findings that no seal names any more are removed.
    """
    with held_folder(results):
        _recover(results)
        staging = results / f".staging-{row}"
        for name, data in files.items():
            write_synced(staging / name, data)
        write_synced(staging / _COMPLETE, b"")
        _finish(staging, results=results)
        _prune(results)


def recover(results: Path) -> None:
    """Finish interrupted replacements whose files were all staged, discard the others. Call it at start.

    InputError: the folder cannot be made or written.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise InputError(f"{results}: cannot be written ({error.strerror}); make it writable and start again") from None
    with held_folder(results):
        _recover(results)


def _recover(results: Path) -> None:
    for staging in sorted(results.glob(".staging-*")):
        if (staging / _COMPLETE).exists():
            _finish(staging, results=results)
        else:
            shutil.rmtree(staging)


def _finish(staging: Path, *, results: Path) -> None:
    """Rename the staged files into place. The marker is removed last, so that an interrupted call can be repeated."""
    for path in sorted(staging.glob("*/*")):
        target = results / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        sync_folder(target.parent)
    (staging / _COMPLETE).unlink()
    shutil.rmtree(staging)


def _prune(results: Path) -> None:
    """Remove environments and findings that no seal names: rows share environments, and not every row has findings."""
    seals = b"".join(read_file(path) for path in results.glob("sums/*.sha256"))
    for path in [*results.glob("environments/*.json"), *results.glob("findings/*.csv")]:
        if f"  {path.relative_to(results).as_posix()}\n".encode() not in seals:
            path.unlink()


def render(rows: Mapping[str, Row], *, results: Path, readme_path: Path | None) -> dict[Path, bytes]:
    """What table.csv, table.md, report.html and the README must hold, by path.

    InputError: a fault in a runs file, or a README without its markers.
    """
    records = {name: read_runs(results, row=name) for name in rows}
    findings = {name: read_findings(results, row=name) for name in rows}
    table = build(rows, records=records)
    files = {
        results / "table.csv": to_csv(table),
        results / "table.md": to_markdown(table, rows=rows, records=records, findings=findings).encode(),
        results / "report.html": report.to_html(table, rows=rows, records=records, findings=findings).encode(),
    }
    if readme_path is not None:
        text = read_bytes(readme_path).decode(errors="surrogateescape")  # keep bytes outside the block
        files[readme_path] = update_readme(text, block=readme_block(table, rows=rows)).encode(errors="surrogateescape")
    return files


def write(ledger_path: Path, *, results: Path, readme_path: Path | None) -> None:
    """Bring the table, report.html and the README up to date; a row new in the ledger gets its runs file.

    Each file is replaced atomically, and only if it changes. InputError: as in `render`, or a fault in the ledger;
    nothing is written then.
    """
    rows = ledger.read(ledger_path)
    files = render(rows, results=results, readme_path=readme_path)
    for path in files:
        refuse_no_file(path)
    for name in rows:
        ensure_header(results, row=name)
    for path, data in files.items():
        write_atomic(path, data)


def ensure_header(results: Path, *, row: str) -> None:
    """Write the row's runs file with only a header where there is none; leave an existing file as it is."""
    path = results / "runs" / f"{row}.csv"
    if not path.exists():
        write_atomic(path, encode_csv([], cls=RunRecord))
