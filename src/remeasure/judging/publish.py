"""Replaces files under results/: those of a row together, all or none even after a crash, and those of the table.

`may_replace` decides whether measured seeds may take the place of a row's record; `offer` is the only way for them into
results/.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from remeasure.judging import ledger
from remeasure.judging.comparison import differing, same_campaign
from remeasure.judging.reader import read_findings, read_row, read_runs, read_specs
from remeasure.judging.records import RowResults
from remeasure.judging.report import beside, page
from remeasure.judging.table import build, other_configs, readme_block, to_csv, to_markdown, update_readme, verdict_of
from remeasure.spec.base import InputError, gathered
from remeasure.spec.claim import Article, Row
from remeasure.spec.record import RunRecord
from remeasure.system import paths
from remeasure.system.atomic import read_bytes, sync_folder, write_atomic, write_synced
from remeasure.system.formats import decode_yaml, encode_csv
from remeasure.system.locks import held_folder
from remeasure.system.paths import read_file, refuse_no_file

_HEADER = encode_csv([], cls=RunRecord)
# Marker file in a staging folder: all files are staged, so `recover` finishes the replacement. It holds the digests of
# the row's seal before and after, because results/ may be another record by then, such as one that git brought back.
_COMPLETE = "COMPLETE"
_SEAL = "sums/{}.sha256"


def may_replace(recorded: RowResults | None, new: RowResults, *, row: Row, fresh: bool) -> bool:
    """Whether the new seeds may take the place of the recorded ones, so that stronger evidence never gives way.

    They may if the record has no seed that the rule counts, or if their campaign has ended: the row is decided, or
    every seed of its last look is there. Before that, they may only if they contain the recorded seeds, of one spec,
    data fingerprint and device kind, and these decide nothing. A record of more seeds, with the same predictions where
    both have one, stays.
    `fresh`: FRESH=1, which replaces any record once the command has measured what it was asked for.
    """
    if recorded is None or fresh or not any(record.seed in _counted(row) for record in recorded.records):
        return True
    seeds, known = ({record.seed for record in group.records} for group in (new, recorded))
    same = same_campaign(recorded, new)
    if same and seeds < known and not any(differing(recorded, new).values()):
        return False
    return has_ended(new, row=row) or (same and known <= seeds and not is_decided(recorded, row=row))


def has_ended(results: RowResults, *, row: Row) -> bool:
    """Whether the row's plan needs no more seeds: a look decides, or all seeds of the last look have a score."""
    scored = {record.seed for record in results.records if record.num_correct is not None}
    return is_decided(results, row=row) or scored >= set(_counted(row))


def _counted(row: Row) -> range:
    """The seeds that the row's rule counts, at its last look."""
    return range(row.rule.first_seed, row.rule.first_seed + row.rule.looks[-1])


def is_decided(results: RowResults, *, row: Row) -> bool:
    return verdict_of(row, records=results.records, spec=results.spec).verdict not in ("undecided", "not measured")


def _nothing() -> None:
    pass


def offer(
    results: Path, new: RowResults, *, row: Row, fresh: bool = False, then: Callable[[], None] = _nothing
) -> bool:
    """Publish the row's new seeds if they `may_replace` what results/ holds now; returns whether they did.

    `then` brings the table up to date. If it raises InputError, `recover` does it again at the next start.
    """
    with held_folder(results, writes=True):
        with suppress(InputError):
            _recover(results, then=then)
        recorded = read_row(results, row=row.name)
        if not may_replace(recorded, new, row=row, fresh=fresh):
            return False
        staging = _stage(results, row=row.name, files=_with_rules(new, recorded, row=row).to_files())
        with suppress(InputError):
            _finish(staging, results=results, then=then)
        return True


def _with_rules(new: RowResults, recorded: RowResults | None, *, row: Row) -> RowResults:
    """`new`, each of whose seeds names the rule of the record that results/ have of it, else its own, else today's."""
    known = {record.seed: record.rule for record in recorded.records} if recorded else {}
    records = (replace(record, rule=known.get(record.seed, record.rule or row.rule_text)) for record in new.records)
    return replace(new, records=tuple(records))


def publish(results: Path, *, row: str, files: Mapping[str, bytes]) -> None:
    """Replace the row's files by these (relative path to content), so that a crash leaves all of them or none.

    The files are staged and fsynced, then marked complete, then renamed into place; `recover` finishes or discards a
    replacement that a crash interrupted. Environments and findings that no seal names any more are removed.
    """
    with held_folder(results, writes=True):
        _recover(results, then=_nothing)
        _finish(_stage(results, row=row, files=files), results=results, then=_nothing)


def recover(results: Path, *, then: Callable[[], None] = _nothing) -> None:
    """Finish interrupted replacements whose files were all staged, discard the others, and those of a record that is no
    longer there. Call it at start.

    `then` brings the table up to date after one was finished. InputError: the folder cannot be made or written, or what
    `then` raises.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise InputError(f"{results}: cannot be written ({error.strerror}); make it writable and start again") from None
    with held_folder(results):
        _recover(results, then=then)


def _stage(results: Path, *, row: str, files: Mapping[str, bytes]) -> Path:
    staging = results / f".staging-{row}"
    if (staging / _COMPLETE).exists():  # a replacement that is done, except for a table that could not be written
        (staging / _COMPLETE).unlink()
        sync_folder(staging)
    for name, data in files.items():
        write_synced(staging / name, data)
    seals = (_seal(results, row=row), files.get(_SEAL.format(row), b""))
    write_synced(staging / _COMPLETE, "\n".join(hashlib.sha256(seal).hexdigest() for seal in seals).encode())
    return staging


def _seal(results: Path, *, row: str) -> bytes:
    """The row's seal in results/, b"" where it has none."""
    path = results / _SEAL.format(row)
    return read_bytes(path) if path.is_file() else b""


def _recover(results: Path, *, then: Callable[[], None]) -> None:
    for staging in sorted(results.glob(".staging-*")):
        marker, seal = staging / _COMPLETE, _seal(results, row=staging.name.removeprefix(".staging-"))
        if marker.exists() and hashlib.sha256(seal).hexdigest() in read_bytes(marker).decode().split():
            _finish(staging, results=results, then=then)
        else:
            shutil.rmtree(staging)


def _finish(staging: Path, *, results: Path, then: Callable[[], None]) -> None:
    """Rename the staged files into place, then the table's. The marker is removed last: a call can be repeated."""
    for path in sorted(staging.glob("*/*")):
        target = results / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        sync_folder(target.parent)
    _prune(results)
    then()
    (staging / _COMPLETE).unlink()
    shutil.rmtree(staging)


def _prune(results: Path) -> None:
    """Remove environments and findings that no seal names: rows share environments, and not every row has findings."""
    seals = b"".join(read_file(path) for path in results.glob("sums/*.sha256"))
    for path in [*results.glob("environments/*.json"), *results.glob("findings/*.csv")]:
        if f"  {path.relative_to(results).as_posix()}\n".encode() not in seals:
            path.unlink()


def render(rows: Mapping[str, Row], *, results: Path, readme_path: Path | None) -> dict[Path, bytes]:
    """What table.csv, table.md and the README must hold, by path.

    InputError: a fault in a runs file, or a README without its markers.
    """
    records = {name: read_runs(results, row=name) for name in rows}
    findings = {name: read_findings(results, row=name) for name in rows}
    table = build(rows, records=records, specs=read_specs(results, rows=rows))
    files = {
        results / "table.csv": to_csv(table),
        results / "table.md": to_markdown(table, rows=rows, records=records, findings=findings).encode(),
    }
    if readme_path is not None:
        text = read_bytes(readme_path).decode(errors="surrogateescape")  # keep bytes outside the block
        files[readme_path] = update_readme(text, block=readme_block(table, rows=rows)).encode(errors="surrogateescape")
    return files


def render_page(
    rows: Mapping[str, Row],
    *,
    article: Article | None,
    groups: Mapping[str, RowResults],
    results: Path,
    conf_dir: Path,
    splits: page.TestSplits,
) -> str:
    """What report.html must hold. `groups`: the evidence of every row that has any. `conf_dir`: the ledger's folder.

    InputError: a faulty file.
    """
    folders = (conf_dir, *paths.conf_dirs())
    configs = {row.data: paths.conf_file(f"data/{row.data}.yaml", folders=folders) for row in rows.values()}
    records, specs = ({name: getattr(group, part) for name, group in groups.items()} for part in ("records", "spec"))
    return page.to_html(
        build(rows, records=records, specs=specs),
        rows=rows,
        groups={name: group for name, group in groups.items() if not other_configs(rows[name], group.spec)},
        article=article,
        splits=splits,
        beside=beside.read(results),
        files={name: _data_files(path) for name, path in configs.items()},
    )


def _data_files(path: Path) -> list[str]:
    """The names of a data set's files, by its config; [] where it has none."""
    return list(decode_yaml(read_bytes(path), name=str(path)).get("files_md5", ())) if path.is_file() else []


def read_groups(rows: Mapping[str, Row], *, results: Path) -> tuple[dict[str, RowResults], list[str]]:
    """The evidence of the rows that have any, and the faults of those whose files cannot be believed."""
    groups, faults = dict[str, RowResults](), list[str]()
    for name in rows:
        with gathered(faults):
            if group := read_row(results, row=name):
                groups[name] = group
    return groups, faults


def no_split(_: str) -> None:
    """No data set is here."""


def write(
    ledger_path: Path, *, results: Path, readme_path: Path | None, splits: page.TestSplits = no_split
) -> Sequence[str]:
    """Bring the table, report.html and the README up to date; a row new in the ledger gets its runs file, and one that
    is gone loses it, if it was never measured.

    Each file is replaced atomically, and only if it changes. Where a row's evidence is faulty, report.html stays as it
    is, and the faults are returned. InputError: as in `render`, or a fault in the ledger; nothing is written then.
    """
    rows, article = ledger.read_with_article(ledger_path)
    files = render(rows, results=results, readme_path=readme_path)
    groups, faults = read_groups(rows, results=results)
    if not faults:
        html = render_page(
            rows, article=article, groups=groups, results=results, conf_dir=ledger_path.parent, splits=splits
        )
        files[results / "report.html"] = html.encode()
    for path in files:
        refuse_no_file(path)
    for name in rows:
        ensure_header(results, row=name)
    for path in (results / "runs").glob("*.csv"):
        if path.stem not in rows and read_file(path) == _HEADER:  # of a row that was renamed or removed
            path.unlink()
    for path, data in files.items():
        write_atomic(path, data)
    return faults


def ensure_header(results: Path, *, row: str) -> None:
    """Write the row's runs file with only a header where there is none; leave an existing file as it is."""
    path = results / "runs" / f"{row}.csv"
    if not path.exists():
        write_atomic(path, _HEADER)
