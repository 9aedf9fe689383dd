"""What a person reads on a terminal, through rich: the same words in a pipe, without colour and on a dumb terminal."""

import os
import textwrap
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

PIPE_COLUMNS = 200  # a pipe has no width: nothing is cut or folded for it
STYLES = {  # by verdict; each verdict differs in its words, too
    "reproduced": "green",
    "exceeds": "cyan",
    "falls short": "red",
    "undecided": "yellow",
    "not measured": "dim",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError; rich would end the process."""
        raise


def console(stream: TextIO, *, columns: int | None = None) -> Console:
    """A console that writes to `stream`; text is printed as it is, and NO_COLOR and TERM are obeyed.

    `columns`: its width, if not the terminal's.
    """
    if columns is None and not stream.isatty():
        columns = PIPE_COLUMNS
    return _Console(file=stream, width=columns, highlight=False, markup=False, emoji=False)


def is_live(stream: TextIO) -> bool:
    """Whether lines on it can be drawn again."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def style_of(verdict: str) -> str:
    """The rich style of a verdict's name; "" for any other text."""
    return STYLES.get(verdict, "")


def grid(*columns: str) -> Table:
    """A table without lines and with these headings, whose cells are folded, not cut, where they do not fit."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


class Fitting:
    """The first of some renderings that is no wider than the terminal, else the last."""

    def __init__(self, *choices: RenderableType) -> None:
        self.choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(width=10_000)
        widths = [Measurement.get(console, endless, choice).maximum for choice in self.choices]
        yield next(
            (each for each, width in zip(self.choices, widths, strict=True) if width <= options.max_width),
            self.choices[-1],
        )


def show(content: RenderableType, *, on: Console) -> None:
    """Print it. The lines of a text break between words on a terminal, and nowhere in a pipe."""
    if isinstance(content, str) and on.file.isatty():
        lines = content.splitlines()
        content = "\n".join(
            textwrap.fill(line, on.width, break_long_words=False, break_on_hyphens=False) for line in lines
        )
    on.print(content, soft_wrap=isinstance(content, str))


def rendered(content: RenderableType, *, on: Console) -> str:
    """What this console would print, without spaces at the ends of lines."""
    with on.capture() as capture:
        show(content, on=on)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
