"""Where things lie in the figures, by hand; and that a figure's bytes follow from its arguments."""

import dataclasses
import re

import pytest
from tests.support.measured import ROW, group

from remeasure.judging.report import figures
from remeasure.judging.report.figures import Gap

GAP = Gap(
    row="a-b", title="A & b", verdict="reproduced", mean=0.5, margin=1.0, interval=(0.25, 0.75), seeds=(-1.5, 0.5)
)
PLANE, LEFT = 960 - 280 - 70, 280  # of the wide forest plot: from -3 to 3 margins


def marks(svg: str, colour: str) -> list[float]:
    """x of each marker in this colour."""
    uses = re.findall(r"<use [^>]*/>", svg)
    return [float(found[1]) for use in uses if f"var(--{colour})" in use and (found := re.search(r' x="([^"]+)"', use))]


def test_the_forest_shows_mean_and_seeds_where_they_lie() -> None:
    svg = figures.forest((GAP,), narrow=False)
    assert marks(svg, "reproduced") == pytest.approx([LEFT + PLANE * 3.5 / 6], abs=0.01)
    assert marks(svg, "seed") == pytest.approx([LEFT + PLANE * at / 6 for at in (1.5, 3.5)], abs=0.01)
    assert "+0.50" in svg
    assert "A &amp; b" in svg
    assert 'href="#a-b"' in svg


@pytest.mark.parametrize(("mean", "edge"), [(-77.0, 0), (4.0, PLANE)])
def test_a_mean_beyond_the_edge_is_an_arrow_at_the_edge_with_its_number(mean: float, edge: float) -> None:
    far = Gap(row="c-d", title="c", verdict="falls short", mean=mean, margin=1.0, interval=(mean, mean), seeds=(mean,))
    svg = figures.forest((GAP, far), narrow=False)
    assert marks(svg, "falls-short") == pytest.approx([LEFT + edge])
    assert f"{mean:+.2f}" in svg
    assert len(marks(svg, "seed")) == 2  # none of the far row's


@pytest.mark.parametrize(
    ("mean", "interval", "bar", "arrows"),
    [
        (2.5, (1.0, 4.0), (4.0, 6.0), [5.5, 6.0]),  # to the upper edge, where an arrow is, beside the mean's marker
        (0.0, (-9.0, 9.0), (0.0, 6.0), [0.0, 3.0, 6.0]),
        (4.0, (2.0, 6.0), (5.0, 6.0), [6.0]),  # the mean itself is beyond
        (-4.0, (-5.0, -3.5), (0.0, 0.0), [0.0]),
    ],
)
def test_an_interval_that_goes_on_beyond_an_edge_is_drawn_to_it_with_an_arrow(
    mean: float, interval: tuple[float, float], bar: tuple[float, float], arrows: list[float]
) -> None:
    """Positions in margins from the lower edge."""
    wide = dataclasses.replace(GAP, verdict="undecided", mean=mean, interval=interval)
    svg = figures.forest((wide,), narrow=False)
    (drawn,) = re.findall(
        r'<path d="M (\S+) \S+ \nL (\S+) [^"]*"[^>]*style="[^"]*var\(--undecided\); stroke-width: 3', svg
    )
    assert [float(x) for x in drawn] == pytest.approx([LEFT + PLANE * at / 6 for at in bar], abs=0.01)
    assert sorted(marks(svg, "undecided")) == pytest.approx([LEFT + PLANE * at / 6 for at in arrows], abs=0.01)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_long_name_is_cut_off_in_the_forest_plot(narrow: bool) -> None:
    long = "A residual network with 18 layers, whose stem has kernels of 3 by 3, CIFAR-10"
    svg = figures.forest((dataclasses.replace(GAP, title=long),), narrow=narrow)
    assert f"{long[:39]}…" in svg
    assert long[:40] not in svg


def test_verdicts_differ_by_shape_not_by_colour_alone() -> None:
    shapes = [shape for _, shape in figures.VERDICTS.values()]
    assert len(set(shapes)) == len(shapes) == 4


def test_a_figure_is_the_same_bytes_whenever_it_is_drawn_and_takes_its_colours_from_the_page() -> None:
    points = group().curves
    for draw in (
        lambda: figures.forest.__wrapped__((GAP,), narrow=True),
        lambda: figures.curve.__wrapped__(points, published_percent=94.0, margin_pp=3.0, row=ROW),
        lambda: figures.calibration.__wrapped__(((0.5, 0.25, 1.0),), row=ROW),
    ):
        svg = draw()
        assert draw() == svg
        assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#ffffff", "#000000"}
        assert re.findall(r' id="([^"]*_\d+)"', svg) == []


def test_the_curve_has_a_dot_for_each_seeds_test_accuracy() -> None:
    svg = figures.curve(group().curves, published_percent=94.0, margin_pp=3.0, row=ROW)
    assert len(marks(svg, "ink")) == 5


def test_a_validation_score_is_no_test_dot_of_the_curve() -> None:
    points = group().curves
    validated = tuple(dataclasses.replace(point, split="validation") for point in points if point.epoch == 1)
    drawn = [
        figures.curve(each, published_percent=94.0, margin_pp=3.0, row=ROW) for each in (points, points + validated)
    ]
    assert drawn[0] == drawn[1]


def test_an_accuracy_of_100_percent_can_be_drawn() -> None:
    assert figures.curve(group().curves, published_percent=100.0, margin_pp=0.5, row="perfect").startswith("<svg")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.7, 12.0, [1, 2, 5, 10]),
        (7.2, 8.3, [7.2, 7.4, 7.6, 7.8, 8.0, 8.2]),  # the committed logistic regression in NumPy
        (1.01, 9.99, [2, 4, 6, 8]),
        (0.021, 0.049, [0.025, 0.03, 0.035, 0.04, 0.045]),
    ],
)
def test_the_axis_of_errors_has_three_marks_or_more(low: float, high: float, expected: list[float]) -> None:
    assert figures.error_ticks(low, high) == pytest.approx(expected)


def test_a_curve_within_one_percent_has_marks() -> None:
    points = tuple(dataclasses.replace(point, accuracy_percent=92.3 + point.epoch / 10) for point in group().curves)
    svg = figures.curve(points, published_percent=92.6, margin_pp=0.25, row=ROW)
    assert len(re.findall(r">9[0-9.]+</text>", svg)) >= 3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.49, 0.67, [-1.0, -0.5, 0.0, 0.5]),
        (-0.05, 0.05, [-0.04, -0.02, 0.0, 0.02, 0.04]),
        (-7.9, 8, [-6, -4, -2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert figures.ticks(low, high, most=8) == expected
