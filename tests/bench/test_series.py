"""What measured values come to: medians, ratios with their rounds, targets, and the order in which values are taken."""

import pytest

from remeasure.bench.series import Series, interleaved, ratio


def series(*values: float) -> Series:
    return Series(name="any", unit="s", values=values)


def test_a_median_is_the_middle_value_or_the_mean_of_the_middle_two() -> None:
    assert series(5.0, 1.0, 3.0).median == 3.0
    assert series(4.0, 1.0, 2.0, 9.0).median == 3.0


def test_a_ratio_is_of_medians_and_its_range_is_of_single_rounds() -> None:
    found = ratio("a / b", series(6.0, 8.0, 20.0), series(2.0, 4.0, 5.0))  # rounds: 3, 2, 4; medians: 8 and 4
    assert (found.value, found.low, found.high) == (2.0, 2.0, 4.0)
    assert (found.target, found.met) == ("", None)


def test_series_of_different_lengths_have_no_rounds_in_common() -> None:
    found = ratio("a / b", series(6.0, 8.0, 20.0), series(4.0))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("limits", "target", "met"),
    [
        ({"at_least": 2.5}, "at least 2.5", False),
        ({"at_least": 2.0}, "at least 2", True),
        ({"at_most": 2.0}, "at most 2", True),
        ({"at_most": 1.99}, "at most 1.99", False),
    ],
)
def test_a_target_is_judged_on_its_own_side_and_met_where_it_is_reached(
    limits: dict[str, float], target: str, met: bool
) -> None:
    found = ratio("a / b", series(8.0), series(4.0), **limits)
    assert (found.target, found.met) == (target, met)


def test_each_round_begins_with_another_contestant_and_values_keep_their_round() -> None:
    called: list[str] = []

    def contestant(name: str) -> float:
        called.append(name)
        return float(len(called))

    found = interleaved({name: lambda name=name: contestant(name) for name in "abc"}, num_rounds=4)
    assert "".join(called) == "abc" + "bca" + "cab" + "abc"
    assert found == {"a": [1.0, 6.0, 8.0, 10.0], "b": [2.0, 4.0, 9.0, 11.0], "c": [3.0, 5.0, 7.0, 12.0]}
