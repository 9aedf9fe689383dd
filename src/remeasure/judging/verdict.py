"""The verdict on a row: do the measured seeds reproduce the published accuracy? Pure functions.

m, s: mean and standard deviation (n-1) of the test accuracy of n independent seeds, in percent; p: the published
number; δ: the margin; K: the number of planned looks; alpha_K = (1 - confidence)/K.

    s ← max(s, 100/(num_test·√12)): accuracy comes in steps of 100/num_test; one uniform step has this sd
    h = t(n-1, 1-alpha_K)·s/√n        [L, U] = [m-h, m+h], two-sided of level 100(1-2·alpha_K) %

    reproduced    L ≥ p-δ and U ≤ p+δ    two one-sided tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657)
    exceeds       L > p+δ                one-sided t-test (Student 1908)
    falls short   U < p-δ                one-sided t-test
    undecided     anything else

The first look that decides is final. The looks share 1 - confidence (Bonferroni), so each wrong verdict has probability
1 - confidence at most, however many of the planned looks are taken. Assumed, as in every t-test: accuracy is close to
normal over seeds. A recipe that collapses on one seed in fifty breaks this, and the measured seeds may not show it.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Literal

from scipy.special import stdtr, stdtrit

from remeasure.judging.metrics import METRICS, floored_sd
from remeasure.spec.base import InputError
from remeasure.spec.claim import PARAMS_TEXT, Evidence, Metric, Rule, Verdict, VerdictName

TOLERANCE_PP = 1e-9  # bounds are compared unrounded; this absorbs floating-point errors such as 97.7 + 0.25 > 97.95

ParamsAudit = Literal["exact", "rounds to it", "truncates to it", "differs", "not stated"]


def judge(evidence: Evidence, *, published_percent: float, rule: Rule) -> Verdict:
    """The verdict of the first planned look that decides; until one does, 'undecided' and why.

    Look k uses exactly the rule's first looks[k] seeds, in whatever order they finished. A look that needs a missing
    or diverged seed is not taken; seeds after the deciding look change nothing. Mean, sd and interval are those of the
    last look taken; before the first look, mean and sd of the leading seeds, and no interval. The sd is the floored
    one, so that the interval can be recomputed from the table. looks [1] is deterministic: m is compared with p±δ,
    without sd and interval.

    `seeds_needed`: the first look that would decide at this mean and sd, for decided rows too (how many were enough);
    None if no planned look would, if that look needs a diverged seed, or for fewer than two seeds.

    ValueError: no test images, counts outside 0 … num_test, or looks that begin with a single seed and go on.
    """
    _check(evidence, rule=rule)
    first = rule.first_seed
    evidence = replace(
        evidence, num_correct={seed - first: n for seed, n in evidence.num_correct.items() if seed >= first}
    )
    if not evidence.num_correct:
        return Verdict(verdict="not measured", reason="no seed has been measured", num_seeds=0)
    counts = _leading_counts(evidence.num_correct)
    verdict = _summary(counts, num_test=evidence.num_test)
    for look in (look for look in rule.looks if look <= len(counts)):
        summary = _summary(counts[:look], num_test=evidence.num_test)
        verdict = _decide(summary, published_percent=published_percent, rule=rule)
        if verdict.verdict != "undecided":
            break
    diverged = sorted(seed for seed, count in evidence.num_correct.items() if count is None and seed < rule.looks[-1])
    open_looks = [look for look in rule.looks if not diverged or look <= diverged[0]]
    needed = _seeds_needed(verdict, published_percent=published_percent, rule=rule, looks=open_looks)
    verdict = replace(verdict, seeds_needed=needed)
    if verdict.verdict != "undecided":
        return verdict
    obstacles = _obstacles(verdict, num_correct=evidence.num_correct, diverged=diverged, rule=rule)
    return replace(verdict, reason="; ".join(filter(None, (verdict.reason, *obstacles))))


def judge_accuracies(
    accuracies: Sequence[float | str],
    *,
    published: float | str,
    margin: float,
    confidence: float = 0.95,
    looks: Sequence[int] | None = None,
    num_test: int | None = None,
    metric: Metric = "accuracy_percent",
) -> Verdict:
    """The verdict on accuracies that somebody else measured, by the rule of a row.

    `accuracies`: in percent, one for each independent seed, in the order of the seeds; `published` and `margin`: in
    percent and percentage points. `looks`: the planned numbers of seeds; None is one look, at all of them. The accuracy
    comes in steps, of which the sd is floored: those of `num_test` images or of the printed decimals, the coarser ones.
    `metric`: what the numbers are; an error rate may be below 1 %, and macro F1 is no share of test images.
    InputError: fewer than two accuracies, one that is no percentage or no share of `num_test`, a rule that is none.
    """
    if len(accuracies) < 2:
        raise InputError(f"accuracies: expected 2 or more, for a standard deviation, got {len(accuracies)}")
    printed, claimed = [_percentage(value) for value in accuracies], _percentage(published, name="published")
    for name, values in {"accuracies": printed, "published": [claimed]}.items():
        if max(values) <= 1 and metric != "error_percent":
            raise InputError(f"{name}: expected percent, such as {100 * values[0]}, got {values[0]}")
    if not claimed:
        raise InputError("published: expected a percentage in (0, 100], got 0")
    num_steps = 100 * 10 ** max(0, *(-int(value.as_tuple().exponent) for value in printed))
    if num_test is not None and not METRICS[metric].is_share:
        raise InputError(f"num_test: {METRICS[metric].title} is no share of test images; leave it out")
    if num_test is not None and num_test < 1:
        raise InputError(f"num_test: expected 1 or more, got {num_test}")
    if num_test and num_test < num_steps:
        for value in printed:
            if abs(round(value * num_test / 100) * Decimal(100) / num_test - value) >= Decimal(100) / num_steps:
                raise InputError(f"accuracies: {value} % is no share of {num_test} test images")
        num_steps = num_test
    try:
        rule = Rule(margin_pp=margin, confidence=confidence, looks=tuple(looks or [len(printed)]))
        counts = {seed: round(value * num_steps / 100) for seed, value in enumerate(printed)}
        return judge(Evidence(num_correct=counts, num_test=num_steps), published_percent=float(claimed), rule=rule)
    except ValueError as error:
        raise InputError(*str(error).splitlines()) from None


def _percentage(value: float | str, *, name: str = "accuracies") -> Decimal:
    try:
        number = Decimal(str(value).removesuffix("%").rstrip())
    except InvalidOperation:
        number = Decimal("nan")
    if not (number.is_finite() and 0 <= number <= 100):
        raise InputError(f"{name}: expected percentages from 0 to 100, got {value}")
    return number


def _check(evidence: Evidence, *, rule: Rule) -> None:
    if evidence.num_test < 1:
        raise ValueError(f"num_test: expected 1 or more, got {evidence.num_test}")
    for seed, count in evidence.num_correct.items():
        if count is not None and not 0 <= count <= evidence.num_test:
            raise ValueError(f"num_correct: expected 0 to {evidence.num_test}, got {count} for seed {seed}")
    if rule.looks[0] < 2 and len(rule.looks) > 1:
        raise ValueError(f"looks: expected [1], or 2 seeds or more at each look, got {list(rule.looks)}")


def _leading_counts(num_correct: Mapping[int, float | None]) -> list[float]:
    """Correct predictions of seeds 0, 1, 2, … up to the first that is missing or diverged."""
    counts: list[float] = []
    while (count := num_correct.get(len(counts))) is not None:
        counts.append(count)
    return counts


def _summary(counts: Sequence[float], *, num_test: int) -> Verdict:
    """Mean and floored sd of these seeds, not yet judged; no sd for fewer than two seeds, no mean for none."""
    mean = 100 * sum(counts) / (len(counts) * num_test) if counts else None
    sd = floored_sd([100 * count / num_test for count in counts], num_test=num_test) if len(counts) > 1 else None
    return Verdict(verdict="undecided", reason="", num_seeds=len(counts), mean_percent=mean, sd_percent=sd)


def _decide(summary: Verdict, *, published_percent: float, rule: Rule) -> Verdict:
    """The verdict on exactly the seeds of this summary, with its interval and its reason."""
    low, high = interval = _interval(summary, num_seeds=summary.num_seeds, rule=rule)
    name, where = _placed(interval, published_percent=published_percent, rule=rule)
    if summary.sd_percent is None:
        return replace(summary, verdict=name, reason=f"{low:.3f} {where}")
    reason = f"interval [{low:.3f}, {high:.3f}] {where}"
    return replace(summary, verdict=name, reason=reason, interval_low_percent=low, interval_high_percent=high)


def _interval(summary: Verdict, *, num_seeds: int, rule: Rule) -> tuple[float, float]:
    """[m-h, m+h] with h = t(n-1, 1-alpha_K)·s/√n if `num_seeds` seeds had this mean and sd; [m, m] without an sd."""
    mean, sd = summary.mean_percent, summary.sd_percent
    assert mean is not None  # a look has at least one seed
    if sd is None:
        return mean, mean
    alpha = (1 - rule.confidence) / len(rule.looks)
    half_width = float(stdtrit(num_seeds - 1, 1 - alpha)) * sd / math.sqrt(num_seeds)
    return mean - half_width, mean + half_width


def _placed(interval: tuple[float, float], *, published_percent: float, rule: Rule) -> tuple[VerdictName, str]:
    """The verdict by this interval, and where it lies relative to p-δ and p+δ, in words."""
    low, high = (bound - published_percent for bound in interval)
    margin = rule.margin_pp + TOLERANCE_PP
    if -margin <= low and high <= margin:
        return "reproduced", f"inside {published_percent:.10g} ± {rule.margin_pp:.10g}"
    bounds = (published_percent - rule.margin_pp, published_percent + rule.margin_pp)
    if low > margin:
        return "exceeds", f"above {bounds[1]:.10g}"
    if high < -margin:
        return "falls short", f"below {bounds[0]:.10g}"
    crossed = (f"{bound:.10g}" for bound in bounds if interval[0] <= bound <= interval[1])
    return "undecided", f"crosses {' and '.join(crossed)}"


def _seeds_needed(verdict: Verdict, *, published_percent: float, rule: Rule, looks: Sequence[int]) -> int | None:
    """The first of `looks` that decides at this mean and sd; None if none does, or without an sd.

    h falls as n grows, so this is the smallest n with h < ||m-p|-δ|, raised to the next look.
    """
    if verdict.sd_percent is None:
        return None
    for look in looks:
        interval = _interval(verdict, num_seeds=look, rule=rule)
        if _placed(interval, published_percent=published_percent, rule=rule)[0] != "undecided":
            return look
    return None


def _obstacles(
    verdict: Verdict, *, num_correct: Mapping[int, float | None], diverged: Sequence[int], rule: Rule
) -> Iterator[str]:
    """Why a row is undecided: diverged seeds, missing seeds, or a plan with too few seeds."""
    num_leading = len(_leading_counts(num_correct))
    if diverged:
        yield f"{_seeds(diverged, first=rule.first_seed)} diverged, and no seed is replaced"
        return
    next_look = next((look for look in rule.looks if look > num_leading), None)
    if next_look is not None:
        last = min(next_look, max(num_correct))
        gaps = [seed for seed in range(num_leading, last) if seed not in num_correct]
        which = "first" if next_look == rule.looks[0] else "next"
        progress = f"{num_leading} of {next_look} seeds of the {which} look"
        yield f"{_seeds(gaps, first=rule.first_seed)} {'is' if len(gaps) == 1 else 'are'} missing" if gaps else progress
    if verdict.num_seeds > 1 and verdict.seeds_needed is None:
        yield "seeds needed: more than the plan"


def _seeds(seeds: Sequence[int], *, first: int) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(str(first + seed) for seed in seeds)}"


def wilson_interval(num_correct: float, *, num_test: int, confidence: float) -> tuple[float, float]:
    """Low and high, in percent, of the interval for a share of `num_test` test images.

    `num_correct` may be a mean over seeds, not an integer. With p = num_correct/n and z the normal quantile at
    (1 + confidence)/2: (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927, J. Am. Stat. Assoc. 22:209).
    ValueError: num_correct outside 0 … num_test, no test images, or a confidence outside (0, 1).
    """
    if not (num_test >= 1 and 0 <= num_correct <= num_test):
        raise ValueError(f"num_correct: expected 0 to num_test of 1 or more, got {num_correct} of {num_test}")
    z = statistics.NormalDist().inv_cdf((1 + _fraction(confidence)) / 2)
    share = num_correct / num_test
    centre = share + z**2 / (2 * num_test)
    half_width = z * math.sqrt(share * (1 - share) / num_test + z**2 / (4 * num_test**2))
    scale = 100 / (1 + z**2 / num_test)
    return max(0.0, scale * (centre - half_width)), min(100.0, scale * (centre + half_width))


def agree(old: Sequence[float], new: Sequence[float], *, num_test: int, confidence: float) -> tuple[float, bool]:
    """The two-sided p-value of the hypothesis of equal means, and whether it is above 1 - confidence.

    `old`, `new`: accuracies in percent of two or more independent seeds each, on the same `num_test` images.
    With v = s²/n of each record: t = (m_new - m_old)/√(v_old + v_new), degrees of freedom (v_old + v_new)² / Σ v²/(n-1)
    (Welch 1947, Biometrika 34:28). Each s is floored as in `judge`, so that equal seeds do not divide by zero.
    ValueError: fewer than two seeds, or a confidence outside (0, 1).
    """
    if min(len(old), len(new)) < 2:
        raise ValueError(f"seeds: expected 2 or more in each record, got {len(old)} and {len(new)}")
    level = 1 - _fraction(confidence)
    variances = [floored_sd(record, num_test=num_test) ** 2 / len(record) for record in (old, new)]
    total = sum(variances)
    t = (statistics.fmean(new) - statistics.fmean(old)) / math.sqrt(total)
    freedom = total**2 / sum(v**2 / (len(record) - 1) for v, record in zip(variances, (old, new), strict=True))
    p_value = 2 * float(stdtr(freedom, -abs(t)))
    return p_value, p_value > level


def _fraction(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a fraction in (0, 1), got {confidence}")
    return confidence


_FACTOR = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}


def audit_params(num_params: int, *, published_text: str | None) -> ParamsAudit:
    """How a counted number of parameters relates to the printed one, such as '7,850', '60k' or '11.7M'.

    'exact': the same number. 'rounds to it', else 'truncates to it': the same at the printed digits; a half may be
    rounded up or down. Otherwise 'differs'; None is 'not stated'. ValueError: a text that is no number with an optional
    k, M or B.
    """
    if published_text is None:
        return "not stated"
    match = PARAMS_TEXT.fullmatch(published_text.strip())
    if match is None:
        raise ValueError(f"num_params_text: expected a count like '7,850', '60k' or '11.7M', got {published_text!r}")
    whole, decimals, suffix = match[1].replace(",", ""), match[2] or "", match[3] or ""
    unit = Fraction(_FACTOR[suffix], 10 ** len(decimals))  # of the last printed digit
    excess = num_params / unit - int(whole + decimals)
    if excess == 0:
        return "exact"
    if abs(excess) <= Fraction(1, 2):
        return "rounds to it"
    return "truncates to it" if 0 < excess < 1 else "differs"
