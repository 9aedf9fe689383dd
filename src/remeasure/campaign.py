"""A campaign: the seeds of each row, look by look, until the row is decided; each first look is published at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from remeasure import data, models
from remeasure.collect import SeedResults, from_results, from_run, put_together
from remeasure.observe import Observer
from remeasure.records import RowResults, read_row
from remeasure.rundir import Outcome, Place, finished
from remeasure.spec import Config, DataSpec, Evidence, InputError, Row, RunRecord, RunSpec, Verdict
from remeasure.storage import publish
from remeasure.verdict import agree, judge
from remeasure.workers import Task, Workers

Compose = Callable[[Sequence[str]], Config]


@dataclass(frozen=True, kw_only=True)
class Options:
    """`seeds`: exactly so many a row; None: until it is decided. `adopt`: go on from committed seeds (CONTINUE=1)."""

    seeds: int | None
    budget_seconds: float
    fresh: bool
    adopt: bool


@dataclass(kw_only=True, eq=False)
class RowCampaign:
    """One row under way: one spec, one data fingerprint, one device kind."""

    row: Row
    spec: RunSpec
    committed: RowResults | None
    options: Options
    done: dict[int, SeedResults] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    published: int = 0  # seeds

    def verdict(self) -> Verdict:
        counts = {seed: part.record.num_correct for seed, part in self.done.items()}
        evidence = Evidence(num_correct=counts, num_test=self.spec.data.num_test)
        return judge(evidence, published_percent=self.row.published.accuracy_percent, rule=self.row.rule)

    def wanted(self) -> list[int]:
        """The seeds to train next: those that the current look lacks, none once the row is decided or cannot be."""
        if self.failures or any(part.record.num_correct is None for part in self.done.values()):
            return []  # a seed that crashed or diverged is never replaced
        target = self.options.seeds or self._look()
        return [seed for seed in self._seeds(target) if seed not in self.done and seed not in self.running]

    def _look(self) -> int:
        """The look that is being worked on: 0 once an earlier one decided, the last once all are reached."""
        if self.verdict().verdict not in ("undecided", "not measured"):
            return 0
        leading = next(num for num, seed in enumerate(self._seeds(len(self.done) + 1)) if seed not in self.done)
        return next((look for look in self.row.rule.looks if look > leading), self.row.rule.looks[-1])

    def _seeds(self, num: int) -> range:
        """The first `num` seeds of the row's rule."""
        return range(self.row.rule.first_seed, self.row.rule.first_seed + num)

    def planned(self) -> range:
        """Every seed that the plan may come to."""
        return self._seeds(max(self.options.seeds or 0, self.row.rule.looks[-1]))

    def seconds_per_seed(self, *, device_kind: str) -> float | None:
        """What a seed costs: from this campaign's seeds, else from the committed ones of its spec and device kind."""
        records: Iterable[RunRecord] = [part.record for part in self.done.values()]
        if not self.done and self.committed and self.continues(device_kind=device_kind):
            records = self.committed.records
        seconds = [record.wall_seconds for record in records]
        return sum(seconds) / len(seconds) if seconds else None

    def continues(self, *, device_kind: str) -> bool:
        """Whether the committed record is of the same spec and device kind, so that one could go on from it."""
        if self.committed is None:
            return False
        first = self.committed.records[0]
        return (first.spec_sha256, first.device_kind) == (self.spec.spec_sha256, device_kind)

    def publishable(self) -> bool:
        """Whether results/ may take this campaign: its first look is reached, or the row has no record yet."""
        first_look = self._seeds(self.row.rule.looks[0])
        return bool(self.done) and (self.committed is None or all(seed in self.done for seed in first_look))


@dataclass(frozen=True, kw_only=True)
class NotHere:
    """A row that this machine cannot measure, and why: what it would need."""

    row: Row
    reasons: tuple[str, ...]


class Campaign:
    """Rows measured side by side by worker processes. `say` gets lines for a person."""

    def __init__(
        self, *, place: Place, results: Path, options: Options, observer: Observer, say: Callable[[str], None]
    ) -> None:
        self.place, self.results, self.options, self.observer, self.say = place, results, options, observer, say
        self._trained: dict[tuple[str, int], Outcome] = {}  # by spec_sha256 and seed, in this campaign
        self._sources: dict[str, data.Source | data.DataMissingError] = {}

    def prepare(self, row: Row, *, compose: Compose) -> "RowCampaign | NotHere":
        """What is there of a row already: finished runs of this checkout, and with CONTINUE=1 committed seeds.

        Raises InputError: configs or data files that are there and wrong.
        """
        config = compose([f"{group}={getattr(row, group)}" for group in ("model", "data", "recipe")])
        image_shape, num_classes = config.data.image_shape, config.data.num_classes
        models.build(config.model, image_shape=image_shape, num_classes=num_classes, generator_seed=0)  # or refuse it
        try:
            source = self._source(config.data)
        except data.DataMissingError as missing:
            return NotHere(row=row, reasons=missing.faults)
        spec = config.spec(data_sha256=source.data_sha256)
        campaign = RowCampaign(row=row, spec=spec, committed=read_row(self.results, row=row.name), options=self.options)
        if self.options.adopt and campaign.committed and campaign.continues(device_kind=self.place.device_kind):
            campaign.done |= {part.record.seed: part for part in from_results(campaign.committed)}
        if not self.options.fresh:
            self._find_finished(campaign)
        return campaign

    def _source(self, spec: DataSpec) -> data.Source:
        """The fingerprint of a data set, taken once a campaign; so is a download that failed."""
        if spec.name not in self._sources:
            try:
                self._sources[spec.name] = data.fingerprint(spec, root=self.place.data_root)
            except data.DataMissingError as missing:
                self._sources[spec.name] = missing
        found = self._sources[spec.name]
        if isinstance(found, data.DataMissingError):
            raise found
        return found

    def _find_finished(self, campaign: RowCampaign) -> None:
        for seed in campaign.planned():
            outcome = finished(campaign.spec, seed=seed, place=self.place)
            if outcome and seed not in campaign.done:
                campaign.done[seed] = from_run(outcome, row=campaign.row.name)

    def measure(self, campaigns: Sequence[RowCampaign]) -> None:
        """Train what is wanted, cheapest row first, until every row is decided or the budget is spent."""
        began = time.monotonic()
        for campaign in campaigns:
            self._publish(campaign)
        kind = self.place.device_kind
        order = sorted(campaigns, key=lambda campaign: campaign.seconds_per_seed(device_kind=kind) or float("inf"))
        workers = Workers(self.place)
        try:
            with workers:
                self._work(order, workers=workers, deadline=began + self.options.budget_seconds)
        finally:  # interrupted or not: nothing finished is lost, and nothing is left running in MLflow
            self._drain(workers)
            for campaign in campaigns:
                self._publish(campaign)
                self._track(campaign, running=False)
        for campaign in campaigns:
            if left_out := len(campaign.wanted()):
                self.say(f"{campaign.row.name}: {left_out} more seeds do not fit the budget; the same command goes on")

    def _work(self, order: Sequence[RowCampaign], *, workers: Workers, deadline: float) -> None:
        """Keep every worker busy until there is nothing left to train, or no time."""
        by_name = {campaign.row.name: campaign for campaign in order}
        while True:
            for campaign in order:
                self._start(campaign, workers=workers, seconds_left=deadline - time.monotonic())
            if not workers.active:
                return
            for task, future in workers.finished():
                self._drain(workers)
                self._take(by_name[task.row], task=task, future=future)
            self._drain(workers)

    def _start(self, campaign: RowCampaign, *, workers: Workers, seconds_left: float) -> None:
        """Give idle workers the seeds that this row wants; what another row of the same spec has trained is shared."""
        spec_sha256 = campaign.spec.spec_sha256
        for seed in campaign.wanted():
            if shared := self._trained.get((spec_sha256, seed)):
                self._keep(campaign, outcome=shared)
            elif (spec_sha256, seed) in {(task.spec.spec_sha256, task.seed) for task in workers.active}:
                continue
            elif workers.idle and (campaign.seconds_per_seed(device_kind=self.place.device_kind) or 0.0) < seconds_left:
                if campaign.row.name not in self.observer.parents:
                    self._track(campaign, running=True)
                campaign.running.add(seed)
                workers.submit(Task(row=campaign.row.name, seed=seed, spec=campaign.spec, fresh=self.options.fresh))

    def _drain(self, workers: Workers) -> None:
        for directory, event in workers.events():
            self.observer(directory, event)

    def _take(self, campaign: RowCampaign, *, task: Task, future: Future[Outcome]) -> None:
        """A run ended: keep what it found, or why it failed."""
        campaign.running.discard(task.seed)
        try:
            outcome = self.observer.finish(future.result())
        except InputError:
            raise
        except Exception as error:  # one run's fault; the other rows go on
            campaign.failures.append(f"seed {task.seed}: {type(error).__name__}: {error}")
            self.say(f"{campaign.row.name} failed: {campaign.failures[-1]}")
            return
        self._trained[campaign.spec.spec_sha256, task.seed] = outcome
        self._keep(campaign, outcome=outcome)

    def _keep(self, campaign: RowCampaign, *, outcome: Outcome) -> None:
        """A seed is finished; publish when its look is complete."""
        campaign.done[outcome.record.seed] = from_run(outcome, row=campaign.row.name)
        if not campaign.running and (
            not (wanted := campaign.wanted()) or len(campaign.done) in campaign.row.rule.looks
        ):
            self._publish(campaign)
            self._track(campaign, running=bool(wanted))

    def _publish(self, campaign: RowCampaign) -> None:
        if not campaign.publishable() or campaign.published == len(campaign.done):
            return
        old = None if campaign.published else campaign.committed
        results = put_together(campaign.row.name, seeds=list(campaign.done.values()))
        publish(self.results, row=campaign.row.name, files=results.to_files())
        campaign.published = len(campaign.done)
        if old and (line := compare(old, results, row=campaign.row)):
            self.say(line)

    def _track(self, campaign: RowCampaign, *, running: bool) -> None:
        tracker = self.observer.tracker
        if tracker is None:
            return
        self.observer.parents[campaign.row.name] = self.observer.best_effort.at_once(
            tracker.project_row,
            campaign.row,
            verdict=campaign.verdict(),
            spec_sha256=campaign.spec.spec_sha256,
            device_kind=self.place.device_kind,
            measured="measured here",
            running=running,
        )


def compare(old: RowResults, new: RowResults, *, row: Row) -> str:
    """How a measurement compares with the record it replaces, in one line; "" where nothing new was measured."""
    if {record.finished_at for record in old.records} <= {record.finished_at for record in new.records}:
        return ""
    before, after = (
        [record.accuracy_percent for record in results.records if record.accuracy_percent is not None]
        for results in (old, new)
    )
    if len(before) < 2 or len(after) < 2:
        return ""
    p_value, same = agree(before, after, num_test=new.records[0].num_test, confidence=row.rule.confidence)
    means = [f"{sum(values) / len(values):.3f} % ({len(values)} seeds)" for values in (before, after)]
    outcome = "agree" if same else "differ"
    return f"{row.name}: {means[0]} before, {means[1]} now: they {outcome} (Welch's t-test, p = {p_value:.3f})"
