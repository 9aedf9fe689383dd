"""Which seeds fit the budget, in which order, and the plan as a table for the terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Group, RenderableType

from remeasure.system.console import Fitting, grid
from remeasure.system.validation import counted
from remeasure.tracking.terminal import duration

Seed = tuple[str, int]  # spec_sha256 and number
HEADING = ("row", "why", "seeds here", "to train", "a seed", "in all", "fits")
# The columns of it from a wide to a narrow terminal: the first that fits is shown.
LAYOUTS = (range(7), (0, 1, 3, 5, 6), (0, 2, 3, 4, 5, 6), (0, 3, 5, 6))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a row still has to train: `seconds` of each seed, on `num_cores` cores. `num_done` seeds are finished.

    `why`: in words.
    """

    row: str
    why: str
    num_done: int
    num_cores: int
    seconds: Mapping[Seed, float]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A row in the plan: `seconds_in_all` alone, `seconds_needed` after the rows before it, and which seeds fit.

    `seconds_to_fit`: until those that fit are done.
    """

    forecast: Forecast
    seconds_in_all: float
    seconds_needed: float
    fit: frozenset[Seed]
    seconds_to_fit: float


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
            fit=frozenset(entry.seconds.keys() & within.keys()),
            seconds_to_fit=max((within[seed] for seed in entry.seconds if seed in within), default=0.0),
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


def shown(planned: Sequence[Planned], *, num_cores: int, budget_seconds: float, now: datetime) -> RenderableType:
    """The plan for a terminal: one line in all, and one for each row, in the order in which they are trained."""
    num_seeds = len(frozenset[Seed]().union(*(entry.fit for entry in planned)))
    last = max(entry.seconds_to_fit for entry in planned)
    fit = f"{counted(num_seeds, 'seed')} {'fits' if num_seeds == 1 else 'fit'}"
    line = f"{fit} the budget of {duration(budget_seconds)}; {counted(num_cores, 'worker')}"
    if last:
        line += f"; ends about {_clock(last, now=now)}"
    tables = [grid(*(HEADING[number] for number in layout)) for layout in LAYOUTS]
    for entry in planned:
        cells = _cells(entry, now=now)
        for table, layout in zip(tables, LAYOUTS, strict=True):
            table.add_row(*(cells[number] for number in layout))
    for table in tables:
        for column in table.columns:
            column.justify = "right" if column.header in HEADING[2:-1] else "left"
    return Group(line, Fitting(*tables))


def sources(by_row: Mapping[str, str]) -> Iterator[str]:
    """Where the times of a seed come from, a line for each source."""
    for source in dict.fromkeys(by_row.values()):
        yield f"a seed's time is from {source}: {', '.join(row for row in by_row if by_row[row] == source)}"


def _cells(entry: Planned, *, now: datetime) -> tuple[str, ...]:
    seconds = entry.forecast.seconds
    num = len(seconds)
    fits = f"by about {_clock(entry.seconds_needed, now=now)}"
    if (num_fit := len(entry.fit)) < num:
        some = f"{num_fit} of {num} seeds fit" if num_fit else "does not fit"
        fits = f"{some}; BUDGET={budget(entry.seconds_needed)} would do"
    numbers = (duration(max(seconds.values())), duration(entry.seconds_in_all))
    return entry.forecast.row, entry.forecast.why, str(entry.forecast.num_done), str(num), *numbers, fits


def _clock(seconds: float, *, now: datetime) -> str:
    """The time of day so many seconds from now, such as 14:05, with the date if that is another day."""
    at = now + timedelta(seconds=seconds)
    return f"{at:%H:%M}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"


def budget(seconds: float) -> str:
    """The seconds as BUDGET is written, rounded up: 45s, 12m, 3.5h."""
    if seconds <= 90:
        return f"{math.ceil(seconds)}s"
    return f"{math.ceil(seconds / 60)}m" if seconds < 6000 else f"{math.ceil(seconds / 360) / 10:g}h"
