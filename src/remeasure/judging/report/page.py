"""The page, from the table, the rows' evidence, and the test split where it is at hand. Its bytes follow from these.

What needs the labels or images of a data set stands in sections of its own, so that `verify` can compare the rest on a
machine without that data set. The last line is the SHA-256 of all lines before it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from remeasure.judging import metrics
from remeasure.judging.records import RowResults, by_finding
from remeasure.judging.report import analysis, figures, images
from remeasure.judging.report.analysis import TestSplit as TestSplit
from remeasure.judging.report.beside import Beside
from remeasure.spec.claim import Article, Row, VerdictName
from remeasure.system.formats import Array

if TYPE_CHECKING:
    from jinja2 import Template

    from remeasure.judging.table import TableRow

FOLDER = Path(__file__).parent
NUM_MISTAKES = 12
MOST_CLASSES = 20  # with more, the most frequent confusions are listed in place of the matrix
SYMBOLS: dict[VerdictName, str] = {
    "reproduced": "●",
    "exceeds": "▲",
    "falls short": "▼",
    "undecided": "◇",
    "not measured": "–",
}
_WHOLE = "the whole interval of the mean, or the one result of published weights,"
MEANING: dict[VerdictName, str] = {
    "reproduced": f"{_WHOLE} lies within the margin around the published number",
    "exceeds": f"{_WHOLE} lies above the margin",
    "falls short": f"{_WHOLE} lies below the margin",
    "undecided": "the interval crosses an end of the margin, or there is none: too few seeds, or one that diverged",
    "not measured": "there is no record yet, or none with the metric and the seeds that the row asks for",
}
_SECTION = re.compile(r'<section data-needs="([^"]*)">.*?</section>', re.DOTALL)


TestSplits = Callable[[str], TestSplit | None]


def to_html(
    table: "Sequence[TableRow]",
    *,
    rows: Mapping[str, Row],
    groups: Mapping[str, RowResults],
    article: Article | None = None,
    splits: TestSplits = lambda _: None,
    beside: Sequence[Beside] = (),
    files: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The page as HTML. `groups`: evidence by row, without the rows that have none.

    `splits`: by name of the data set, its test split, or None where it is not here. `files`: by name of the data set,
    the names of its files.
    """
    splits = cache(splits)
    names = article.names if article else {}
    titles = {name: f"{names.get(name, name)}{metrics.unit(row)}" for name, row in rows.items()}
    lines = [
        _line(cells, row=rows[cells.row], group=groups.get(cells.row), title=titles[cells.row], splits=splits)
        for cells in _article_first(table, rows=rows)
    ]
    gaps = tuple(gap for line in lines if (gap := _gap(line)))
    page = _template().render(
        article=article,
        lines=lines,
        verdicts=_by_verdict(lines),
        total=_totals(list(groups.values())),
        forest=[figures.forest(gaps, narrow=narrow) for narrow in (False, True)] if gaps else [],
        comparisons=list(_comparisons(lines, splits=splits)),
        titles=titles,
        beside=beside,
        files=files or {},
    )
    body = f"{page}\n"
    return body + _seal(body)


def _seal(body: str) -> str:
    return f"<!-- sha256 of all lines above: {hashlib.sha256(body.encode()).hexdigest()} -->\n"


def is_sealed(page: str) -> bool:
    """Whether the last line is the SHA-256 of those before it."""
    body = page[: page.removesuffix("\n").rfind("\n") + 1]
    return page == body + _seal(body)


def left_out(page: str) -> set[str]:
    """The data sets that were not there when the page was built, or are not the record's."""
    return {found[1] for found in _SECTION.finditer(page) if "<p>Left out:" in found[0]}


def without(page: str, *, data: Iterable[str]) -> str:
    """The page without seal and without the sections that need one of these data sets."""
    return _SECTION.sub(lambda found: "" if found[1] in data else found[0], page).rpartition("\n<!--")[0]


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # slow to import

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["style"] = lambda verdict: verdict.replace(" ", "-")  # its CSS class
    environment.filters["duration"] = duration
    environment.filters["p"] = lambda p: f"{p:.2g}" if p >= 1e-4 else "below 0.0001"
    environment.globals.update(symbols=SYMBOLS, meaning=MEANING)
    return environment.get_template("page.html.j2")


def duration(seconds: float) -> str:
    """Such as 31 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(timedelta(seconds=seconds) / timedelta(minutes=1))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# ---------------------------------------------------------------- what the template shows


def _article_first(table: "Sequence[TableRow]", *, rows: Mapping[str, Row]) -> "list[TableRow]":
    """The rows named <model>-<data>, which are the article's, before the variants."""
    return sorted(table, key=lambda line: line.row != f"{rows[line.row].model}-{rows[line.row].data}")


def _line(cells: "TableRow", *, row: Row, group: RowResults | None, title: str, splits: TestSplits) -> dict[str, Any]:
    """Everything about one row."""
    line = {
        "cells": cells,
        "row": row,
        "title": title,
        "published": f"{cells.published_percent:.{row.published.num_digits}f}",
        "digits": metrics.num_decimals(row),
        "variant": cells.row != f"{row.model}-{row.data}",
        "group": group,
        "found": [],
    }
    if group is None:
        return line
    shape = tuple(group.spec["data"].get("image_shape", ()))
    return {
        **line,
        "found": list(by_finding(group.findings)),
        "as_accuracy": (published_percent := _as_accuracy(row)),
        "curve": figures.curve(
            group.curves, published_percent=published_percent, margin_pp=cells.margin_pp, row=cells.row
        ),
        "seeds": [(record, metrics.percent(record, metric=row.metric)) for record in group.records],
        "filters": images.filter_sheet(group.filters, image_shape=shape),
        "environment": next(iter(group.environments.values())),
        "seen": _seen(group, row=row, splits=splits) if len(group.seeds) else None,
    }


def _as_accuracy(row: Row) -> float | None:
    """The published number as a line among accuracies; None: it cannot be one."""
    published = row.published
    return 100 - published.error_percent if published.error_percent is not None else published.accuracy_percent


def _seen(group: RowResults, *, row: Row, splits: TestSplits) -> dict[str, Any]:
    """What needs the test split, or why it is left out."""
    split = splits(row.data)
    if split is None:
        return {"missing": "were not here when this page was built"}
    if not analysis.fits(group, split.labels):
        return {"missing": "do not give the recorded accuracies"}
    num_classes = int(group.spec["data"]["num_classes"])
    classes = split.classes or tuple(str(number) for number in range(num_classes))
    matrix = analysis.confusion(group.predicted, labels=split.labels, num_classes=num_classes)
    calibrated = analysis.calibration(group.predicted, confidence=group.confidence, labels=split.labels)
    mistakes = analysis.most_confidently_wrong(
        group.predicted, confidence=group.confidence, labels=split.labels, num=NUM_MISTAKES
    )
    pictures = split.images
    return {
        "missing": "",
        "classes": classes,
        "matrix": list(_matrix(matrix)) if num_classes <= MOST_CLASSES else [],
        "confused": list(_confused(matrix)),
        "per_class": _per_class(matrix),
        "ece_percent": calibrated.ece_percent,
        "calibration": figures.calibration(calibrated.bins, row=row.name),
        "mistakes": [
            (each, None if pictures is None else images.test_image(pictures[each.index])) for each in mistakes
        ],
    }


def _matrix(matrix: Array) -> Iterator[list[tuple[str, int]]]:
    """Each cell as text with its shade: 0 (none, and on the diagonal) to 4 (the most frequent confusion)."""
    largest = max((matrix - np.diag(np.diag(matrix))).max(), 1e-9)
    for truth, counts in enumerate(matrix.tolist()):
        yield [
            (_count(count), 0 if answer == truth or count == 0 else 1 + min(int(4 * (count / largest) ** 0.5), 3))
            for answer, count in enumerate(counts)
        ]


def _count(count: float) -> str:
    return "" if count == 0 else f"{count:.0f}" if count >= 9.95 or count == int(count) else f"{count:.1f}"


def _confused(matrix: Array) -> Iterator[tuple[int, int, str]]:
    """The ten most frequent confusions: class, what it was taken for, and how often."""
    wrong = matrix - np.diag(np.diag(matrix))
    for at in np.argsort(-wrong, axis=None, kind="stable")[:10]:
        truth, answer = divmod(int(at), len(matrix))
        if wrong[truth, answer] > 0:
            yield truth, answer, _count(wrong[truth, answer])


def _per_class(matrix: Array) -> list[tuple[int, float]]:
    """Class and accuracy in percent; of many classes, the ten lowest."""
    accuracy = 100 * np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1e-9)
    shown = range(len(matrix)) if len(matrix) <= MOST_CLASSES else np.argsort(accuracy, kind="stable")[:10].tolist()
    return [(number, float(accuracy[number])) for number in shown]


def _gap(line: Mapping[str, Any]) -> figures.Gap | None:
    """The row in the forest plot; None: it has no mean."""
    cells, group = line["cells"], line["group"]
    if cells.mean_percent is None or group is None:
        return None
    published, interval = cells.published_percent, (cells.interval_low_percent, cells.interval_high_percent)
    return figures.Gap(
        row=cells.row,
        title=line["title"],
        verdict=cells.verdict,
        mean=cells.mean_percent - published,
        margin=cells.margin_pp,
        interval=None if None in interval else (interval[0] - published, interval[1] - published),
        seeds=tuple(percent - published for _, percent in line["seeds"] if percent is not None),
    )


def _by_verdict(lines: Sequence[Mapping[str, Any]]) -> list[tuple[VerdictName, list[str]]]:
    """The verdicts that occur, each with the titles of its rows, and what a reader must see beside them."""
    marked = [(line["cells"].verdict, line["title"] + line["cells"].marks) for line in lines]
    found = ((name, [title for verdict, title in marked if verdict == name]) for name in SYMBOLS)
    return [(name, titles) for name, titles in found if titles]


def _totals(groups: Sequence[RowResults]) -> dict[str, Any]:
    """Cost, dates, machines and commits of all records; a run that several rows share is one."""
    every = (record for group in groups for record in group.records)
    records = list({(record.spec_sha256, record.seed, record.finished_at): record for record in every}.values())
    dates = sorted(record.finished_at[:10] for record in records)
    return {
        "num_seeds": len(records),
        "seconds": sum(record.wall_seconds for record in records),
        "dates": sorted({*dates[:1], *dates[-1:]}),
        "devices": sorted({record.device for record in records}),
        "commits": list(Counter(record.commit[:12] + "-dirty" * bool(record.dirty) for record in records)),
    }


def _comparisons(
    lines: Sequence[Mapping[str, Any]], *, splits: TestSplits
) -> Iterator[tuple[str, list[analysis.Pair]]]:
    """Each data set with two measured rows or more, and its pairs; no pairs where its labels are left out."""
    for data in dict.fromkeys(line["row"].data for line in lines):
        own = [line for line in lines if line["row"].data == data and line.get("seen")]
        if len(own) < 2:
            continue
        right: dict[str, Array] = {}
        if split := splits(data):
            groups = (line["group"] for line in own if not line["seen"]["missing"])
            right = {group.row: group.predicted[0] == split.labels for group in groups}
        yield data, list(analysis.pairs(right))
