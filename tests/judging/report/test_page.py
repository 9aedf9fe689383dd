"""What stands in the page, that text stays text, and which of it needs the test split."""

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.support.measured import LABELS, LEDGER, ROW, group

from remeasure.judging import ledger, table
from remeasure.judging.report import page
from remeasure.judging.report.page import TestSplit
from remeasure.spec.claim import Article, Row
from remeasure.spec.findings import ADVICE, CHECKLIST
from remeasure.spec.record import FoundPoint

VOID = {"meta", "link", "img"}
FOREIGN = "svg"  # matplotlib's own elements are closed by a slash
STYLE = (page.FOLDER / "style.css").read_text()
SPLIT = TestSplit(LABELS, np.zeros((40, 1, 4, 4), np.uint8), ("ring", "disc", "star", "bar"))


class Page(HTMLParser):
    """Every element is closed where it should be; the text outside figures, and the elements by name."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.open, self.text, self.elements = (
            source,
            list[str](),
            "",
            list[tuple[str, dict[str, str | None]]](),
        )
        self.feed(source)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert FOREIGN in self.open
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script", FOREIGN} & set(self.open):
            self.text += f" {data}"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    (tmp_path / "benchmark.yaml").write_text(LEDGER)
    return dict(ledger.read(tmp_path / "benchmark.yaml"))


def shown(
    rows: dict[str, Row],
    *,
    findings: tuple[FoundPoint, ...] = (),
    split: TestSplit | None = SPLIT,
    article: Article | None = None,
    names: tuple[str, ...] = (ROW,),
) -> Page:
    """The page where the rows `names` have the tiny row's evidence."""
    groups = {name: _renamed(name, findings=findings) for name in names}
    lines = table.build(rows, records={name: each.records for name, each in groups.items()})
    html = page.to_html(
        lines, rows=rows, groups=groups, splits=lambda _: split, article=article, files={"shapes": ["shapes.tar"]}
    )
    return Page(html)


def _renamed(name: str, *, findings: tuple[FoundPoint, ...]) -> object:
    whole = group(findings=findings)
    parts = {
        key: tuple(dataclasses.replace(each, row=name) for each in getattr(whole, key)) for key in ("records", "curves")
    }
    return dataclasses.replace(whole, row=name, **parts)


def test_a_row_without_a_record_stands_in_the_table_and_says_what_it_needs(rows: dict[str, Row]) -> None:
    found = shown(rows)
    assert {attrs["id"] for attrs in found.named("details") if "id" in attrs} == {ROW, "other-shapes"}
    assert "◆" not in found.text
    assert "● reproduced , 1 of 2 rows, where the whole interval" in found.text
    assert "– not measured , 1 of 2 rows, where there is no record yet, or none with the metric and" in found.text
    assert (
        "The data set shapes (official files, unpacked or as archives: shapes.tar) and 5 trainings at least, 20 at most"
        in found.text
    )
    assert shown(rows, names=()).named("svg") == []


def test_the_page_says_what_the_table_says(rows: dict[str, Row]) -> None:
    text = shown(rows).text.replace("\xa0", " ")
    for said in (
        "94.00 ± 1.37 n = 5",
        "interval [",
        "Nobody 1999, nowhere: 94.0 (unsourced)",
        "within 91 to 97 %, the published number ± 3.0;",
        "Judged after 5, 10, 20 seeds; the first look that decides stands.",
        "By this rule, each kind of wrong verdict has a probability of at most 5 %.",
        "61 counted, 61 published: exact",
        "make reproduce ROWS=tiny-shapes",
        "Python 3.11.9, two cores",
        "0: 95.00, 1: 92.50, 2: 95.00, 3: 92.50, 4: 95.00",
        "3.2 s a seed on Some CPU, two cores, 16 s for all 5, the last on 2026-11-22",
    ):
        assert said in text, said


def test_the_header_names_the_article_cost_date_machine_and_commit(rows: dict[str, Row]) -> None:
    article = Article(title="On Shapes", publisher="A Press", names={ROW: "Tiny net, shapes"})
    text = shown(rows, article=article).text
    assert "The article: On Shapes , A Press. ● reproduced" in text
    noted = shown(rows, article=dataclasses.replace(article, notes="It states each recipe.")).text
    assert "The article: On Shapes , A Press. It states each recipe. ● reproduced" in noted
    assert (
        "measured 2026-11-22 machine Some CPU, two cores total cost 16 s for 5 seeds, added up commits c0ffee" in text
    )
    assert "margin around the published number: Tiny net, shapes." in text


def test_runs_that_two_rows_share_are_added_up_once(rows: dict[str, Row]) -> None:
    assert "total cost 16 s for 5 seeds, added up" in shown(rows, names=(ROW, "other-shapes")).text


def test_a_later_rule_says_that_an_earlier_ones_probability_comes_on_top(rows: dict[str, Row]) -> None:
    """Seeds 0 to 4, measured under no other rule, are not counted: the row is not measured."""
    assert "comes on top" not in shown(rows).text
    later = dataclasses.replace(rows[ROW], rule=dataclasses.replace(rows[ROW].rule, first_seed=20))
    text = shown({**rows, ROW: later}).text
    assert "at most 5 %. If the row had an earlier rule, with seeds before these, its probability comes on top;" in text
    assert "2 of 2 rows, where there is no record yet, or none with the metric and the seeds that the row asks" in text


def test_a_number_of_parameters_that_is_not_stated_says_so(rows: dict[str, Row]) -> None:
    published = dataclasses.replace(rows[ROW].published, num_params_text=None)
    text = shown({ROW: dataclasses.replace(rows[ROW], published=published)}).text
    assert "94.0 % with an unstated number of parameters" in text
    assert "61 counted, published: not stated" in text


def test_an_error_rate_says_which_side_is_worse(rows: dict[str, Row]) -> None:
    said = "Of an error rate, what exceeds the published number is worse"
    published = dataclasses.replace(rows[ROW].published, accuracy_percent=None, error_percent=6.0)
    errors = dataclasses.replace(rows[ROW], metric="error_percent", published=published)
    assert said in shown({**rows, ROW: errors}).text
    assert said not in shown(rows).text


def test_published_weights_have_a_dot_without_training_and_as_many_digits_as_the_claim(rows: dict[str, Row]) -> None:
    published = dataclasses.replace(rows[ROW].published, accuracy_percent=94.0, num_digits=3)
    rule = dataclasses.replace(rows[ROW].rule, looks=(1,))
    rows[ROW] = dataclasses.replace(rows[ROW], mode="evaluate", published=published, rule=rule)
    text = shown(rows).text.replace("\xa0", " ")
    assert "95.000 n = 1" in text
    assert "Dot: test accuracy. Dashed: published, with its margin." in text
    assert "training accuracy" not in text


def test_the_articles_rows_come_before_the_variants(rows: dict[str, Row]) -> None:
    variant = dataclasses.replace(rows[ROW], name=f"{ROW}-wide")
    found = shown({variant.name: variant, **rows})
    assert [each["id"] for each in found.named("details") if "id" in each] == [ROW, "other-shapes", f"{ROW}-wide"]


def test_each_verdict_has_a_sign_of_its_own() -> None:
    assert len(set(page.SYMBOLS.values())) == len(page.SYMBOLS) == len(page.MEANING)


def test_a_finding_stands_open_with_each_seeds_evidence_causes_and_steps_in_order(rows: dict[str, Row]) -> None:
    points = tuple(FoundPoint(row=ROW, seed=seed, finding="dead units", evidence=f"{seed} of 4") for seed in (1, 3))
    found = shown(rows, findings=points)
    causes, steps = ADVICE["dead units"]
    told = ["dead units", "seed 1: 1 of 4", "seed 3: 3 of 4", *causes]
    told += [text for step, text in CHECKLIST.items() if step in steps]
    assert sorted(told, key=found.text.index) == told
    assert [attrs["id"] for attrs in found.named("details") if "open" in attrs] == [ROW]


def test_text_from_the_ledger_and_from_records_stays_text(rows: dict[str, Row]) -> None:
    planted = "<script>alert(1)</script>"
    published = dataclasses.replace(rows[ROW].published, notes=planted, selection='"><iframe src=x>')
    rows[ROW] = dataclasses.replace(rows[ROW], published=published)
    article = Article(title=planted, publisher=planted, names={ROW: f"{planted}$x^2$"}, notes=planted)
    found = shown(
        rows,
        findings=(FoundPoint(row=ROW, seed=1, finding=planted, evidence=planted),),
        article=article,
        split=TestSplit(LABELS, None, (planted,) * 4),
    )
    assert found.text.count(planted) > 8
    assert Counter(name for name, _ in found.elements)["script"] == 1
    assert not {"iframe", "img"} & {name for name, attrs in found.elements if attrs.get("class") != "sheet"}


def test_the_page_loads_nothing_from_elsewhere(rows: dict[str, Row]) -> None:
    found = shown(rows)
    links = [str(attrs[key]) for _, attrs in found.elements for key in ("href", "src", "xlink:href") if key in attrs]
    assert links
    assert not [link for link in links if "//" in link.partition("base64,")[0]]
    assert "@import" not in found.source
    assert set(re.findall(r"url\((.)", found.source)) <= {"#"}


def test_no_id_is_given_twice_but_to_the_same_thing(rows: dict[str, Row]) -> None:
    twins = shown(
        rows | {"other-shapes": dataclasses.replace(rows[ROW], name="other-shapes")}, names=(ROW, "other-shapes")
    )
    counts = Counter(attrs["id"] for _, attrs in twins.elements if "id" in attrs)
    assert [name for name, count in counts.items() if count > 1] == []


# ---------------------------------------------------------------- what needs the test split


def test_with_the_test_split_the_page_has_confusion_calibration_and_mistakes(rows: dict[str, Row]) -> None:
    """Items 0, 1 and 2 are wrong in 5, 5 and 2 of 5 seeds: taken for the next class."""
    text = shown(rows).text
    assert "accuracy ring 9 1 90.0 % disc 9 1 90.0 % star 9.6 0.4 96.0 % bar 10 100.0 %" in text
    assert "Expected calibration error, mean over the seeds:" in text
    assert "ring, taken for disc by 5 of 5, " in text
    assert "star, taken for bar by 2 of 5, " in text
    assert "Left out" not in text


def test_without_the_test_split_the_page_says_what_is_left_out(rows: dict[str, Row]) -> None:
    found = shown(rows, split=None)
    assert "Left out: this needs the test images and labels of shapes, which were not here when" in found.text
    other = shown(rows, split=TestSplit(np.roll(LABELS, 1)))
    assert "labels of shapes, which do not give the recorded accuracies." in other.text
    assert page.left_out(found.source) == page.left_out(other.source) == {"shapes"}
    assert page.left_out(shown(rows).source) == set()


def test_the_rest_of_the_page_is_the_same_with_and_without_the_test_split(rows: dict[str, Row]) -> None:
    with_split, without = (shown(rows, split=split).source for split in (SPLIT, None))
    assert with_split != without
    cut = page.without(with_split, data=["shapes"])
    assert cut == page.without(without, data=["shapes"])
    assert "Expected calibration error" not in cut
    assert page.without(with_split, data=["others"]) in with_split


def test_the_last_line_is_the_sha256_of_the_lines_before(rows: dict[str, Row]) -> None:
    source = shown(rows).source
    assert page.is_sealed(source)
    for changed in (source.replace("94.00", "94.01", 1), source + "\n", source[:-1], "", "\n"):
        assert not page.is_sealed(changed)


def test_two_rows_of_one_data_set_are_compared(rows: dict[str, Row]) -> None:
    twins = rows | {"other-shapes": dataclasses.replace(rows[ROW], name="other-shapes")}
    text = shown(twins, names=(ROW, "other-shapes")).text
    assert "shapes: 1 pairs, by the lowest seed of each row; McNemar" in text
    assert "tiny-shapes other-shapes 0 0 +0.00 1" in text
    assert "Two rows on the same test images" not in shown(rows).text


def test_many_classes_are_shown_by_the_most_frequent_confusions() -> None:
    matrix = np.diag(np.full(30, 9.0))
    matrix[3, 4], matrix[5, 6], matrix[3, 3] = 4, 1.5, 5
    assert list(page._confused(matrix)) == [(3, 4, "4"), (5, 6, "1.5")]
    assert page._per_class(matrix)[0] == (3, pytest.approx(500 / 9))
    assert len(page._per_class(matrix)) == 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (59, "59 s"), (61, "1 min"), (4427.8, "1 h 14 min"), (36000, "10 h 00 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text


# ---------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_a_contrast_of_4_5_to_its_ground(theme: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", STYLE.split("prefers-color-scheme: dark")[theme]))
    grounds = {"paper": [*map(str, page.SYMBOLS), "ink", "quiet"], **{f"heat{step}": ["ink"] for step in (1, 2, 3, 4)}}
    for ground, inks in grounds.items():
        for ink in inks:
            pair = sorted(luminance(colours[name.replace(" ", "-")]) for name in (ground, ink))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ground, ink)
