"""The table on a terminal: as many columns as its width has room for, and why a row is not reproduced."""

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remeasure.judging.metrics import unit
from remeasure.judging.table import TableRow, measured_text
from remeasure.spec.claim import Row
from remeasure.system.console import Fitting, grid, style_of

NAME_COLUMNS = 20  # of a row's name where the terminal is narrow
COLUMNS = ("row", "published %", "measured %", "verdict", "data", "number")


def shown(table: Sequence[TableRow], *, rows: Mapping[str, Row], origins: Mapping[str, str]) -> RenderableType:
    """The table, and below it the reasons of the rows that are not reproduced, or by another rule than first.

    `origins`: by row, where its number comes from, such as "measured here" or "committed record".
    """
    cells = [_cells(line, row=rows[line.row], origin=origins.get(line.row, "no record")) for line in table]
    reasons = [Text(f"{line.row}: {line.reason}") for line in table if line.verdict != "reproduced" or line.rule_before]
    fitting = Fitting(_grid(cells, columns=COLUMNS), _grid(cells, columns=COLUMNS[:4]), _narrow(cells))
    return Group(fitting, *([Text(), *reasons] if reasons else ()))


def _cells(line: TableRow, *, row: Row, origin: str) -> tuple[str, ...]:
    official = line.data_official in (None, "yes")
    return (
        line.row,
        f"{line.published_percent:.{row.published.num_digits}f}{unit(row)}",
        measured_text(line) or "-",
        line.verdict + line.marks,
        line.data if official else f"{line.data} (data_official: {line.data_official})",
        origin,
    )


def _grid(cells: Sequence[Sequence[str]], *, columns: Sequence[str]) -> Table:
    """The table with these columns, the first ones of its cells."""
    table = grid(*columns)
    for line in cells:
        name, published, measured, verdict, *rest = line[: len(columns)]
        table.add_row(name, published, measured, Text(verdict, style_of(verdict.partition(" (")[0])), *rest)
    return table


def _narrow(cells: Sequence[Sequence[str]]) -> Table:
    """Names and measured values on two lines where they are long."""
    lines = [
        ("\n".join(textwrap.wrap(name, NAME_COLUMNS)), published, measured.replace(" (", "\n("), verdict)
        for name, published, measured, verdict, *_ in cells
    ]
    return _grid(lines, columns=("row", "claim %", "measured %", "verdict"))
