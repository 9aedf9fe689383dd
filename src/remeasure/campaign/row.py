"""One row of a campaign: its seeds that are done, running and wanted, and what they cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remeasure.campaign.schedule import Seed
from remeasure.judging import metrics
from remeasure.judging.records import RowResults, SeedResults
from remeasure.judging.table import verdict_of
from remeasure.runs import code
from remeasure.spec.base import InputError, Keep
from remeasure.spec.claim import Row, Verdict
from remeasure.spec.config import Config
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system.validation import counted
from remeasure.tracking.observer import State
from remeasure.training.engines.base import can_be_batched

Compose = Callable[[Sequence[str]], Config]


@dataclass(frozen=True, kw_only=True)
class Options:
    """`seeds`: exactly this many a row; None: until it is decided. `adopt`: go on from committed seeds (CONTINUE=1).

    `together`: train this many seeds as one, where the batched engine can; more than 1 changes the spec. `keep`: which
    seeds keep their trained network. `quiet`: the plan is not shown.
    """

    seeds: int | None
    together: int
    budget_seconds: float
    fresh: bool
    adopt: bool
    keep: Keep = "first"
    quiet: bool = False


def config_of(row: Row, *, compose: Compose, options: Options) -> Config:
    """The row's config; with several seeds together, if the options and the batched engine say so."""
    choices = [f"{group}={getattr(row, group)}" for group in ("model", "data", "recipe", "control", "engine")]
    config = compose(choices)
    if options.together > 1 and can_be_batched(config.spec(data_sha256="")):
        return compose([*choices, "engine=batched", f"engine_width={options.together}"])
    return config


@dataclass(kw_only=True, eq=False)
class RowCampaign:
    """One row under way: one spec, one data fingerprint, one device kind. `device`: what trains a seed, by name."""

    row: Row
    spec: RunSpec
    committed: RowResults | None
    options: Options
    device: str
    done: dict[int, SeedResults] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    wrong_input: bool = False  # whether one of them is a fault of the input, which its other seeds would meet, too
    adopted: frozenset[int] = frozenset()  # the seeds from the committed record (CONTINUE=1)
    has_grown: bool = False  # whether a seed was finished since the start
    offered: int = 0  # number of seeds when they were last offered to results/
    published: bool = False  # whether results/ took them
    comparison: str = ""  # with the record that was there before
    told: str = ""  # the line on its seeds that the terminal showed last
    timed_seconds: float | None = None  # of one seed, estimated from a few steps
    shares_left: dict[int, float] = field(default_factory=dict)  # of the seeds that resume from a checkpoint

    @property
    def records(self) -> list[RunRecord]:
        return [part.record for part in self.done.values()]

    @property
    def is_lost(self) -> bool:
        """Whether a seed crashed or diverged: it is never replaced."""
        return bool(self.failures) or any(record.num_correct is None for record in self.records)

    def verdict(self) -> Verdict:
        return verdict_of(self.row, records=self.records)

    def under(self, rules: Mapping[int, str]) -> None:
        """Let the records name the rule by seed, but for those of results/, which name their own."""
        committed = {record.seed: record.rule for record in self.committed.records} if self.committed else {}
        for seed, part in self.done.items():
            rule = committed[seed] if seed in committed else rules[seed]
            self.done[seed] = replace(part, record=replace(part.record, rule=rule))

    def fail(self, where: str, error: Exception | str, *, say: Callable[[str], None]) -> None:
        """Note that one of its runs failed, and say so, once: the row is lost, and the others go on."""
        raised = isinstance(error, Exception) and not isinstance(error, InputError)
        fault = f": {type(error).__name__ + ': ' if raised else ''}{error}"
        is_new = not any(failure.endswith(fault) for failure in self.failures)
        self.failures.append(f"{where}{fault}")
        self.wrong_input |= isinstance(error, InputError)
        if is_new:
            say(f"{self.row.name} failed: {self.failures[-1]}")

    def state(self) -> State:
        """Whether the row is under way; if not, how it ended."""
        return "running" if self.running or self.wanted() else self.ending(interrupted=False)

    def ending(self, *, interrupted: bool) -> State:
        """How the row ended. `interrupted`: the whole campaign was, perhaps after this row had ended."""
        if interrupted and (self.running or self.wanted()):
            return "interrupted"
        return "failed" if self.is_lost else "finished"

    def wanted(self) -> list[int]:
        """The seeds to train next: those that the current look lacks; none if the row is decided or cannot be."""
        if self.is_lost:
            return []
        return [seed for seed in self.lacking() if seed not in self.running]

    def lacking(self) -> list[int]:
        """The seeds that the current look lacks, including running ones, even if a seed has failed."""
        return [seed for seed in self._seeds(self.options.seeds or self._look()) if seed not in self.done]

    def _look(self) -> int:
        """Number of seeds of the current look: 0 once the row is decided, the last look once all are complete."""
        if self.verdict().verdict not in ("undecided", "not measured"):
            return 0
        leading = next(num for num, seed in enumerate(self._seeds(len(self.done) + 1)) if seed not in self.done)
        return next((look for look in self.row.rule.looks if look > leading), self.row.rule.looks[-1])

    def _seeds(self, num: int) -> range:
        """The first `num` seeds of the row's rule."""
        return range(self.row.rule.first_seed, self.row.rule.first_seed + num)

    def planned(self) -> range:
        """Every seed that the plan may use."""
        return self._seeds(max(self.options.seeds or 0, self.row.rule.looks[-1]))

    def keeps(self, seed: int) -> bool:
        """Whether this seed keeps its trained network."""
        first = self.options.keep == "first" and seed == self.row.rule.first_seed
        return first or self.options.keep == "all"

    def why(self) -> str:
        """Why it is trained, in words."""
        if self.options.seeds:
            return f"{counted(self.options.seeds, 'seed')} asked for"
        if self.options.fresh and not self.done:
            return "again, as --fresh says"
        if not self.done:
            return f"{counted(len(self.shares_left), 'seed')} interrupted" if self.shares_left else "no seed is here"
        return f"{self.verdict().verdict} after {len(self.done)}"

    def seconds_per_seed(self) -> float | None:
        """Seconds of a seed on the device; None if unknown."""
        return self.cost()[0]

    def cost(self) -> tuple[float | None, str]:
        """Seconds of a seed on the device, and their source: this campaign's seeds, else those of the record, which is
        committed or the demo's, else a few steps.
        """
        committed = self.committed.records if self.committed else ()
        for records, source in ((self.records, "the seeds here"), (committed, "the record of this device")):
            seconds = [
                record.wall_seconds
                for record in records
                if (record.spec_sha256, record.device) == (self.spec.spec_sha256, self.device)
                and record.accuracy_percent is not None  # a seed that diverged ended early
            ]
            if seconds:
                return sum(seconds) / len(seconds), source
        return self.timed_seconds, "a few steps timed here now"

    def seconds(self) -> dict[Seed, float]:
        """Seconds of each seed to be trained next; {} until a seed's cost is known."""
        each = self.seconds_per_seed()
        sha256 = self.spec.spec_sha256
        if each is None:
            return {}
        return {(sha256, seed): each * self.shares_left.get(seed, 1.0) for seed in self.wanted()}

    def continues(self, *, device_kind: str) -> bool:
        """Whether the campaign can go on from the committed record: it has this spec, device kind and metric, and was
        made by the user's own modules as they are.
        """
        if self.committed is None or metrics.missing(self.row, records=self.committed.records):
            return False
        first, own = self.committed.records[0], code.own_code_sha256(self.spec)
        there = (first.spec_sha256, first.device_kind, first.own_code_sha256)
        return there == (self.spec.spec_sha256, device_kind, own)

    @property
    def measured_here(self) -> bool:
        """Whether results/ hold seeds that this campaign did not adopt from them."""
        return self.published and not self.done.keys() <= self.adopted

    def has_what_was_asked(self) -> bool:
        """Whether no seed is running, wanted or crashed."""
        return not (self.running or self.failures or self.wanted())

    def standing(self) -> str:
        """The verdict on the seeds that are here, how they compare, and what results/ holds if not these."""
        verdict, num = self.verdict(), len(self.done)
        mean = "" if verdict.mean_percent is None else f", {verdict.mean_percent:.3f} %"
        parts = [f"{verdict.verdict}{mean} ({counted(num, 'seed')} here)", self.comparison]
        if not self.published and self.committed:
            there = verdict_of(self.row, records=self.committed.records, spec=self.committed.spec).verdict
            parts.append(f"the committed record ({counted(len(self.committed.records), 'seed')}, {there}) stays")
        return f"{self.row.name}: {'; '.join(filter(None, parts))}"


@dataclass(frozen=True, kw_only=True)
class NotHere:
    """A row that this machine cannot measure. `missing`: for each thing that is missing, the lines of its message."""

    row: Row
    missing: tuple[tuple[str, ...], ...]
