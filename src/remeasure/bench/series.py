"""Results of a benchmark: repeated values, their ratios, and the targets of the ratios."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Unit = Literal["s", "ms", "MiB", "percent", "images/s", "GFLOP/s", "count"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`data_root`: as in Place; `scratch`: a temporary folder, deleted afterwards.

    `num_rounds`: how often each contestant is timed. `tiny`: the rehearsal on little data, about a minute.
    """

    project: Path
    data_root: Path
    scratch: Path
    num_rounds: int
    tiny: bool


@dataclass(frozen=True, kw_only=True)
class Series:
    """One contestant's values, in the order they were taken: value i is of round i."""

    name: str
    unit: Unit
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`value`: the ratio of two medians; `low`, `high`: the smallest and the largest ratio of a single round.

    `target`: in words, such as "at least 6", "" for none; `met`: whether `value` meets it.
    """

    name: str
    value: float
    low: float
    high: float
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question that the benchmark answers. `remarks`: sentences on what was done and what a figure leaves out."""

    name: str
    question: str
    series: tuple[Series, ...]
    ratios: tuple[Ratio, ...] = ()
    remarks: tuple[str, ...] = ()


Measure = Callable[[Setting], Part]


def ratio(
    name: str, over: Series, under: Series, *, at_least: float | None = None, at_most: float | None = None
) -> Ratio:
    """The ratio over / under, with its target if there is one. Rounds are paired if both have equally many."""
    value = over.median / under.median
    paired = len(over.values) == len(under.values)
    each = [a / b for a, b in zip(over.values, under.values, strict=True)] if paired else [value]
    target = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}" if at_most is not None else ""
    met = value >= at_least if at_least is not None else value <= at_most if at_most is not None else None
    return Ratio(name=name, value=value, low=min(each), high=max(each), target=target, met=met)


def interleaved(contestants: Mapping[str, Callable[[], float]], *, num_rounds: int) -> dict[str, list[float]]:
    """The values of each contestant, one a round; each round starts with another one, so that none is always first."""
    names, values = list(contestants), {name: list[float]() for name in contestants}
    for index in range(num_rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            values[name].append(contestants[name]())
    return values
