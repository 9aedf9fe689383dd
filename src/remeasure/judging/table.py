"""The table: published beside measured numbers, computed from the ledger and results/ alone.

results/table.csv    one TableRow a line: the verdict with unrounded numbers, and provenance
results/table.md     the same for reading, with reasons and every seed
results/report.html  the same with figures and evidence (judging/report/)
README.md            a short form, between `<!-- table:begin` and `<!-- table:end -->`
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from remeasure.judging import ledger, metrics
from remeasure.judging.records import by_finding
from remeasure.judging.verdict import audit_params, judge, wilson_interval
from remeasure.spec.base import InputError, Mode
from remeasure.spec.claim import Metric, Published, Row, Verdict, VerdictName
from remeasure.spec.findings import Finding
from remeasure.spec.record import FoundPoint, RunRecord
from remeasure.spec.run import TRAINING_VERSION
from remeasure.system.formats import encode_csv, encode_json

Records = Mapping[str, Sequence[RunRecord]]
Findings = Mapping[str, Sequence[FoundPoint]]
Specs = Mapping[str, Mapping[str, Any]]  # asdict(RunSpec) by row
COMMAND = "make reproduce"
_BLOCK = re.compile(r"<!-- table:begin\b.*?-->.*?<!-- table:end -->", re.DOTALL)
_NOT_OFFICIAL = {
    "no": "the data fingerprint is not the official one",
    "unknown": "the data fingerprint is unknown: neither the official one nor that of a known copy",
}
_WITHOUT_RECORD = (
    *("num_params", "data_sha256", "data_official", "device", "seconds_per_seed", "commit", "measured_on"),
    *("wilson_low_percent", "wilson_high_percent", "params_audit"),
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of results/table.csv, whose columns are these fields in this order. None: does not apply, or unknown.

    Mean, sd, interval and verdict are those of `judge`. `device`, `commit`, `measured_on` (a UTC date) are those of
    the judged seed that finished last; the commit ends in `-dirty` if any judged seed ran on uncommitted changes.
    `data_official` and the other facts about data and net are the same for all seeds. `metric`: what the numbers are;
    None is accuracy, and a table of accuracies alone has no such column. `rule_before`: the claim and rule under which
    a judged seed's number was first seen, where the ledger has changed since; a table without such a row has no column.
    """

    row: str
    model: str
    data: str
    mode: Mode
    published_percent: float
    published_params: str | None
    num_params: int | None
    mean_percent: float | None
    sd_percent: float | None
    num_seeds: int
    interval_low_percent: float | None
    interval_high_percent: float | None
    margin_pp: float
    verdict: VerdictName
    seeds_needed: int | None
    data_sha256: str | None
    data_official: Literal["yes", "no", "unknown"] | None
    device: str | None
    seconds_per_seed: float | None
    commit: str | None
    measured_on: str | None
    confidence: float
    looks: str
    wilson_low_percent: float | None
    wilson_high_percent: float | None
    params_audit: str | None
    stale: Literal["yes", ""]
    reason: str
    ledger_sha256: str
    metric: Metric | None = None
    rule_before: str | None = None

    @property
    def marks(self) -> str:
        """What a reader must see beside the verdict, such as " (stale)"."""
        return " (stale)" * bool(self.stale) + " (rule changed)" * bool(self.rule_before)


# ---------------------------------------------------------------- the table itself


def build(rows: Mapping[str, Row], *, records: Records, specs: Specs | None = None) -> tuple[TableRow, ...]:
    """A line for each row of the ledger, in its order. 'not measured': without records, or if the spec is another's."""
    specs = specs or {}
    return tuple(_table_row(row, records=records.get(name, ()), spec=specs.get(name)) for name, row in rows.items())


def _table_row(row: Row, *, records: Sequence[RunRecord], spec: Mapping[str, Any] | None) -> TableRow:
    verdict = verdict_of(row, records=records, spec=spec)
    if other_configs(row, spec):
        records = ()
    return TableRow(
        row=row.name,
        model=row.model,
        data=row.data,
        mode=row.mode,
        published_percent=row.published.percent,
        published_params=row.published.num_params_text,
        margin_pp=row.rule.margin_pp,
        confidence=row.rule.confidence,
        looks=" ".join(map(str, row.rule.looks)),
        ledger_sha256=ledger.row_sha256(row),
        **asdict(verdict),
        metric=None if row.metric == "accuracy_percent" else row.metric,
        **_provenance(row, verdict=verdict, records=records),
    )


def verdict_of(row: Row, *, records: Sequence[RunRecord], spec: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on these records of the row, which share one data set, device kind and `spec`, asdict(RunSpec)."""
    if not records:
        return Verdict(verdict="not measured", reason="there is no record of this row yet", num_seeds=0)
    if other := other_configs(row, spec):
        return Verdict(
            verdict="not measured", reason=f"the record is of another run than the ledger's: {other}", num_seeds=0
        )
    if why := metrics.missing(row, records=records):
        return Verdict(verdict="not measured", reason=why, num_seeds=0)
    evidence = metrics.evidence(records, metric=row.metric, num_test=records[0].num_test)
    verdict = judge(evidence, published_percent=row.published.percent, rule=row.rule)
    if before := _rule_before(row, judged=_judged(row, verdict=verdict, records=records)):
        changed = f"the ledger changed after a number was seen: {before} then, {row.rule_text} now"
        return replace(verdict, reason=f"{verdict.reason}; {changed}")
    return verdict


def other_configs(row: Row, spec: Mapping[str, Any] | None) -> str:
    """Where a record's spec names other configs than the row, such as "recipe article, not keras_mlp"; else ""."""
    if spec is None:
        return ""
    there = {key: spec[key]["name"] for key in ("model", "data", "recipe")} | {"control": spec.get("control", "none")}
    if "numpy" in (
        engine := spec.get("engine", "serial"),
        row.engine,
    ):  # torch's may train seeds together (TOGETHER=10)
        there["engine"] = engine
    named = ((key, name, getattr(row, key)) for key, name in there.items())
    return ", ".join(f"{key} {name}, not {own}" for key, name, own in named if name != own)


def _judged(row: Row, *, verdict: Verdict, records: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """The records of the judged seeds, or of all seeds where none was judged."""
    first = row.rule.first_seed
    return [record for record in records if first <= record.seed < first + verdict.num_seeds] or records


def _rule_before(row: Row, *, judged: Sequence[RunRecord]) -> str | None:
    """The claim and rule of the first of these records that has others than the ledger's."""
    own = (record.rule for record in judged if record.seed >= row.rule.first_seed)
    return next((rule for rule in own if rule not in (None, row.rule_text)), None)


def _provenance(row: Row, *, verdict: Verdict, records: Sequence[RunRecord]) -> dict[str, Any]:
    """The provenance columns, from the judged records."""
    judged = _judged(row, verdict=verdict, records=records)
    if not judged:
        return {**dict.fromkeys(_WITHOUT_RECORD), "stale": "", "rule_before": None}
    last = max(judged, key=lambda record: (record.finished_at, record.seed))
    low, high = _wilson(row, verdict=verdict, num_test=last.num_test)
    return {
        **{name: getattr(last, name) for name in ("num_params", "data_sha256", "data_official", "device")},
        "seconds_per_seed": sum(record.wall_seconds for record in judged) / len(judged),
        "commit": last.commit + "-dirty" * any(record.dirty for record in judged),
        "measured_on": last.finished_at[:10],
        "wilson_low_percent": low,
        "wilson_high_percent": high,
        "params_audit": _audit(row.published, num_params=last.num_params),
        "stale": "yes" if last.training_version < TRAINING_VERSION else "",
        "rule_before": _rule_before(row, judged=judged),
    }


def _audit(published: Published, *, num_params: int) -> str:
    """Such as "exact", or "differs: " and why."""
    audit = audit_params(num_params, published_text=published.num_params_text)
    return f"{audit}: {published.num_params_note}" if audit == "differs" and published.num_params_note else audit


def _wilson(row: Row, *, verdict: Verdict, num_test: int) -> tuple[float | None, float | None]:
    if verdict.mean_percent is None or not metrics.METRICS[row.metric].is_share:
        return None, None
    num_correct = min(verdict.mean_percent * num_test / 100, num_test)  # a mean of 100 % may round above num_test
    return wilson_interval(num_correct, num_test=num_test, confidence=row.rule.confidence)


def to_csv(table: Sequence[TableRow]) -> bytes:
    return encode_csv(table, cls=TableRow)


def to_json(table: Sequence[TableRow]) -> bytes:
    """What `dvc metrics show` lists: each measured row's numbers, by its name."""
    names = ("published_percent", "mean_percent", "sd_percent", "num_seeds", "verdict")
    measured = {line.row: {name: getattr(line, name) for name in names} for line in table if line.num_seeds}
    return encode_json(measured)


# ---------------------------------------------------------------- for a reader


def to_markdown(
    table: Sequence[TableRow], *, rows: Mapping[str, Row], records: Records, findings: Findings | None = None
) -> str:
    """results/table.md: a line for each row; below, for each row, the reason, every seed and warnings."""
    findings = findings or {}
    columns = ("row", "published %", "measured %", "data", "interval %", "verdict", "parameters", "device")
    lines = [
        f"<!-- Generated by `{COMMAND}` from conf/benchmark.yaml and results/runs; do not edit. -->",
        "",
        *_grid(columns, table=table, rows=rows),
        "",
        "Measured: mean ± standard deviation over the n seeds that were judged, last epoch, test split.",
        "",
    ]
    for line in table:
        own, found = records.get(line.row, ()), findings.get(line.row, ())
        notes = _notes(line, row=rows[line.row], records=own, findings=found)
        lines.append(f"- **{line.row}**: {'; '.join(notes)}")
    return "\n".join(lines) + "\n"


def short_markdown(table: Sequence[TableRow], *, rows: Mapping[str, Row]) -> str:
    """The table's first columns and the verdict."""
    return "\n".join(_grid(("row", "published %", "measured %", "data", "verdict"), table=table, rows=rows))


def readme_block(table: Sequence[TableRow], *, rows: Mapping[str, Row]) -> str:
    """The short table between its two markers, markers included; no newline at the end."""
    begin = f"<!-- table:begin (generated by `{COMMAND}`; do not edit) -->"
    return f"{begin}\n{short_markdown(table, rows=rows)}\n<!-- table:end -->"


def update_readme(text: str, *, block: str) -> str:
    """`text` with its one marked block replaced. InputError: it has no such block, or more than one."""
    if (found := len(_BLOCK.findall(text))) != 1:
        raise InputError(
            "README: expected one line <!-- table:begin -->, later one line <!-- table:end -->, "
            f"to put the table between; found {found} such pairs"
        )
    return _BLOCK.sub(lambda _: block, text)


def _grid(columns: Sequence[str], *, table: Sequence[TableRow], rows: Mapping[str, Row]) -> list[str]:
    """These columns of `cells` as a markdown table."""
    lines = [cells(line, row=rows[line.row]) for line in table]
    texts = [columns, ["---"] * len(columns), *([line[column] for column in columns] for line in lines)]
    return ["| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in texts]


def cells(line: TableRow, *, row: Row) -> dict[str, str]:
    """What a reader sees of a row, by column; a missing value is an empty cell."""
    official = line.data_official in (None, "yes")
    low, high = line.interval_low_percent, line.interval_high_percent
    digits = metrics.num_decimals(row)
    audit = (line.params_audit or "").partition(":")[0]
    counted = "" if line.num_params is None else f"{line.num_params:,} counted: {audit}"
    printed = line.published_params and f"{line.published_params} published"
    return {
        "row": line.row,
        "published %": f"{line.published_percent:.{row.published.num_digits}f}{metrics.unit(row)}",
        "measured %": _measured(line, digits=digits),
        "data": line.data if official else f"{line.data} (data_official: {line.data_official})",
        "interval %": "" if low is None else f"{low:.{digits}f} to {high:.{digits}f}",
        "verdict": line.verdict + line.marks,
        "parameters": ", ".join(filter(None, (printed, counted))),
        "device": line.device or "",
    }


def _measured(line: TableRow, *, digits: int) -> str:
    """Such as "97.91 ± 0.16 (n = 160)"; "" without a measurement."""
    if line.mean_percent is None:
        return ""
    sd = "" if line.sd_percent is None else f" ± {line.sd_percent:.{digits}f}"
    return f"{line.mean_percent:.{digits}f}{sd} (n = {line.num_seeds})"


def _notes(line: TableRow, *, row: Row, records: Sequence[RunRecord], findings: Sequence[FoundPoint]) -> Iterator[str]:
    yield f"{line.verdict}, {line.reason}"
    if row.metric == "error_percent" and line.verdict in ("exceeds", "falls short"):
        yield "the numbers are error rates, so that above the published one is worse, and below it better"
    if line.data_official in _NOT_OFFICIAL:
        yield f"{_NOT_OFFICIAL[line.data_official]} ({line.data_sha256})"
    if why := (line.params_audit or "").partition(": ")[2]:
        yield f"the number of parameters differs: {why}"
    if line.verdict == "not measured":
        yield f"`{COMMAND} ROWS={line.row}` measures it, and says which files it wants where they are missing"
    if line.stale:
        yield "stale: the training code has changed since, so that it may give other numbers today"
    for found, points in by_finding(findings):
        yield _found(found, points=points)
    if records and line.measured_on:
        differ = len({record.epochs for record in records if record.accuracy_percent is not None}) > 1
        seeds = (
            f"{record.seed}: {_percent(record, row=row)}" + f" ({record.epochs} epochs)" * differ for record in records
        )
        yield f"{line.seconds_per_seed:.1f} s a seed, the last on {line.measured_on}"
        yield f"every seed in percent{metrics.unit(row)}: {', '.join(seeds)}"


def _found(found: Finding, *, points: Sequence[FoundPoint]) -> str:
    """One finding of the doctor as a sentence: its seeds, the first seed's evidence, likely causes, and what to try."""
    seeds = ", ".join(str(point.seed) for point in points)
    said = f"the doctor found in seed {seeds}: {found.name} (seed {points[0].seed}: {found.evidence})"
    if not found.causes:
        return said
    return f"{said}, likely {' or '.join(found.causes)}, to try in this order: {', then '.join(found.next_steps)}"


def _percent(record: RunRecord, *, row: Row) -> str:
    if record.num_correct is None:
        return "diverged"
    percent = metrics.percent(record, metric=row.metric)
    return "unknown" if percent is None else f"{percent:.3f}"
