"""The table on a terminal: as many columns as its width has room for, and why a row is not reproduced."""

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remeasure.judging.table import TableRow, cells
from remeasure.spec.claim import Row
from remeasure.system.console import Fitting, grid, style_of

NAME_COLUMNS = 20  # of a row's name where the terminal is narrow
COLUMNS = ("row", "published %", "measured %", "verdict", "data", "number")


def shown(table: Sequence[TableRow], *, rows: Mapping[str, Row], origins: Mapping[str, str]) -> RenderableType:
    """The table, and below it the reasons of the rows that are not reproduced, or by another rule than first.

    `origins`: by row, where its number comes from, such as "measured here" or "committed record".
    """
    seen = (cells(line, row=rows[line.row]) for line in table)
    lines = [
        {**line, "measured %": line["measured %"] or "-", "number": origins.get(line["row"], "no record")}
        for line in seen
    ]
    reasons = [Text(f"{line.row}: {line.reason}") for line in table if line.verdict != "reproduced" or line.rule_before]
    fitting = Fitting(_grid(lines, columns=COLUMNS), _grid(lines, columns=COLUMNS[:4]), _narrow(lines))
    return Group(fitting, *([Text(), *reasons] if reasons else ()))


def _grid(lines: Sequence[Mapping[str, str]], *, columns: Sequence[str]) -> Table:
    """The table with these columns of its lines."""
    table = grid(*columns)
    for line in lines:
        verdict = Text(line["verdict"], style_of(line["verdict"].partition(" (")[0]))
        table.add_row(*(verdict if column == "verdict" else line[column] for column in columns))
    return table


def _narrow(lines: Sequence[Mapping[str, str]]) -> Table:
    """Names and measured values on two lines where they are long."""
    folded = [
        {
            **line,
            "row": "\n".join(textwrap.wrap(line["row"], NAME_COLUMNS)),
            "claim %": line["published %"],
            "measured %": line["measured %"].replace(" (", "\n("),
        }
        for line in lines
    ]
    return _grid(folded, columns=("row", "claim %", "measured %", "verdict"))
