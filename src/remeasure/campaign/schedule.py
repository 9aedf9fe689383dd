"""Which seeds fit the budget, in which order, and the plan as a table for the terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remeasure.tracking.terminal import duration

Seed = tuple[str, int]  # spec_sha256 and number


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a row still has to train: `seconds` of each seed, on `num_cores` cores. `num_done` seeds are finished."""

    row: str
    num_done: int
    num_cores: int
    seconds: Mapping[Seed, float]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A row in the plan: `seconds_in_all` alone, `seconds_needed` after the rows before it, and how many seeds fit."""

    forecast: Forecast
    seconds_in_all: float
    seconds_needed: float
    num_fit: int


def plan(forecasts: Sequence[Forecast], *, num_cores: int, budget_seconds: float) -> list[Planned]:
    """The rows, cheapest first; seeds that two of them share are trained once."""
    cost = {entry.row: max(ends([entry], num_cores=num_cores).values()) for entry in forecasts}
    order = sorted(forecasts, key=lambda entry: cost[entry.row])
    needed = ends(order, num_cores=num_cores)
    within = ends(order, num_cores=num_cores, budget_seconds=budget_seconds)
    return [
        Planned(
            forecast=entry,
            seconds_in_all=cost[entry.row],
            seconds_needed=max(needed[seed] for seed in entry.seconds),
            num_fit=sum(seed in within for seed in entry.seconds),
        )
        for entry in order
    ]


def ends(forecasts: Sequence[Forecast], *, num_cores: int, budget_seconds: float = math.inf) -> dict[Seed, float]:
    """When each seed ends, in seconds from now, without the seeds that would end after the budget.

    Each seed in turn takes the cores that become free first.
    """
    free, found = [0.0] * num_cores, dict[Seed, float]()
    for entry in forecasts:
        for seed, seconds in entry.seconds.items():
            free.sort()
            end = free[entry.num_cores - 1] + seconds
            if seed not in found and end <= budget_seconds:
                free[: entry.num_cores] = [end] * entry.num_cores
                found[seed] = end
    return found


def table(planned: Sequence[Planned], *, budget_seconds: float) -> Iterator[str]:
    """The plan as lines of text."""
    heading = ("row", "seeds here", "to train", "a seed", "in all", f"in {duration(budget_seconds)}")
    cells = [heading, *(_cells(entry) for entry in planned)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    for name, *numbers, fits in cells:
        right = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
        yield f"{name:<{widths[0]}}  {right}  {fits}"


def sources(by_row: Mapping[str, str]) -> Iterator[str]:
    """Where the times of a seed come from, a line for each source."""
    for source in dict.fromkeys(by_row.values()):
        yield f"a seed's time is from {source}: {', '.join(row for row in by_row if by_row[row] == source)}"


def _cells(entry: Planned) -> tuple[str, ...]:
    seconds = entry.forecast.seconds
    num = len(seconds)
    fits = "fits"
    if entry.num_fit < num:
        some = f"{entry.num_fit} of {num} seeds fit" if entry.num_fit else "does not fit"
        fits = f"{some}; BUDGET={budget(entry.seconds_needed)} would do"
    numbers = (duration(max(seconds.values())), duration(entry.seconds_in_all))
    return entry.forecast.row, str(entry.forecast.num_done), str(num), *numbers, fits


def budget(seconds: float) -> str:
    """The seconds as BUDGET is written, rounded up: 45s, 12m, 3.5h."""
    if seconds <= 90:
        return f"{math.ceil(seconds)}s"
    return f"{math.ceil(seconds / 60)}m" if seconds < 6000 else f"{math.ceil(seconds / 360) / 10:g}h"
