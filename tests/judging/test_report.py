"""The report: where things lie in its figure, by hand; what stands in the page, and that text stays text."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.support.measured import LEDGER, ROW, group

from remeasure.judging import ledger, report, table
from remeasure.spec.claim import Row
from remeasure.spec.findings import ADVICE, CHECKLIST
from remeasure.spec.record import FoundPoint

VOID = {"meta", "line", "rect", "circle"}  # HTML's and, closed by a slash, SVG's


class Page(HTMLParser):
    """Every element is closed where it should be; the text, and the elements by name."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.text, self.elements = list[str](), "", list[tuple[str, dict[str, str | None]]]()
        self.feed(source)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style"} & set(self.open):
            self.text += data

    def named(self, tag: str, *, style: str = "") -> list[dict[str, str | None]]:
        found = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in found if not style or style in str(attrs.get("class")).split()]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    (tmp_path / "benchmark.yaml").write_text(LEDGER)
    return dict(ledger.read(tmp_path / "benchmark.yaml"))


def page(rows: dict[str, Row], *, findings: tuple[FoundPoint, ...] = (), measured: bool = True) -> Page:
    records = {ROW: group().records} if measured else {}
    lines = table.build(rows, records=records)
    return Page(report.to_html(lines, rows=rows, records=records, findings={ROW: findings}))


def test_the_figure_shows_margin_interval_mean_and_every_seed_where_they_lie(rows: dict[str, Row]) -> None:
    """Published 94.0 ± 3; seeds at 95, 92.5, 95, 92.5, 95, so the mean is at 94 and the margin spans the figure."""
    (line, _) = table.build(rows, records={ROW: group().records})
    shown = page(rows)
    scale = report.PLANE / (6 * 1.06)
    middle = report.PLANE / 2
    (margin,), (mean,) = shown.named("rect", style="margin"), shown.named("circle", style="reproduced")
    assert float(margin["x"] or 0) == pytest.approx(middle - 3 * scale, abs=0.1)
    assert float(margin["width"] or 0) == pytest.approx(6 * scale, abs=0.2)
    assert float(mean["cx"] or 0) == pytest.approx(middle, abs=0.1)
    seeds = [float(seed["x1"] or 0) for seed in shown.named("line", style="seed")]
    assert seeds == pytest.approx([middle + gap * scale for gap in (1, -1.5, 1, -1.5, 1)], abs=0.1)
    (interval,) = shown.named("line", style="reproduced")
    assert line.interval_low_percent is not None
    assert float(interval["x1"] or 0) == pytest.approx(middle + (line.interval_low_percent - 94) * scale, abs=0.1)


def test_a_row_without_a_record_stands_in_the_table_and_not_in_the_figure(rows: dict[str, Row]) -> None:
    shown = page(rows)
    assert len(shown.named("circle")) == 1
    assert {attrs["id"] for attrs in shown.named("details")} == {ROW, "other-shapes"}
    assert "2 rows: 1 reproduced, 1 not measured" in shown.text
    assert page(rows, measured=False).named("svg") == []


def test_the_page_says_what_the_table_says(rows: dict[str, Row]) -> None:
    text = page(rows).text
    for said in ("94.00 ± 1.37 n = 5", "interval [", "Nobody 1999, nowhere: 94.0 (unsourced)", "looks 5, 10, 20"):
        assert said in text, said
    assert "0: 95.00, 1: 92.50, 2: 95.00, 3: 92.50, 4: 95.00" in text.replace("\xa0", " ")


def test_a_finding_stands_open_with_each_seeds_evidence_causes_and_steps_in_order(rows: dict[str, Row]) -> None:
    points = tuple(FoundPoint(row=ROW, seed=seed, finding="dead units", evidence=f"{seed} of 4") for seed in (1, 3))
    shown = page(rows, findings=points)
    causes, steps = ADVICE["dead units"]
    told = ["dead units", "seed 1: 1 of 4", "seed 3: 3 of 4", *causes]
    told += [text for step, text in CHECKLIST.items() if step in steps]
    assert sorted(told, key=shown.text.index) == told
    assert [attrs["id"] for attrs in shown.named("details") if "open" in attrs] == [ROW]


def test_text_from_the_ledger_and_from_records_stays_text(rows: dict[str, Row]) -> None:
    planted = "<script>alert(1)</script>"
    published = dataclasses.replace(rows[ROW].published, notes=planted, selection='"><img src=x>')
    rows[ROW] = dataclasses.replace(rows[ROW], published=published)
    shown = page(rows, findings=(FoundPoint(row=ROW, seed=1, finding=planted, evidence=planted),))
    assert shown.text.count(planted) == 3
    assert not {"script", "img"} & {name for name, _ in shown.elements}


def test_the_page_loads_nothing_from_elsewhere(rows: dict[str, Row]) -> None:
    found = page(rows)
    links = [str(attrs[key]) for _, attrs in found.elements for key in ("href", "src") if key in attrs]
    assert links
    assert not [link for link in links if "//" in link]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.49, 0.67, [-1.0, -0.5, 0.0, 0.5]),
        (-0.05, 0.05, [-0.04, -0.02, 0.0, 0.02, 0.04]),
        (-7.9, 8, [-6, -4, -2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert report._ticks(low, high) == expected
