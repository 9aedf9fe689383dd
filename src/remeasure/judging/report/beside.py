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
    for path, short in READERS.items():
        if (results / path).exists():
            text = read_bytes(results / path).decode(errors="replace")
            lines = list(csv.DictReader(io.StringIO(text))) if path.endswith(".csv") else first_table(text)
            found.append(short(lines, path))
    return found


def first_table(markdown: str) -> list[Line]:
    """The lines of the first table; a link is its text."""
    table = re.search(r"(^\|.*\n)+", markdown, re.MULTILINE)
    cells = [
        [_LINK.sub(r"\1", cell).replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (table[0].splitlines() if table else ())
    ]
    return [dict(zip(cells[0], line, strict=False)) for line in cells[2:]]


def _claims(lines: list[Line], path: str) -> Beside:
    plural = {"holds": "hold", "does not hold": "do not hold"}
    counts = Counter(plural.get(line["verdict"], f"are {line['verdict']}") for line in lines)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    open_or_false = [line for line in lines if line["verdict"] != "holds"]
    return Beside(
        title="What the article claims beside its table",
        command="make claims",
        sentence=f"Of {len(lines)} claims {said}.",
        lines=[{"claim": line["claim"].partition(": ")[2], "verdict": line["verdict"]} for line in open_or_false],
        path=path,
    )


def _controls(lines: list[Line], path: str) -> Beside:
    passed = sum(line["verdict"] == "falls short" for line in lines)
    return Beside(
        title="Negative controls",
        command="make controls",
        sentence=f"{passed} of {len(lines)} rows with a fault on purpose fall short, as all must.",
        lines=[
            {
                "row": line["row"],
                "published %": f"{float(line['published_percent']):g}",
                "measured %": f"{float(line['mean_percent']):.2f}" if line["mean_percent"] else "",
                "verdict": line["verdict"],
            }
            for line in lines
        ],
        path=path.replace("table.csv", "report.html"),
    )


def _determinism(lines: list[Line], path: str) -> Beside:
    promised = [line for line in lines if line["promised"] == "yes"]
    broken = [line for line in promised if line["seen"] != "identical"]
    return Beside(
        title="Determinism",
        command="make determinism",
        sentence=f"{len(promised) - len(broken)} of {len(promised)} repetitions are identical bit by bit, as all must.",
        lines=broken,
        path=path,
    )


def _speed(lines: list[Line], path: str) -> Beside:
    missed = [line for line in lines if line["met"] == "MISSED"]
    return Beside(
        title="Speed",
        command="make bench",
        sentence=f"{len(lines) - len(missed)} of {len(lines)} targets are met.",
        lines=[{key: line[key] for key in ("part", "ratio", "measured", "target")} for line in missed],
        path=path,
    )


READERS: Mapping[str, Callable[[list[Line], str], Beside]] = {
    "claims.md": _claims,
    "controls/table.csv": _controls,
    "determinism.md": _determinism,
    "bench.md": _speed,
}
