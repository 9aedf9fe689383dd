"""The simulation of a large table: workers that stay are the ideal, those that vanish lose some seconds."""

import math
import random

from remeasure.bench import scaling

START, INTERVAL = scaling.START_SECONDS, scaling.CHECKPOINT_SECONDS


def simulate(order: list[float], *, lifetime_seconds: float) -> scaling.Simulated:
    return scaling.simulate(order, lifetime_seconds=lifetime_seconds, draws=random.Random(1))


def test_equal_runs_on_workers_that_stay_leave_no_core_idle() -> None:
    found = simulate([50.0] * 3 * scaling.NUM_WORKERS, lifetime_seconds=math.inf)
    assert found == scaling.Simulated(seconds=3 * (START + 50.0), lost_seconds=0.0, num_vanished=0)


def test_a_worker_that_vanishes_loses_less_than_the_interval_between_checkpoints() -> None:
    order = [600.0] * 10 * scaling.NUM_WORKERS
    found = simulate(order, lifetime_seconds=3600.0)
    assert found.num_vanished > 0
    assert 0 < found.lost_seconds < INTERVAL * found.num_vanished
    assert found.seconds > simulate(order, lifetime_seconds=math.inf).seconds


def test_the_order_is_the_schedulers_and_the_costs_are_the_committed_ones() -> None:
    measured = scaling.costs()
    assert len(measured) > 5
    costs = [cost for seconds in measured.values() for cost in seconds]
    assert all(cost > 0 for cost in costs)
    (forecast, *_) = scaling.table(costs, draws=random.Random(0))
    assert set(forecast.seconds.values()) <= set(costs)
    assert len(forecast.seconds) == scaling.SEEDS_PER_ROW
