"""The verdict against hand arithmetic, statsmodels, scipy and simulation; its error rates and its symmetries."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW, ttest_ind

from remeasure.judging.verdict import agree, audit_params, judge, wilson_interval
from remeasure.spec.claim import Evidence, Rule, Verdict

NUM_TEST = 10_000

# Five seeds at 97.60, 97.70, 97.80, 97.90, 98.00 %: m = 97.80, Σ(x-m)² = 0.04+0.01+0+0.01+0.04 = 0.10,
# s = √(0.10/4) = 0.158114. Student's t on 4 degrees of freedom has a closed form (Shaw 2006, J. Comput. Finance 9:37):
# with a = 4P(1-P), q = cos(arccos(√a)/3)/√a, t = 2√(q-1). P = 1 - 0.05/3: a = 0.0655556, √a = 0.256038,
# arccos = 1.311876, q = cos(0.437292)/0.256038 = 3.5381, t = 2√2.5381 = 3.1863. h = 3.1863·0.158114/√5 = 0.225306.
FIVE = (9760, 9770, 9780, 9790, 9800)
MEAN, SD, HALF_WIDTH = 97.80, 0.158114, 0.225306


def evidence(counts: Sequence[int | None], *, num_test: int = NUM_TEST) -> Evidence:
    """Seeds 0, 1, 2, … with these numbers of correct predictions."""
    return Evidence(num_correct=dict(enumerate(counts)), num_test=num_test)


def judged(counts: Sequence[int | None], *, published: float = 97.7, margin: float = 0.25, **rule: Any) -> Verdict:
    return judge(evidence(counts), published_percent=published, rule=Rule(margin_pp=margin, **rule))


# ---------------------------------------------------------------- the four verdicts, by hand


@pytest.mark.parametrize(
    ("published", "margin", "verdict", "where"),
    [
        (97.7, 0.35, "reproduced", "inside 97.7 ± 0.35"),  # 98.025 ≤ 98.05
        (97.7, 0.30, "undecided", "crosses 98"),  # 97.575 < 98.00 < 98.025
        (97.8, 0.20, "undecided", "crosses 97.6 and 98"),
        (97.3, 0.25, "exceeds", "above 97.55"),  # 97.575 > 97.55
        (98.3, 0.25, "falls short", "below 98.05"),  # 98.025 < 98.05
    ],
)
def test_verdict_follows_from_where_the_interval_lies(
    published: float, margin: float, verdict: str, where: str
) -> None:
    result = judged(FIVE, published=published, margin=margin)
    assert result.verdict == verdict
    assert result.reason.split("; ")[0] == f"interval [97.575, 98.025] {where}"


def test_mean_sd_and_interval_are_those_of_the_hand_calculation() -> None:
    result = judged(FIVE)
    assert result.num_seeds == 5
    assert result.mean_percent == pytest.approx(MEAN, abs=1e-12)
    assert result.sd_percent == pytest.approx(SD, abs=1e-6)
    assert result.interval_low_percent == pytest.approx(MEAN - HALF_WIDTH, abs=1e-5)
    assert result.interval_high_percent == pytest.approx(MEAN + HALF_WIDTH, abs=1e-5)


def test_mean_comes_from_the_integers() -> None:
    """A third of a million, three times: 100·999999/3000000 = 33.3333 exactly, as no sum of rounded percents is."""
    result = judge(
        evidence([333_332, 333_333, 333_334], num_test=10**6),
        published_percent=33.3333,
        rule=Rule(margin_pp=0.25, looks=(3,)),
    )
    assert result.mean_percent == 33.3333


def test_equal_seeds_get_the_sd_of_one_step_of_accuracy() -> None:
    """s = 100/(10000·√12) = 0.01/3.4641 = 0.0028868, and h = 3.1863·0.0028868/√5 = 0.0041136."""
    result = judged([9780] * 5)
    assert result.sd_percent == pytest.approx(0.0028868, abs=1e-7)
    assert result.interval_high_percent == pytest.approx(97.8041136, abs=1e-6)


def test_a_margin_met_exactly_is_met_whatever_floating_point_says() -> None:
    """99.2 - 98.9 = 0.2999…97 and 98.9 - 98.6 = 0.3000…11: both lie exactly on 98.9 ± 0.3."""
    for count in (9920, 9860):
        assert judged([count], published=98.9, margin=0.3, looks=(1,)).verdict == "reproduced"


@pytest.mark.parametrize(
    ("count", "verdict", "reason"),
    [
        (8190, "reproduced", "81.900 inside 81.8 ± 0.1"),
        (8191, "exceeds", "81.910 above 81.9"),
        (8169, "falls short", "81.690 below 81.7"),
    ],
)
def test_a_deterministic_row_has_no_sd_and_no_interval(count: int, verdict: str, reason: str) -> None:
    result = judged([count, 1, 2], published=81.8, margin=0.1, looks=(1,))
    assert result == Verdict(verdict=verdict, reason=reason, num_seeds=1, mean_percent=count / 100)


# ---------------------------------------------------------------- looks, gaps and diverged seeds


def test_a_row_without_seeds_is_not_measured() -> None:
    assert judged([]) == Verdict(verdict="not measured", reason="no seed has been measured", num_seeds=0)


def test_below_the_first_look_mean_and_sd_are_shown_and_nothing_is_judged() -> None:
    """Three seeds 97.70, 97.80, 97.90: m = 97.80, s = √(0.02/2) = 0.10; far from 90, and still undecided."""
    result = judged([9770, 9780, 9790], published=90.0)
    assert (result.verdict, result.reason) == ("undecided", "3 of 5 seeds of the first look")
    assert result.num_seeds == 3
    assert (result.mean_percent, result.sd_percent) == (pytest.approx(97.80), pytest.approx(0.10))
    assert result.interval_low_percent is None
    assert result.interval_high_percent is None


def test_one_seed_has_a_mean_and_no_sd() -> None:
    assert judged([9770]) == Verdict(
        verdict="undecided", reason="1 of 5 seeds of the first look", num_seeds=1, mean_percent=97.70
    )


@pytest.mark.parametrize("num_extra", [0, 1, 4])
def test_between_looks_the_last_reached_look_is_judged(num_extra: int) -> None:
    result = judged([*FIVE, *[9999] * num_extra])
    assert (result.verdict, result.num_seeds) == ("undecided", 5)
    assert result.mean_percent == pytest.approx(MEAN)
    assert result.reason == f"interval [97.575, 98.025] crosses 97.95; {5 + num_extra} of 10 seeds of the next look"


def test_alpha_is_shared_by_the_planned_looks_and_not_by_the_looks_taken() -> None:
    """One planned look: t(4, 0.95) = 2.1318 in Student's tables, so h = 2.1318·0.158114/√5 = 0.150742."""
    alone = judged(FIVE, looks=(5,))
    assert alone.interval_high_percent == pytest.approx(97.80 + 0.150742, abs=1e-5)
    assert judged(FIVE).interval_high_percent == pytest.approx(97.80 + 0.225306, abs=1e-5)


def test_the_first_look_that_decides_stands() -> None:
    later = [9900] * 15
    result = judged([*FIVE, *later], margin=0.35)
    assert (result.verdict, result.num_seeds) == ("reproduced", 5)
    assert result == judged(FIVE, margin=0.35)


def test_a_seed_with_nothing_right_is_a_measurement_and_not_a_gap() -> None:
    result = judged([0] * 5)
    assert (result.verdict, result.num_seeds, result.mean_percent) == ("falls short", 5, 0.0)


def test_an_undecided_first_look_leaves_the_decision_to_the_next() -> None:
    result = judged([*FIVE, *FIVE])
    assert (result.verdict, result.num_seeds) == ("reproduced", 10)


def test_after_the_last_look_an_undecided_row_needs_more_than_the_plan() -> None:
    """m = 97.80 on the edge of 97.55 ± 0.25: no number of seeds decides."""
    result = judged([*FIVE * 4, 9999], published=97.55)
    assert (result.verdict, result.num_seeds, result.seeds_needed) == ("undecided", 20, None)
    assert result.reason.endswith("crosses 97.8; seeds needed: more than the plan")


@pytest.mark.parametrize(
    ("counts", "num_shown", "seeds"),
    [
        ([9770, 9780, None, 9780, 9780], 2, "seed 2"),
        ([None, 9780, None, 9780, 9780], 0, "seeds 0, 2"),
        ([None], 0, "seed 0"),
        ([*FIVE, 9780, None, 9780, 9780, 9780], 5, "seed 6"),
    ],
)
def test_a_diverged_seed_is_named_and_nothing_after_it_decides(
    counts: list[int | None], num_shown: int, seeds: str
) -> None:
    result = judged([*counts, *[9780] * 15])
    assert (result.verdict, result.num_seeds, result.seeds_needed) == ("undecided", num_shown, None)
    assert result.reason.split("; ")[-1] == f"{seeds} diverged, and no seed is replaced"
    assert (result.interval_low_percent is not None) == (num_shown == 5)


def test_a_deterministic_row_whose_run_failed_is_undecided() -> None:
    result = judged([None], looks=(1,))
    assert (result.verdict, result.mean_percent) == ("undecided", None)
    assert result.reason == "seed 0 diverged, and no seed is replaced"


def test_a_seed_that_diverged_after_the_deciding_look_changes_nothing() -> None:
    assert judged([*FIVE, None, 9780], margin=0.35) == judged(FIVE, margin=0.35)


def test_a_seed_that_diverged_beyond_the_plan_is_not_mentioned() -> None:
    assert judged([*FIVE * 4, None], published=97.55) == judged(FIVE * 4, published=97.55)


@pytest.mark.parametrize(
    ("seeds", "num_shown", "reason"),
    [
        ((0, 1, 3, 4), 2, "seed 2 is missing"),
        ((0, 1, 4, 12), 2, "seeds 2, 3 are missing"),
        ((1, 2, 3, 4, 5, 6), 0, "seed 0 is missing"),
        ((1000, 1001), 0, "seeds 0, 1, 2, 3, 4 are missing"),
    ],
)
def test_a_look_waits_for_exactly_its_own_seeds(seeds: tuple[int, ...], num_shown: int, reason: str) -> None:
    gappy = Evidence(num_correct=dict.fromkeys(seeds, 9770), num_test=NUM_TEST)
    result = judge(gappy, published_percent=97.7, rule=Rule(margin_pp=0.25))
    assert (result.verdict, result.reason, result.num_seeds) == ("undecided", reason, num_shown)


def test_impossible_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 10000, got 10001 for seed 1"):
        judged([9780, 10_001])
    with pytest.raises(ValueError, match=r"num_test: expected 1 or more, got 0"):
        judge(evidence([0], num_test=0), published_percent=50.0, rule=Rule(margin_pp=0.25))
    with pytest.raises(ValueError, match=r"2 seeds or more at each look, got \[1, 5\]"):
        judged(FIVE, looks=(1, 5))


# ---------------------------------------------------------------- seeds needed


@pytest.mark.parametrize(
    ("published", "margin", "needed"),
    [
        (97.75, 0.30, 5),  # ||0.05| - 0.30| = 0.25 > 0.2253
        (97.70, 0.25, 10),  # 0.15
        (97.65, 0.25, 20),  # 0.10
        (97.65, 0.20, None),  # 0.05
        (97.30, 0.35, 10),  # 0.15, from outside the margin
    ],
)
def test_seeds_needed_is_the_first_look_narrow_enough(published: float, margin: float, needed: int | None) -> None:
    """s = 0.158114 and, at P = 1 - 0.05/3, t = 3.1863, 2.5096, 2.2994 on 4, 9, 19 degrees of freedom: h = 0.2253,
    0.1255, 0.0813 at 5, 10, 20 seeds."""
    result = judged(FIVE, published=published, margin=margin)
    assert result.seeds_needed == needed
    assert ("more than the plan" in result.reason) == (needed is None)


def test_seeds_needed_is_the_smallest_n_raised_to_the_next_look() -> None:
    """The design's definition, by brute force over n with scipy's own quantile."""
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        counts = [int(count) for count in generator.normal(9780, generator.uniform(3, 40), size=4).round()]
        published, margin = 97.8 + generator.uniform(-0.5, 0.5), generator.uniform(0.1, 0.4)
        s, gap = np.std(counts, ddof=1) / 100, abs(abs(np.mean(counts) / 100 - published) - margin)
        enough = (n for n in range(2, 21) if stats.t.ppf(1 - 0.05 / 3, n - 1) * s / math.sqrt(n) < gap)
        smallest = next(enough, 21)
        expected = next((look for look in (5, 10, 20) if look >= smallest), None)
        assert judged(counts, published=published, margin=margin).seeds_needed == expected
        seen.add(expected)
    assert seen == {5, 10, 20, None}


# ---------------------------------------------------------------- against statsmodels


@pytest.mark.parametrize("looks", [(5,), (5, 10, 20)])
def test_one_look_equals_two_one_sided_t_tests_of_statsmodels(looks: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    alpha = 0.05 / len(looks)
    seen = set()
    for _ in range(100):
        counts = generator.normal(generator.uniform(9720, 9820), generator.uniform(2, 20), size=5).round().astype(int)
        result = judged(counts.tolist(), looks=looks)
        other = DescrStatsW(counts / 100)
        low, high = other.tconfint_mean(alpha=2 * alpha)
        assert (result.interval_low_percent, result.interval_high_percent) == pytest.approx((low, high), abs=1e-9)
        expected = "undecided"
        if other.ttost_mean(97.45, 97.95)[0] <= alpha:
            expected = "reproduced"
        elif other.ttest_mean(97.95, alternative="larger")[1] < alpha:
            expected = "exceeds"
        elif other.ttest_mean(97.45, alternative="smaller")[1] < alpha:
            expected = "falls short"
        assert result.verdict == expected
        seen.add(expected)
    assert seen == {"reproduced", "exceeds", "falls short", "undecided"}


# ---------------------------------------------------------------- error rates, by simulation

LOOKS, MARGIN, PUBLISHED = (5, 10, 20), 25, 9770  # in correct predictions of 10,000, so in hundredths of a point
NAMES = ("undecided", "reproduced", "exceeds", "falls short")


def decisions(counts: np.ndarray, *, num_shares: int) -> np.ndarray:
    """The design's rule for many rows at once: counts (R, 20) → index into NAMES (R,). alpha = 0.05/num_shares."""
    decided = np.zeros(len(counts), dtype=int)
    for look in LOOKS:
        seen = counts[:, :look]
        gap, sd = seen.mean(axis=1) - PUBLISHED, np.maximum(seen.std(axis=1, ddof=1), 12**-0.5)
        h = stats.t.ppf(1 - 0.05 / num_shares, look - 1) * sd / math.sqrt(look)
        inside, above, below = (gap - h >= -MARGIN) & (gap + h <= MARGIN), gap - h > MARGIN, gap + h < -MARGIN
        now = np.select([inside, above, below], [1, 2, 3], 0)
        decided = np.where(decided == 0, now, decided)
    return decided


def simulated(*, sign: int, sd: float, num_rows: int) -> np.ndarray:
    """Counts (R, 20) of rows whose true accuracy lies exactly on p + sign·δ."""
    generator = np.random.default_rng([sign + 1, int(sd * 10)])
    return generator.normal(PUBLISHED + sign * MARGIN, sd, size=(num_rows, LOOKS[-1])).round()


def test_vectorised_rule_equals_judge() -> None:
    counts = np.concatenate([simulated(sign=sign, sd=12.0, num_rows=200) for sign in (-1, 1)])
    expected = [judged(row).verdict for row in counts.astype(int).tolist()]
    assert [NAMES[k] for k in decisions(counts, num_shares=len(LOOKS))] == expected
    assert set(expected) == set(NAMES)


@pytest.mark.parametrize("sd", [2.0, 10.0, 30.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_each_wrong_verdict_is_as_rare_as_promised(sign: int, sd: float) -> None:
    """On the edge p ± δ both neighbours are wrong; each must come out in at most 5 % of rows (3 standard errors)."""
    num_rows = 40_000
    found = decisions(simulated(sign=sign, sd=sd, num_rows=num_rows), num_shares=len(LOOKS))
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_rows)  # 0.0533
    outside = NAMES.index("exceeds" if sign > 0 else "falls short")
    assert np.mean(found == NAMES.index("reproduced")) <= limit
    assert 0.02 < np.mean(found == outside) <= limit  # not simply because nothing is ever decided


@pytest.mark.parametrize("sign", [-1, 1])
def test_without_sharing_alpha_wrong_verdicts_are_too_frequent(sign: int) -> None:
    """So the bound above can fail: three looks at 5 % each."""
    found = decisions(simulated(sign=sign, sd=10.0, num_rows=40_000), num_shares=1)
    outside = NAMES.index("exceeds" if sign > 0 else "falls short")
    assert np.mean(found == NAMES.index("reproduced")) > 0.08
    assert np.mean(found == outside) > 0.08


# ---------------------------------------------------------------- promises for any evidence


untimed = settings(deadline=None)  # a busy machine is no failure


@st.composite
def rows(draw: st.DrawFn) -> list[int]:
    """Up to 20 seeds scattered around a mean near 97.70 %, narrowly or widely."""
    mean, spread = draw(st.integers(9725, 9815)), draw(st.sampled_from([0, 2, 10, 40]))
    return draw(st.lists(st.integers(mean - spread, mean + spread), min_size=1, max_size=20))


@untimed
@given(rows(), st.randoms(use_true_random=False))
def test_the_order_in_which_seeds_finish_does_not_matter(counts: list[int], random: Any) -> None:
    finished = list(enumerate(counts))
    random.shuffle(finished)
    shuffled = Evidence(num_correct=dict(finished), num_test=NUM_TEST)
    assert judge(shuffled, published_percent=97.7, rule=Rule(margin_pp=0.25)) == judged(counts)


@untimed
@given(rows(), st.lists(st.none() | st.integers(0, NUM_TEST), max_size=20))
def test_later_seeds_never_change_a_decided_verdict(counts: list[int], later: list[int | None]) -> None:
    before = judged(counts)
    if before.verdict != "undecided":
        assert judged([*counts, *later]) == before


@untimed
@given(rows())
def test_mirroring_the_accuracies_around_the_published_one_swaps_exceeds_and_falls_short(counts: list[int]) -> None:
    swapped = {"exceeds": "falls short", "falls short": "exceeds"}
    result, mirrored = judged(counts), judged([2 * 9770 - count for count in counts])
    assert mirrored.verdict == swapped.get(result.verdict, result.verdict)
    assert (mirrored.num_seeds, mirrored.seeds_needed) == (result.num_seeds, result.seeds_needed)


@untimed
@given(rows(), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_a_larger_margin_never_loses_reproduced(counts: list[int], margin: float, more: float) -> None:
    if judged(counts, margin=margin).verdict == "reproduced":
        assert judged(counts, margin=margin + more).verdict == "reproduced"


# ---------------------------------------------------------------- context: Wilson, Welch, parameters


@pytest.mark.parametrize("num_correct", [0, 1, 5000, 9771.4, 9999, 10_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval_equals_statsmodels(num_correct: float, confidence: float) -> None:
    expected = proportion_confint(num_correct, NUM_TEST, alpha=1 - confidence, method="wilson")
    low, high = wilson_interval(num_correct, num_test=NUM_TEST, confidence=confidence)
    assert (low, high) == pytest.approx((100 * expected[0], 100 * expected[1]), abs=1e-9)
    assert 0 <= low < high <= 100


def test_wilson_interval_by_hand() -> None:
    """5 of 10 at 95 %, z² = 3.8415: centre 50, half width 100·√(3.8415·0.25/10 + 3.8415²/400)/1.38415 = 26.34."""
    assert wilson_interval(5, num_test=10, confidence=0.95) == pytest.approx((23.66, 76.34), abs=0.005)


@pytest.mark.parametrize("num_test", [5, 7, 8, 9])
def test_wilson_interval_stays_between_0_and_100(num_test: int) -> None:
    """At these sizes the bare formula leaves it by a rounding error, which would print as -0.000."""
    assert wilson_interval(0, num_test=num_test, confidence=0.9)[0] >= 0
    assert wilson_interval(num_test, num_test=num_test, confidence=0.9)[1] <= 100


@pytest.mark.parametrize(("num_correct", "num_test"), [(-1, 10), (10.5, 10), (math.nan, 10), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(num_correct: float, num_test: int) -> None:
    with pytest.raises(ValueError, match="num_correct: expected"):
        wilson_interval(num_correct, num_test=num_test, confidence=0.95)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_fraction(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence: expected a fraction in \(0, 1\)"):
        wilson_interval(5, num_test=10, confidence=confidence)
    with pytest.raises(ValueError, match=r"confidence: expected a fraction in \(0, 1\)"):
        agree([97.6, 97.8], [97.7, 97.7], num_test=NUM_TEST, confidence=confidence)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2, 0.3])
def test_records_agree_as_welchs_test_of_statsmodels_says(shift: float) -> None:
    old, new = [97.61, 97.75, 97.70, 97.82, 97.66], [97.7 + shift + step for step in (0.0, 0.02, -0.03)]
    _, expected, _ = ttest_ind(old, new, usevar="unequal")
    p_value, same = agree(old, new, num_test=NUM_TEST, confidence=0.95)
    assert p_value == pytest.approx(expected, rel=1e-9)
    assert same == (expected > 0.05)
    assert same == (shift < 0.1)  # so both answers occur


def test_records_of_equal_seeds_are_compared_at_the_floor() -> None:
    """Both s = 0.0028868, v = s²/2 = 4.1667e-6 each: one step of 0.01 apart, t = 0.01/√8.3333e-6 = 3.4641.

    Degrees of freedom (2v)²/(2v²) = 2, where p = 1 - t/√(2+t²) = 1 - 3.4641/√14 = 0.0742; two steps: 0.0202.
    """
    p_value, same = agree([97.70, 97.70], [97.71, 97.71], num_test=NUM_TEST, confidence=0.95)
    assert (p_value, same) == (pytest.approx(0.0742, abs=1e-4), True)
    p_value, same = agree([97.70, 97.70], [97.72, 97.72], num_test=NUM_TEST, confidence=0.95)
    assert (p_value, same) == (pytest.approx(0.0202, abs=1e-4), False)


def test_one_seed_is_no_record_to_compare() -> None:
    with pytest.raises(ValueError, match="2 or more in each record, got 1 and 2"):
        agree([97.7], [97.7, 97.8], num_test=NUM_TEST, confidence=0.95)


@pytest.mark.parametrize(
    ("num_params", "published_text", "audit"),
    [
        (7_850, "7,850", "exact"),
        (203_530, "203,530", "exact"),
        (669_706, " 669706 ", "exact"),
        (60_000, "60,000", "exact"),
        (60_000, "60k", "exact"),
        (61_706, "60,000", "differs"),
        (7_851, "7,850", "differs"),
        (61_706, "62 K", "rounds to it"),
        (61_706, "61k", "truncates to it"),
        (61_706, "60k", "differs"),
        (11_689_512, "11.7M", "rounds to it"),  # 116.9 tenths of a million
        (11_173_962, "11.7M", "differs"),
        (11_173_962, None, "not stated"),
        (86_567_656, "86M", "truncates to it"),
        (86_567_656, "87M", "rounds to it"),
        (86_567_656, "85M", "differs"),
        (86_400_000, "87M", "differs"),
        (86_567_656, "86.6M", "rounds to it"),
        (86_567_656, "86.57M", "rounds to it"),
        (11_650_000, "11.6M", "rounds to it"),  # a half, either way
        (11_650_000, "11.7M", "rounds to it"),
        (1_500_000_000, "1.5B", "exact"),
    ],
)
def test_parameter_audit(num_params: int, published_text: str | None, audit: str) -> None:
    assert audit_params(num_params, published_text=published_text) == audit


@pytest.mark.parametrize("text", ["", "many", "7,85", "11.7", "11.7MM", "-5", "1e6", "11,7M", "٣k"])
def test_parameter_audit_refuses_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match="num_params_text: expected a count like"):
        audit_params(1000, published_text=text)


# ---------------------------------------------------------------- a second rule on seeds never used before


def test_a_later_rule_judges_only_its_own_seeds() -> None:
    fresh = {20 + seed: count for seed, count in enumerate(FIVE)}
    used = dict.fromkeys(range(20), 9000)  # a look that these took part in would fall short
    rule = Rule(margin_pp=0.35, first_seed=20)
    result = judge(Evidence(num_correct=used | fresh, num_test=NUM_TEST), published_percent=97.7, rule=rule)
    assert result == judged(FIVE, margin=0.35)


def test_a_later_rule_names_its_seeds_by_their_numbers() -> None:
    rule = Rule(margin_pp=0.35, first_seed=20)
    counts: dict[int, int | None] = {20: 9770, 22: 9770}
    assert judge(Evidence(num_correct=counts, num_test=NUM_TEST), published_percent=97.7, rule=rule).reason == (
        "seed 21 is missing"
    )
    counts[21] = None
    assert "seed 21 diverged" in (
        judge(Evidence(num_correct=counts, num_test=NUM_TEST), published_percent=97.7, rule=rule).reason
    )


def test_a_later_rule_without_its_own_seeds_is_not_measured() -> None:
    rule = Rule(margin_pp=0.35, first_seed=20)
    used = Evidence(num_correct=dict.fromkeys(range(20), 9770), num_test=NUM_TEST)
    assert judge(used, published_percent=97.7, rule=rule).verdict == "not measured"
