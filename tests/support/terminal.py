"""What a terminal shows after some output: enough of one for what this project writes."""

import re
from io import StringIO

TOKEN = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|(.)", re.DOTALL)


def screen(output: str, *, columns: int) -> list[str]:
    """The lines on an endless screen, right-stripped, without those that are empty at its end."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for number, code, letter in TOKEN.findall(output):
        if code == "A":
            row = max(row - int(number or 1), 0)
        elif code == "K" and number == "2":
            lines[row] = []
        elif code == "m" or (code in "hl" and number == "?25"):  # colours; the cursor is shown or hidden
            continue
        elif code:
            raise ValueError(f"no such escape here: {number}{code}")
        elif letter == "\r":
            column = 0
        else:
            if letter == "\n" or column == columns:
                row += 1
            if letter != "\n":
                column %= columns
            while len(lines) <= row:
                lines.append([])
            if letter != "\n":
                lines[row] += [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = letter
                column += 1
    shown = ["".join(line).rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


class Terminal(StringIO):
    """A stream that says it is a terminal of 80 columns, and what it shows."""

    def isatty(self) -> bool:
        return True

    def shown(self, *, columns: int = 80) -> list[str]:
        return screen(self.getvalue().replace("\n", "\r\n"), columns=columns)
