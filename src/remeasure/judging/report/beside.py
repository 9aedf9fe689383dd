"""What other commands wrote beside the table, in short: claims, negative controls, determinism, speed."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from remeasure.system.atomic import read_bytes

Line = dict[str, str]  # a table's line: column to cell
Short = Callable[[list[Line]], tuple[str, list[Line]]]  # a table's lines to the sentence, and the lines to show
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One file in a `sentence`. `lines`: those that a reader should see first, each with the same columns."""

    title: str
    command: str
    sentence: str
    lines: list[Line]
    path: str  # relative to results/


def read(results: Path) -> list[Beside]:
    """One for each of the files that is there. InputError: a file cannot be read."""
    found = []
    for name, (path, title, command, short) in READERS.items():
        if (results / name).exists():
            text = read_bytes(results / name).decode(errors="replace")
            lines = list(csv.DictReader(io.StringIO(text))) if name.endswith(".csv") else first_table(text)
            sentence, shown = short(lines)
            found.append(Beside(title=title, command=command, sentence=sentence, lines=shown, path=path))
    return found


def first_table(markdown: str) -> list[Line]:
    """The lines of the first table; a link is its text."""
    table = re.search(r"(^\|.*\n)+", markdown, re.MULTILINE)
    cells = [
        [_LINK.sub(r"\1", cell).replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (table[0].splitlines() if table else ())
    ]
    return [dict(zip(cells[0], line, strict=False)) for line in cells[2:]]


def _claims(lines: list[Line]) -> tuple[str, list[Line]]:
    plural = {"holds": "hold", "does not hold": "do not hold"}
    counts = Counter(plural.get(line["verdict"], f"are {line['verdict']}") for line in lines)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    open_or_false = [line for line in lines if line["verdict"] != "holds"]
    shown = [{"claim": line["claim"].partition(": ")[2], "verdict": line["verdict"]} for line in open_or_false]
    return f"Of {len(lines)} claims {said}.", shown


def _controls(lines: list[Line]) -> tuple[str, list[Line]]:
    passed = sum(line["verdict"] == "falls short" for line in lines)
    shown = [
        {
            "row": line["row"],
            "published %": f"{float(line['published_percent']):g}",
            "measured %": f"{float(line['mean_percent']):.2f}" if line["mean_percent"] else "",
            "verdict": line["verdict"],
        }
        for line in lines
    ]
    return f"{passed} of {len(lines)} rows with a fault on purpose fall short, as all must.", shown


def _determinism(lines: list[Line]) -> tuple[str, list[Line]]:
    promised = [line for line in lines if line["promised"] == "yes"]
    broken = [line for line in promised if line["seen"] != "identical"]
    held = f"{len(promised) - len(broken)} of {len(promised)}"
    return f"{held} repetitions are identical bit by bit, as all must.", broken


def _speed(lines: list[Line]) -> tuple[str, list[Line]]:
    missed = [line for line in lines if line["met"] == "MISSED"]
    shown = [{key: line[key] for key in ("part", "ratio", "measured", "target")} for line in missed]
    return f"{len(lines) - len(missed)} of {len(lines)} targets are met.", shown


# By the file that is read: the file that is linked, title, command, and what is said of its table.
READERS: Mapping[str, tuple[str, str, str, Short]] = {
    "claims.md": ("claims.md", "What the article claims beside its table", "make claims", _claims),
    "controls/table.csv": ("controls/report.html", "Negative controls", "make controls", _controls),
    "determinism.md": ("determinism.md", "Determinism", "make determinism", _determinism),
    "bench.md": ("bench.md", "Speed", "make bench", _speed),
}
