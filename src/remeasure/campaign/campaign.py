"""A campaign trains the seeds of each row, look by look, until the row is decided, and publishes complete looks."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import RenderableType

from remeasure.campaign import planning
from remeasure.campaign.collect import from_run
from remeasure.campaign.executors.base import Executor, Task
from remeasure.campaign.executors.local import Workers
from remeasure.campaign.row import Compose, NotHere, Options, RowCampaign, config_of
from remeasure.campaign.schedule import Seed
from remeasure.config.resolve import Fingerprint, identify, network_of, remembered
from remeasure.data import fingerprint
from remeasure.judging.comparison import compare
from remeasure.judging.publish import offer
from remeasure.judging.reader import read_row
from remeasure.judging.records import SeedResults, from_results, put_together
from remeasure.judging.rules import first_rules
from remeasure.judging.table import other_configs
from remeasure.runs import code, timing
from remeasure.runs.folder import Outcome, Place, finished, is_under_way, other_code, participants
from remeasure.runs.provenance import device_name
from remeasure.spec.base import InputError, gathered, refuse
from remeasure.spec.claim import Row
from remeasure.spec.run import RunSpec
from remeasure.system.locks import Presence, held_folder
from remeasure.tracking.content.rows import campaign_name
from remeasure.tracking.observer import Observers, Standing, State
from remeasure.training.engines.base import engine_of, find_world, refuse_callbacks

ON_THE_CPU = "CUDA_VISIBLE_DEVICES= measures it here, on the CPU"


@dataclass(kw_only=True, eq=False)
class Campaign:
    """Rows measured side by side by the workers of `new_workers`.

    `say` prints for the user. `retable` brings the table up to date with results/ each time a row is published.
    `suite`: as in Standing.
    """

    place: Place
    results: Path
    options: Options
    observers: Observers
    say: Callable[[RenderableType], None]
    retable: Callable[[], None] = lambda: None
    suite: str = ""
    new_workers: Callable[[Place], Executor] = Workers
    _trained: dict[Seed, Outcome] = field(default_factory=dict, init=False)  # in this campaign
    _present: dict[str, Presence] = field(default_factory=dict, init=False)  # by row
    _elsewhere: set[tuple[str, int]] = field(default_factory=set, init=False)  # (row, seed) of another process, now
    _told: set[str] = field(default_factory=set, init=False)  # data that differ and rows that are shared, already told
    _fingerprint: Fingerprint = field(default_factory=remembered, init=False)

    def prepare(self, row: Row, *, compose: Compose) -> RowCampaign | NotHere:
        """The row with the seeds it has: finished runs of this checkout and, with CONTINUE=1, committed seeds.

        NotHere if this machine cannot measure it. Raises InputError: configs or data files that exist and are wrong.
        """
        config = config_of(row, compose=compose, options=self.options)
        asked = config.spec(data_sha256="")
        if asked.mode != row.mode:
            raise InputError(f"row {row.name}: mode is {row.mode}, but recipe {row.recipe} is for mode {asked.mode}")
        if others := other_configs(row, asdict(asked)):
            raise InputError(f"row {row.name}: `name:` inside its configs says {others}; correct it there")
        if faults := list(engine_of(asked).device_faults(self.place.device_kind)):
            return NotHere(row=row, missing=((*faults, ON_THE_CPU),))
        place = self.place
        code.remember(asked)
        num_devices = find_world(asked, devices=place.devices, num_nodes=None, device_kind=place.device_kind).size
        spec = identify(config, data_root=place.data_root, device_kind=place.device_kind, fingerprint=self._fingerprint)
        if not isinstance(spec, RunSpec):
            return NotHere(row=row, missing=tuple(spec))
        if (departs := fingerprint.departure(spec.data, spec.data_sha256)) and departs not in self._told:
            self._told.add(departs)
            self.say(departs)
        faults = []
        with gathered(faults):
            network_of(config)
        with gathered(faults):
            refuse_callbacks(asked)
        refuse(faults)
        with held_folder(self.results):  # another campaign may be replacing it
            committed = read_row(self.results, row=row.name)
        device = device_name(place.device_kind, num=num_devices)
        campaign = RowCampaign(row=row, spec=spec, committed=committed, options=self.options, device=device)
        if self.options.adopt and campaign.committed:
            if campaign.continues(device_kind=place.device_kind):
                campaign.done |= {part.record.seed: part for part in from_results(campaign.committed)}
                campaign.adopted, campaign.offered = frozenset(campaign.done), len(campaign.done)
                campaign.published = True
                commit = campaign.committed.records[-1].commit
                if differs := code.changed_since(commit, project=place.project):
                    self.say(f"{row.name}: goes on from seeds of commit {commit[:7]}; here {differs}")
            else:
                self.say(f"{row.name}: no committed seed is adopted: spec, device, metric or your own code differs")
        if not self.options.fresh:
            self._find_finished(campaign)
        return campaign

    def _find_finished(self, campaign: RowCampaign) -> None:
        faults, others = list[str](), list[str]()
        for seed in campaign.planned():
            outcome = None
            with gathered(faults):
                outcome = finished(campaign.spec, seed=seed, place=self.place)
            if outcome and seed not in campaign.done:
                campaign.done[seed] = self._part(campaign, self.observers.keep(outcome))
                campaign.has_grown |= seed in campaign.running
            elif (share := timing.share_left(campaign.spec, seed=seed, place=self.place)) < 1:
                campaign.shares_left[seed] = share
            elif differs := other_code(campaign.spec, seed=seed, place=self.place):
                others.append(differs)
        if others:
            what = f"{len(others)} of the seeds here were made by other code ({others[-1]})"
            self.say(f"{campaign.row.name}: {what}: they begin anew")
        refuse(faults)

    def plan(self, campaigns: Sequence[RowCampaign]) -> None:
        """Say what would be trained."""
        with self.new_workers(self.place) as workers:
            planning.plan(campaigns, options=self.options, workers=workers, say=self.say)

    def measure(self, campaigns: Sequence[RowCampaign]) -> None:
        """Train what is wanted and fits the budget, cheapest row first, until every row is decided or none fits."""
        for campaign in campaigns:
            self._publish(campaign)
        workers, interrupted = self.new_workers(self.place), True
        by_name = {campaign.row.name: campaign for campaign in campaigns}
        try:
            with workers:
                planning.plan(campaigns, options=self.options, workers=workers, say=self.say)
                deadline = time.monotonic() + self.options.budget_seconds
                workers.work(
                    partial(self._start_wanted, campaigns, workers=workers, deadline=deadline),
                    take=lambda task, future: self._take(by_name[task.asked_by], task=task, future=future),
                    watch=self.observers,
                )
            interrupted = False
        finally:  # on interruption, too: publish finished seeds, tell the observers how each row ended
            workers.drain(self.observers)
            with ExitStack() as ending:  # calls all of them, even if one fails; each row's in reverse order
                for campaign in campaigns:
                    ending.callback(self._leave, campaign, interrupted=interrupted)
                    ending.callback(self._tell, campaign)
                    ending.callback(self._publish, campaign)
                    if campaign.running and not self.options.fresh:  # else runs of an earlier start would be taken
                        ending.callback(self._find_finished, campaign)
        for line in planning.left_out(campaigns, options=self.options):
            self.say(line)

    def _start_wanted(self, campaigns: Sequence[RowCampaign], *, workers: Executor, deadline: float) -> bool:
        """Start seeds on idle cores; returns whether another process trains seeds that may be reused."""
        by_name = {campaign.row.name: campaign for campaign in campaigns}
        self._elsewhere.clear()
        for entry in planning.wanted(campaigns, options=self.options, workers=workers):
            seconds_left = deadline - time.monotonic()
            self._start(by_name[entry.forecast.row], campaigns=campaigns, workers=workers, seconds_left=seconds_left)
        return bool(self._elsewhere)

    def _start(
        self,
        campaign: RowCampaign,
        *,
        campaigns: Sequence[RowCampaign],
        workers: Executor,
        seconds_left: float,
    ) -> None:
        """Start this row's wanted seeds on idle cores; reuse the runs of another row with the same spec."""
        width = campaign.spec.engine_width
        for key, seconds in campaign.seconds().items():
            if shared := self._trained.get(key):
                self._keep(campaign, outcomes=[shared])
            elif any(key in task.keys for task in workers.active):
                continue
            elif (
                workers.fits(campaign.spec)
                and seconds * width <= seconds_left
                and (workers.attaches(campaign.spec, seed=key[1]) or self._is_ours(campaign, seed=key[1]))
            ):
                owner = _first(key, seeds_of=RowCampaign.wanted, campaigns=campaigns)
                name = _first(key, seeds_of=RowCampaign.lacking, campaigns=campaigns).row.name
                sharing = [entry for entry in campaigns if entry.spec.spec_sha256 == key[0]]
                keeps = [seed for seed in owner.spec.together(key[1]) if any(each.keeps(seed) for each in sharing)]
                self._submit(owner, seed=key[1], name=name, keeps=keeps, workers=workers)

    def _is_ours(self, campaign: RowCampaign, *, seed: int) -> bool:
        """Whether to train this seed here: no other process trains it or has finished it; a finished run is reused."""
        if self.options.fresh:
            return True
        outcome = finished(campaign.spec, seed=seed, place=self.place)
        if outcome:
            self._keep(campaign, outcomes=[self.observers.keep(outcome)])
        elif is_under_way(campaign.spec, seed=seed, place=self.place):
            self._elsewhere.add((campaign.row.name, seed))
            if campaign.row.name not in self._told:
                self._told.add(campaign.row.name)
                self.say(f"{campaign.row.name}: another process trains it as well; the two divide its seeds")
        else:
            return True
        return False

    def _submit(self, campaign: RowCampaign, *, seed: int, name: str, keeps: Sequence[int], workers: Executor) -> None:
        """`name`: the row the run is recorded for; not `campaign`'s if a row that shares the seed has failed."""
        if campaign.row.name not in self._present:
            self._present[campaign.row.name] = self._presence(campaign)
            self._track(campaign, state="running")
        campaign.running.update(campaign.spec.together(seed))
        workers.submit(
            Task(
                row=name,
                seed=seed,
                spec=campaign.spec,
                fresh=self.options.fresh,
                asked_by=campaign.row.name,
                keeps=tuple(keeps),
            )
        )

    def _presence(self, campaign: RowCampaign) -> Presence:
        kind, sha256 = self.place.device_kind, campaign.spec.spec_sha256
        note = campaign_name(campaign.row.name, spec_sha256=sha256, device_kind=kind)
        return Presence(participants(self.place.runs, campaign=note), note=note)

    def _leave(self, campaign: RowCampaign, *, interrupted: bool) -> None:
        """Leave a row that has begun; the last process that works on it tells the observers how it ended."""
        present = self._present.pop(campaign.row.name, None)
        if (present or campaign.done) and (present or self._presence(campaign)).leave():
            self._track(campaign, state=campaign.ending(interrupted=interrupted))

    def _take(self, campaign: RowCampaign, *, task: Task, future: Future[list[Outcome]]) -> None:
        """Keep the outcomes of a task that has ended, or why it failed."""
        campaign.running.difference_update(task.spec.together(task.seed))
        try:
            outcomes = [self.observers.keep(outcome) for outcome in future.result()]
        except Exception as error:  # one run's fault; the other rows go on
            self._fail(campaign, error, seed=task.seed)
            return
        made_by = {code.kept(outcome.directory) for outcome in outcomes} - {""}
        if made_by - {code.code_sha256(campaign.spec)}:  # edited before its worker began
            differs = code.changed(outcomes[0].directory, spec=campaign.spec)
            self._fail(campaign, f"the code has changed since the start ({differs}); start again", seed=task.seed)
            return
        self._trained |= {(campaign.spec.spec_sha256, outcome.record.seed): outcome for outcome in outcomes}
        self._keep(campaign, outcomes=outcomes)

    def _fail(self, campaign: RowCampaign, error: Exception | str, *, seed: int) -> None:
        campaign.fail(f"seed {seed}", error, say=self.say)
        if campaign.row.name in self._present:
            self._track(campaign, state=campaign.state())

    def _keep(self, campaign: RowCampaign, *, outcomes: Sequence[Outcome]) -> None:
        """Add finished seeds, publish them if they may replace the record, and tell how a row ended."""
        campaign.done |= {outcome.record.seed: self._part(campaign, outcome) for outcome in outcomes}
        campaign.has_grown = True
        self._publish(campaign)
        if campaign.has_what_was_asked():
            self._tell(campaign)
        self._track(campaign, state=campaign.state())

    def _part(self, campaign: RowCampaign, outcome: Outcome) -> SeedResults:
        """The seed's results; its configs have the names that the ledger has, by which no run differs from another."""
        row = campaign.row
        part = from_run(outcome, row=row.name, metric=row.metric)
        named = {key: {**part.spec[key], "name": getattr(row, key)} for key in ("model", "data", "recipe")}
        return replace(part, spec={**part.spec, **named})

    def _publish(self, campaign: RowCampaign) -> None:
        """Offer the seeds to results/, once for each number of them, and compare them with the record before."""
        fresh = self.options.fresh and campaign.has_what_was_asked() and not campaign.is_lost
        if not campaign.done or (campaign.offered == len(campaign.done) and not (fresh and not campaign.published)):
            return
        finished = {record.seed: record.finished_at for record in campaign.records}
        campaign.under(first_rules(self.place.runs, row=campaign.row, finished=finished))
        new = put_together(campaign.row.name, seeds=list(campaign.done.values()))
        campaign.published = offer(self.results, new, row=campaign.row, fresh=fresh, then=self.retable)
        campaign.offered = len(campaign.done)
        if campaign.committed:
            campaign.comparison = compare(campaign.committed, new, confidence=campaign.row.rule.confidence)

    def _tell(self, campaign: RowCampaign) -> None:
        """Say where a row stands that has new seeds here, or others than results/ holds; not twice the same line."""
        has_news = campaign.has_grown or campaign.comparison or not campaign.published
        if campaign.done and has_news and (line := campaign.standing()) != campaign.told:
            campaign.told = line
            self.say(line)

    def _track(self, campaign: RowCampaign, *, state: State) -> None:
        """Tell the observers how the row stands."""
        self.observers.row(
            Standing(
                row=campaign.row,
                verdict=campaign.verdict(),
                num_seeds=len(campaign.done),
                num_asked=len(campaign.done) + len(campaign.lacking()),
                spec_sha256=campaign.spec.spec_sha256,
                device_kind=self.place.device_kind,
                measured="measured here",
                agreement=campaign.comparison,
                state=state,
                seeds=() if state == "running" else tuple(campaign.done.values()),
                report=self.results / "report.html",
                suite=self.suite,
            )
        )


def _first(key: Seed, *, seeds_of: Callable[[RowCampaign], list[int]], campaigns: Sequence[RowCampaign]) -> RowCampaign:
    """The first of `campaigns`, in order of the ledger, with this spec and with this seed in `seeds_of`."""
    return next(entry for entry in campaigns if entry.spec.spec_sha256 == key[0] and key[1] in seeds_of(entry))
