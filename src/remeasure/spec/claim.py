"""A published claim and its judgement: ledger row, decision rule, evidence, verdict."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from remeasure.spec.base import FIRST_TUNING_SEED, Control, Mode, Strict, Within

PARAMS_TEXT = re.compile(r"([0-9]{1,3}(?:,[0-9]{3}){1,5}|[0-9]{1,15})(?:(?:\.([0-9]{1,6}))? ?([kKMB]))?")  # "11.7M"
Grade = Literal["primary", "secondary", "unsourced"]
Metric = Literal["accuracy_percent", "error_percent", "top5_percent", "macro_f1_percent", "balanced_accuracy_percent"]
VerdictName = Literal["reproduced", "exceeds", "falls short", "undecided", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Source(Strict):
    """One source of a published number: `citation`, `where` in it, what it `says`, and its grade."""

    citation: str
    where: str
    says: str
    grade: Grade

    def _faults(self) -> Iterable[str]:
        keys = ("citation", "where", "says")
        return (f"{key}: must not be empty" for key in keys if not getattr(self, key).strip())


@dataclass(frozen=True, kw_only=True)
class Published(Strict):
    """A published number and how it was measured; null is 'not stated'.

    The number is under the name of its metric: one of `accuracy_percent`, `error_percent` (100 - accuracy), and so on.
    `num_digits` counts the printed decimals: 92.6 has 1, 99.05 has 2. `num_params_note`: why our number of parameters
    differs from the printed one, if it does.
    """

    accuracy_percent: float | None = None
    error_percent: float | None = None
    top5_percent: float | None = None
    macro_f1_percent: float | None = None
    balanced_accuracy_percent: float | None = None
    num_digits: int
    num_params_text: str | None
    num_runs: Annotated[int | None, Within("1 or more, or null for not stated", lambda num: num >= 1)]
    selection: str | None
    sources: tuple[Source, ...]
    notes: str
    num_params_note: str | None = None

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that have a number: exactly one, if the entry has no fault."""
        return [metric for metric in get_args(Metric) if getattr(self, metric) is not None]

    @property
    def percent(self) -> float:
        """The published number, whatever its metric."""
        return float(getattr(self, self.metrics[0]))

    def _faults(self) -> Iterable[str]:
        for metric in self.metrics:
            if not 0 < (percent := getattr(self, metric)) <= 100:
                yield f"{metric}: expected a percentage in (0, 100], got {percent}"
            elif percent <= 1 and metric != "error_percent":
                yield f"{metric}: {percent} looks like a fraction; expected percent, perhaps {100 * percent:.10g}"
            if not 0 <= self.num_digits <= 6 or round(percent, self.num_digits) != percent:
                yield f"num_digits: {self.num_digits} decimals cannot print {percent}"
        if self.num_params_text is not None and not PARAMS_TEXT.fullmatch(self.num_params_text.strip()):
            yield f"num_params_text: expected a count like '7,850', '60k' or '11.7M', got {self.num_params_text!r}"
        if not self.sources:
            yield "sources: a bare number is refused; name at least one source, if only one graded 'unsourced'"


@dataclass(frozen=True, kw_only=True)
class Rule(Strict):
    """The decision rule, fixed before the first measurement. `looks`: the seed counts at which it is applied.

    `first_seed`: look k uses seeds first_seed … first_seed + looks[k] - 1; a later rule takes seeds never used before.
    """

    margin_pp: Annotated[float, Within("percentage points above 0", lambda margin: 0 < margin < 100)]
    confidence: Annotated[float, Within("a fraction in (0.5, 1)", lambda confidence: 0.5 < confidence < 1)] = 0.95
    looks: tuple[int, ...] = (5, 10, 20)
    first_seed: int = 0

    def _faults(self) -> Iterable[str]:
        if len(self.looks) == 0 or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            yield f"looks: expected rising numbers of seeds, got {list(self.looks)}"
        elif self.first_seed < 0 or self.first_seed + self.looks[-1] > FIRST_TUNING_SEED:
            last = self.first_seed + self.looks[-1] - 1
            yield f"looks: expected seeds from 0 to {FIRST_TUNING_SEED - 1}, got {self.first_seed} to {last}"


@dataclass(frozen=True, kw_only=True)
class Row(Strict):
    """One row of the ledger: what to measure, what was published, and how it is decided.

    `metric`: what the claim is about. `control`: the deliberate fault of a negative control (conf/controls.yaml).
    `engine`: numpy trains the network in models/scratch.
    """

    name: str
    model: str
    data: str
    recipe: str
    mode: Mode
    published: Published
    rule: Rule
    metric: Metric = "accuracy_percent"
    control: Control = "none"
    engine: Literal["serial", "numpy"] = "serial"

    @property
    def rule_text(self) -> str:
        """What decides the row, such as "accuracy_percent 97.8, margin 0.25, confidence 0.95, looks 5 10 20"."""
        rule, looks = self.rule, " ".join(map(str, self.rule.looks))
        start = f", first seed {rule.first_seed}" if rule.first_seed else ""
        claim = f"{self.metric} {self.published.percent:.{self.published.num_digits}f}"
        return f"{claim}, margin {rule.margin_pp}, confidence {rule.confidence}, looks {looks}{start}"

    def _faults(self) -> Iterable[str]:
        if not self.published.metrics:
            yield f"published.{self.metric}: missing; expected a number, not None"
        for metric in self.published.metrics:
            if metric != self.metric:
                yield f"published.{metric}: metric is {self.metric}, so expected published.{self.metric} alone"
        if self.mode == "evaluate" and self.rule.looks != (1,):
            yield f"rule.looks: mode 'evaluate' is deterministic, so looks is [1], got {list(self.rule.looks)}"
        if self.mode == "train" and self.rule.looks[0] < 2:
            yield f"rule.looks: a standard deviation needs 2 seeds or more, got {list(self.rule.looks)}"


@dataclass(frozen=True, kw_only=True)
class Article(Strict):
    """Where a ledger's claims were published. `names`: by row, what a reader calls it. `notes`: what it says of them,
    a sentence or more.
    """

    title: str
    publisher: str
    names: dict[str, str]
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Results of one row: seed to number of correct predictions, None for a seed that diverged.

    Of another metric than accuracy it is the number of images that the claim counts, or the metric times `num_test`.
    """

    num_correct: Mapping[int, float | None]
    num_test: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement on one row. Percent values are unrounded; None is 'does not apply' or 'unknown'.

    `num_seeds`: the number of seeds in mean, sd and interval, that of the deciding look; later seeds are left out.
    """

    verdict: VerdictName
    reason: str
    num_seeds: int
    mean_percent: float | None = None
    sd_percent: float | None = None
    interval_low_percent: float | None = None
    interval_high_percent: float | None = None
    seeds_needed: int | None = None
