"""results/report.html: the table with a figure, as one self-contained page. Computed from ledger and results/ alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remeasure.judging.records import by_finding
from remeasure.spec.claim import Row
from remeasure.spec.record import FoundPoint, RunRecord

if TYPE_CHECKING:
    from remeasure.judging.table import TableRow

TEMPLATE = Path(__file__).with_name("report.html")
PLANE = 620.0  # width of the figure, in its own units; HEIGHT: of one row of it
HEIGHT = 30.0
NUM_TICKS = 8  # at most


def to_html(
    table: "Sequence[TableRow]",
    *,
    rows: Mapping[str, Row],
    records: Mapping[str, Sequence[RunRecord]],
    findings: Mapping[str, Sequence[FoundPoint]],
) -> str:
    """The page as HTML. `records` and `findings`: by row; a row without any may be left out."""
    from jinja2 import Environment, StrictUndefined  # slow to import

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["style"] = lambda verdict: verdict.replace(" ", "-")  # its CSS class
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    counts = Counter(line.verdict for line in table)
    lines = [
        {
            "cells": line,
            "row": rows[line.row],
            "published": f"{line.published_percent:.{rows[line.row].published.num_digits}f}",
            "seeds": records.get(line.row, ()),
            "found": list(by_finding(findings.get(line.row, ()))),
        }
        for line in table
    ]
    return template.render(lines=lines, counts=counts, figure=figure(table, records=records)) + "\n"


def figure(table: "Sequence[TableRow]", *, records: Mapping[str, Sequence[RunRecord]]) -> dict[str, Any]:
    """Positions in the figure, `PLANE` wide with `HEIGHT` for each measured row; x is measured minus published, in
    percentage points.
    """
    gaps = {line.row: _gaps(line, records=records.get(line.row, ())) for line in table if line.mean_percent is not None}
    values = [value for gap in gaps.values() for value in (*gap["margin"], *gap["interval"], *gap["seeds"])]
    low, high = min(values, default=-1.0), max(values, default=1.0)
    pad = 0.03 * (high - low)

    def x(value: float) -> str:
        return f"{PLANE * (value - low + pad) / (high - low + 2 * pad):.1f}"

    marks = [
        {
            "row": line.row,
            "verdict": line.verdict,
            "y": f"{HEIGHT * (number + 0.5):.1f}",
            "gap": f"{gaps[line.row]['mean']:+.2f}",
            "mean": x(gaps[line.row]["mean"]),
            **{key: [x(value) for value in gaps[line.row][key]] for key in ("margin", "interval", "seeds")},
        }
        for number, line in enumerate(line for line in table if line.row in gaps)
    ]
    ticks = [{"x": x(value), "label": f"{value:+g}" if value else "published"} for value in _ticks(low, high)]
    return {"marks": marks, "ticks": ticks, "width": f"{PLANE:.0f}", "height": f"{HEIGHT * len(marks):.0f}"}


def _gaps(line: "TableRow", *, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Mean, margin, interval and seeds minus the published number, in percentage points."""
    published, (low, high) = line.published_percent, (line.interval_low_percent, line.interval_high_percent)
    assert line.mean_percent is not None
    return {
        "mean": line.mean_percent - published,
        "margin": (-line.margin_pp, line.margin_pp),
        "interval": () if low is None or high is None else (low - published, high - published),
        "seeds": [each.accuracy_percent - published for each in records if each.accuracy_percent is not None],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, including 0 if it lies between them: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / NUM_TICKS))
    step = next(size * power for size in (1, 2, 5, 10) if (high - low) / (size * power) <= NUM_TICKS)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
