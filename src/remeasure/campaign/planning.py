"""What a campaign will train: the cost of each row's seeds, timed where it is unknown, and what fits the budget."""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from rich.console import RenderableType

from remeasure.campaign import schedule
from remeasure.campaign.executors.base import Executor
from remeasure.campaign.row import Options, RowCampaign
from remeasure.campaign.schedule import Forecast, Planned
from remeasure.system.startup import num_cores
from remeasure.system.validation import counted
from remeasure.tracking.terminal import duration

Say = Callable[[RenderableType], None]


def plan(campaigns: Sequence[RowCampaign], *, options: Options, workers: Executor, say: Say) -> None:
    """Time the rows whose cost is unknown, and say what fits the budget."""
    for campaign in campaigns:
        if campaign.wanted() and campaign.seconds_per_seed() is None:
            _time(campaign, sharing=campaigns, workers=workers, say=say)
    for campaign in campaigns:
        if not campaign.wanted() and not (options.quiet and not campaign.failures):
            nothing = f"{campaign.verdict().verdict}, nothing to train"
            why = campaign.failures[-1] if campaign.failures else nothing
            say(f"{campaign.row.name}: {counted(len(campaign.done), 'seed')} here, {why}")
    planned = wanted(campaigns, options=options, workers=workers)
    if planned and not options.quiet:
        now = datetime.now().astimezone()
        by_name = {entry.row.name: entry for entry in campaigns}
        devices = dict.fromkeys(by_name[entry.forecast.row].device for entry in planned)
        say(f"on {' and '.join(devices)}:")
        say(schedule.shown(planned, num_cores=workers.num, budget_seconds=options.budget_seconds, now=now))
        for line in schedule.sources({entry.forecast.row: by_name[entry.forecast.row].cost()[1] for entry in planned}):
            say(line)


def wanted(campaigns: Sequence[RowCampaign], *, options: Options, workers: Executor) -> list[Planned]:
    """The rows that need more seeds, cheapest first."""
    forecasts = [
        Forecast(
            row=campaign.row.name,
            why=campaign.why(),
            num_done=len(campaign.done),
            num_cores=workers.cores(campaign.spec),
            seconds=seconds,
        )
        for campaign in campaigns
        if (seconds := campaign.seconds())
    ]
    return schedule.plan(forecasts, num_cores=workers.num, budget_seconds=options.budget_seconds)


def left_out(campaigns: Sequence[RowCampaign], *, options: Options) -> Iterator[str]:
    """A line for each row that needs more seeds after the campaign: they did not fit its budget."""
    for campaign in campaigns:
        if not (seconds := list(campaign.seconds().values())):
            continue
        line = f"{campaign.row.name}: {len(seconds)} more seeds do not fit the budget; "
        if min(seconds) <= options.budget_seconds:
            yield f"{line}the same command goes on"
        else:
            needed = schedule.budget(min(seconds))
            yield f"{line}one takes about {duration(min(seconds))}, so BUDGET={needed} starts it"


def _time(campaign: RowCampaign, *, sharing: Sequence[RowCampaign], workers: Executor, say: Say) -> None:
    """Time a few steps to estimate the cost of a seed, for all rows of this spec."""
    load, num = os.getloadavg()[0], num_cores()
    busy = ": too busy, so the times will be too long" if load >= num / 2 else ""
    line = f"{campaign.row.name}: no seed was timed here before, timing a few steps"
    if not campaign.options.quiet:
        say(f"{line}, at load {load:.1f} on {num} cores{busy}")
    try:
        seconds = workers.seconds_of_seed(campaign.spec, num_seeds=len(campaign.wanted()))
    except SystemExit:
        say(f"{campaign.row.name}: interrupted while it was timed; no seed has begun")
        raise
    except Exception as error:  # one row's fault; the others go on
        campaign.fail("timing it", error, say=say)
        return
    for entry in sharing:
        if entry.spec.spec_sha256 == campaign.spec.spec_sha256:
            entry.timed_seconds = seconds
