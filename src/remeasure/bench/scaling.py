"""`python -m remeasure.bench.scaling`: what a seed of each row costs, and how long a large table would take on many
workers, simulated.

The order is that of the campaign's own scheduler (campaign/schedule.py), the costs of the seeds are those of the
committed records. Nothing is trained. docs/scaling.md has what it prints.
"""

import heapq
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remeasure.campaign.schedule import Forecast, plan
from remeasure.judging import ledger
from remeasure.judging.reader import read_runs
from remeasure.system import paths
from remeasure.tracking.terminal import duration

NUM_ROWS, SEEDS_PER_ROW, NUM_WORKERS = 1000, 20, 64
CHECKPOINT_SECONDS = 30.0  # what a worker that vanishes loses at most (training/checkpoints.py)
START_SECONDS = 10.0  # until a new process trains: it imports torch
ABSENT_SECONDS = 60.0  # until a spot machine is replaced


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """`seconds` until the last seed is done; `lost_seconds` of training done twice, `num_vanished` workers."""

    seconds: float
    lost_seconds: float
    num_vanished: int


def costs() -> dict[str, list[float]]:
    """Row with committed records to the seconds of each of its seeds."""
    rows, _ = ledger.read_sound(paths.conf_dir() / paths.LEDGER)
    records = {name: read_runs(paths.project_root() / "results", row=name) for name in rows}
    return {name: [record.wall_seconds for record in found] for name, found in records.items() if found}


def table(seconds: Sequence[float], *, draws: random.Random) -> list[Forecast]:
    """A table of rows, each of which costs what one of the committed rows does."""
    return [
        Forecast(
            row=f"row-{number}",
            why="",
            num_done=0,
            num_cores=1,
            seconds=dict.fromkeys(((f"row-{number}", seed) for seed in range(SEEDS_PER_ROW)), draws.choice(seconds)),
        )
        for number in range(NUM_ROWS)
    ]


def simulate(order: Sequence[float], *, lifetime_seconds: float, draws: random.Random) -> Simulated:
    """Runs of these costs on the workers, in this order; a worker vanishes after an exponential time of this mean.

    Its run goes on from its last checkpoint on the worker that is idle next.
    """
    free = [(0.0, number) for number in range(NUM_WORKERS)]
    vanishes = [lifetime_seconds * draws.expovariate(1.0) for _ in free]
    waiting, lost, num_vanished, ends = list(reversed(order)), 0.0, 0, 0.0
    while waiting:
        now, number = heapq.heappop(free)
        left = waiting.pop()
        end = now + START_SECONDS + left
        if end <= vanishes[number]:
            ends = max(ends, end)
            heapq.heappush(free, (end, number))
            continue
        trained = max(0.0, vanishes[number] - now - START_SECONDS)
        lost += trained % CHECKPOINT_SECONDS
        waiting.append(left - (trained - trained % CHECKPOINT_SECONDS))
        back = vanishes[number] + ABSENT_SECONDS
        vanishes[number] = back + lifetime_seconds * draws.expovariate(1.0)
        num_vanished += 1
        heapq.heappush(free, (back, number))
    return Simulated(seconds=ends, lost_seconds=lost, num_vanished=num_vanished)


def report() -> Iterator[str]:
    """Lines of Markdown."""
    measured = costs()
    yield "| row | seeds | a seed: median | fastest | slowest |"
    yield "| --- | --- | --- | --- | --- |"
    for row, seconds in sorted(measured.items(), key=lambda item: statistics.median(item[1])):
        cells = (duration(value) for value in (statistics.median(seconds), min(seconds), max(seconds)))
        yield f"| {row} | {len(seconds)} | {' | '.join(cells)} |"
    yield ""
    draws = random.Random(0)
    forecasts = table([statistics.median(seconds) for seconds in measured.values()], draws=draws)
    began = time.process_time()
    planned = plan(forecasts, num_cores=NUM_WORKERS, budget_seconds=math.inf)
    seconds_of_plan = time.process_time() - began
    order = [seconds for entry in planned for seconds in entry.forecast.seconds.values()]
    ideal = (sum(order) + START_SECONDS * len(order)) / NUM_WORKERS
    size = f"{NUM_ROWS:,} rows, {len(order):,} seeds, {NUM_WORKERS} workers"
    yield f"{size}; the plan took {seconds_of_plan:.1f} s of processor time"
    yield ""
    yield "| workers | until the last seed | beside the ideal | vanished | trained twice |"
    yield "| --- | --- | --- | --- | --- |"
    yield f"| the ideal: no idle core | {duration(ideal)} | 1.00 | | |"
    cases = {"that stay": math.inf, "that live 4 h": 14400.0, "that live 1 h": 3600.0, "that live 15 min": 900.0}
    for name, lifetime in cases.items():
        found = simulate(order, lifetime_seconds=lifetime, draws=draws)
        shares = f"{found.seconds / ideal:.2f} | {found.num_vanished} | {found.lost_seconds / sum(order):.2%}"
        yield f"| {name} | {duration(found.seconds)} | {shares} |"


if __name__ == "__main__":
    print("\n".join(report()))
