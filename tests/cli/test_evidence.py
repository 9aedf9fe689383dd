"""`remeasure judge` and `remeasure compare`: what they print, and their exit status."""

from pathlib import Path

import pytest
from tests.support.measured import ROW, seeds

import remeasure
from remeasure.cli import commands
from remeasure.judging.publish import publish
from remeasure.judging.verdict import judge
from remeasure.spec.claim import Evidence, Rule

ASKED = ("--published", "93.0", "--margin")


def test_the_verdict_is_a_row_s_on_the_same_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """93.1 % of 1,000 images are 931; without --num-test, a printed digit is a step."""
    counts = dict(enumerate((931, 928, 934, 930, 932)))
    for margin, expected in (("0.5", "reproduced"), ("0.2", "undecided")):
        rule = Rule(margin_pp=float(margin), looks=(5,))
        row = judge(Evidence(num_correct=counts, num_test=1000), published_percent=93.0, rule=rule)
        assert row.verdict == expected
        assert commands.main(["judge", *ASKED, margin, "93.1", "92.8", "93.4", "93.0", "93.2"]) == 0
        assert capsys.readouterr().out == f"{expected}: 93.100 ± 0.224 % (n = 5); {row.reason}\n"
        assert remeasure.judge([93.1, 92.8, 93.4, 93.0, 93.2], published=93.0, margin=float(margin)) == row


def test_looks_and_the_number_of_images_count() -> None:
    same = [93.0] * 5
    assert remeasure.judge(same, published=93.0, margin=0.5).sd_percent == pytest.approx(0.1 / 12**0.5)
    assert remeasure.judge(same, published=93.0, margin=0.5, num_test=100).sd_percent == pytest.approx(1 / 12**0.5)
    fine = remeasure.judge(["93.00"] * 5, published=93.0, margin=0.5, looks=[2, 5])
    assert (fine.num_seeds, fine.sd_percent) == (2, pytest.approx(0.01 / 12**0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0.3", "93.1"), "accuracies: expected 2 or more, for a standard deviation, got 1"),
        (("0.3", "93.1", "high"), "accuracies: expected percentages from 0 to 100, got high"),
        (("0.3", "93.1", "nan"), "accuracies: expected percentages from 0 to 100, got nan"),
        (("0.3", "0.93", "0.94"), "accuracies: expected percent, such as 93.00, got 0.93"),
        (("0.3", "93.12", "93.2", "--num-test", "500"), "accuracies: 93.12 % is no share of 500 test images"),
        (("0", "93.1", "93.2"), "margin_pp: expected percentage points above 0, got 0.0"),
        (("wide", "93.1", "93.2"), "argument --margin: invalid float value: 'wide' (`remeasure judge --help`)"),
        (("0.3", "93.1", "93.2", "--looks", "5,2"), "looks: expected rising numbers of seeds, got [5, 2]"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["judge", *ASKED, *arguments]) == 2
    assert capsys.readouterr() == ("", f"{said}\n")


def test_two_folders_compared_end_with_1_where_a_row_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, results in {"a": seeds(0, 2, 4, 5), "b": seeds(0, 2), "c": seeds(1, 3, 6, 8, commit="decaf")}.items():
        publish(tmp_path / name, row=ROW, files=results.to_files())
    assert commands.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == f"{ROW}: identical: 2 of 2 shared seeds have identical predictions\n"
    assert commands.main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{ROW}: different: 95.000 % (4 seeds) and 92.500 %")
    assert lines[1:] == ["  commit: c0ffee → decaf"]
    assert commands.main(["compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: no results folder; it has no runs/\n"
