"""Campaigns on scikit-learn's digits: one epoch of mlp2 a seed, trained in this process instead of in workers."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from rich.console import RenderableType
from tests.support import measured, trained

from remeasure.campaign import campaign
from remeasure.campaign.campaign import Campaign
from remeasure.campaign.executors.base import Task
from remeasure.campaign.executors.local import Workers
from remeasure.campaign.row import Compose, NotHere, Options, RowCampaign
from remeasure.config.compose import compose as compose_config
from remeasure.data import fingerprint
from remeasure.judging.publish import offer, publish, recover
from remeasure.judging.reader import read_row, read_runs
from remeasure.judging.records import RowResults, SeedResults, put_together
from remeasure.judging.table import verdict_of
from remeasure.models import pretrained as published_weights
from remeasure.runs import code, timing
from remeasure.runs.code import CODE_FILE
from remeasure.runs.folder import Outcome, Place, open_directory
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.claim import Published, Row, Rule, Source
from remeasure.spec.config import Config
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system.console import console, rendered
from remeasure.tracking.observer import Observer, Observers, Standing

ONE_LOOK = Rule(margin_pp=0.1, looks=(1,))
OPTIONS = Options(seeds=None, together=1, budget_seconds=3600.0, fresh=False, adopt=False)


def row(
    name: str = "mlp2-digits",
    *,
    published: float = 80.0,
    margin: float = 19.0,
    looks: Sequence[int] = (2, 3),
    recipe: str = "article",
) -> Row:
    source = Source(citation="Nobody 1999", where="nowhere", says="a number", grade="unsourced")
    claim = Published(
        accuracy_percent=published,
        num_digits=3,
        num_params_text="19,210",
        num_runs=None,
        selection=None,
        sources=(source,),
        notes="",
    )
    rule = Rule(margin_pp=margin, looks=tuple(looks))
    return Row(name=name, model="mlp2", data="digits", recipe=recipe, mode="train", published=claim, rule=rule)


def keras() -> Row:
    """A row of another spec, for exactly two seeds."""
    return row("mlp2-digits-keras", recipe="keras_mlp", looks=(2,))


def compose(overrides: Sequence[str]) -> Config:
    """The row's config, cut to one epoch."""
    return compose_config([*overrides, "recipe.epochs_total=1"])


class Immediate(Executor):
    """A pool that calls what is submitted at once, in this process."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, call: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
        return future


class InProcess(Workers):
    """Workers on two cores, without processes: a task runs when it is submitted.

    `trained` lists the tasks, `asked` who asked for them; a seed in `crash` raises that. A seed of a recipe costs
    `seconds`, or raises them; `timed` lists the recipes that were asked about. `most` is how many cores were taken at
    once. After `num_runs` runs, the user presses Ctrl-C.
    """

    num_cores: int
    trained: list[tuple[str, int]]
    asked: list[tuple[str, int]]
    timed: list[str]
    crash: dict[int, Exception]
    seconds: dict[str, float | Exception]
    most: int
    num_runs: float

    def __init__(self, place: Place) -> None:
        super().__init__(place, num=self.num_cores, execute=self.train, new_pool=Immediate)

    def seconds_of_seed(self, spec: RunSpec, *, num_seeds: int) -> float:
        assert num_seeds > 0
        assert not self.active, "nothing else may run while a row is timed"
        self.timed.append(spec.recipe.name)
        found = self.seconds.get(spec.recipe.name, 1.0)
        if isinstance(found, Exception):
            raise found
        return found

    def submit(self, task: Task) -> None:
        super().submit(task)
        InProcess.most = max(self.most, self.num - self.idle)

    @classmethod
    def train(cls, task: Task, place: Place, sink: object) -> list[Outcome]:  # noqa: ARG003
        if len(cls.trained) == cls.num_runs:
            raise KeyboardInterrupt
        cls.trained.append((task.row, task.seed))
        cls.asked.append((task.asked_by, task.seed))
        if task.seed in cls.crash:
            raise cls.crash[task.seed]
        return trained.run_together(
            task.spec, place.runs.parent, seed=task.seed, row=task.row, fresh=task.fresh, keeps=task.keeps
        )


@pytest.fixture(autouse=True)
def workers() -> type[InProcess]:
    InProcess.num_cores, InProcess.asked, InProcess.num_runs = 2, [], math.inf
    InProcess.trained, InProcess.crash, InProcess.timed, InProcess.seconds, InProcess.most = [], {}, [], {}, 0
    return InProcess


def measure(
    folder: Path,
    *rows: Row,
    said: list[str] | None = None,
    composed_by: Compose = compose,
    plan_only: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> list[RowCampaign]:
    """Measure the rows into folder/results, as `make reproduce` does, or only plan it."""
    recover(folder / "results")

    def say(content: RenderableType) -> None:
        if said is not None:
            said.extend(rendered(content, on=console(StringIO())).splitlines())

    with Observers([observer] if observer else []) as observers:
        running = Campaign(
            place=trained.place(folder),
            results=folder / "results",
            options=dataclasses.replace(OPTIONS, **options),
            observers=observers,
            say=say,
            new_workers=InProcess,
        )
        prepared = [running.prepare(entry, compose=composed_by) for entry in rows]
        campaigns = [entry for entry in prepared if isinstance(entry, RowCampaign)]
        running.plan(campaigns) if plan_only else running.measure(campaigns)
    return campaigns


def seeds(folder: Path, name: str = "mlp2-digits") -> list[int]:
    return [record.seed for record in read_runs(folder / "results", row=name)]


# ---------------------------------------------------------------- what is trained


def test_seeds_train_together_and_a_group_is_one_task(tmp_path: Path, workers: type[InProcess]) -> None:
    (done,) = measure(tmp_path, row(looks=(4, 6)), together=2)
    assert workers.trained == [("mlp2-digits", 0), ("mlp2-digits", 2)]
    assert seeds(tmp_path) == [0, 1, 2, 3]
    assert (done.spec.engine, done.spec.engine_width) == ("batched", 2)
    assert done.verdict().verdict == "reproduced"
    measure(tmp_path, row(looks=(4, 6)), together=2)
    assert len(workers.trained) == 2, "what is finished is never trained again"


def test_a_row_that_cannot_be_batched_trains_seed_by_seed(tmp_path: Path, workers: type[InProcess]) -> None:
    lbfgs = dataclasses.replace(row(), name="logreg-digits", model="logreg", recipe="lbfgs")
    (done,) = measure(tmp_path, lbfgs, together=2, seeds=2)
    assert (done.spec.engine, done.spec.engine_width) == ("serial", 1)
    assert sorted(seed for _, seed in workers.trained) == [0, 1]


def test_a_seed_that_two_rows_share_is_trained_for_the_first_of_them(tmp_path: Path, workers: type[InProcess]) -> None:
    """Whichever of the two is planned first; here the second, which wants fewer."""
    shared = dataclasses.replace(row(), name="mlp2-digits-shared")
    first = dataclasses.replace(row(), rule=Rule(margin_pp=50.0, looks=(4,)))
    measure(tmp_path, first, shared)
    assert sorted(workers.trained) == [("mlp2-digits", seed) for seed in range(4)]


def test_a_seed_belongs_to_the_first_row_although_that_has_failed(tmp_path: Path, workers: type[InProcess]) -> None:
    """The second row trains it then: the run's name, record and parent must not depend on who was killed."""
    workers.crash = {0: MemoryError("no room")}
    shared = dataclasses.replace(row(), name="mlp2-digits-shared")
    failed, also = measure(tmp_path, row(), shared)
    assert [len(each.failures) for each in (failed, also)] == [1, 1]
    assert {name for name, _ in workers.trained} == {"mlp2-digits"}
    assert [seed for _, seed in workers.trained].count(0) == 2


def test_a_row_that_its_first_look_decides_trains_exactly_that_look(tmp_path: Path, workers: type[InProcess]) -> None:
    (done,) = measure(tmp_path, row())
    assert done.verdict().verdict == "reproduced"
    assert sorted(seed for _, seed in workers.trained) == [0, 1] == seeds(tmp_path)


def test_an_undecided_row_goes_on_to_its_next_look_and_stops_at_the_last(
    tmp_path: Path, workers: type[InProcess]
) -> None:
    (done,) = measure(tmp_path, row(), seeds=2)
    edge = round(done.verdict().mean_percent or 0.0, 3)  # the mean on the edge of the margin decides nothing
    (done,) = measure(tmp_path, row(published=edge - 1.0, margin=1.0, looks=(2, 3, 4)))
    assert done.verdict().verdict == "undecided"
    assert sorted(seed for _, seed in workers.trained) == [0, 1, 2, 3]
    assert seeds(tmp_path) == [0, 1, 2, 3]


def test_what_is_finished_is_never_trained_again(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row())
    before = measured.snapshot(tmp_path / "results")
    workers.trained.clear()
    measure(tmp_path, row())
    assert workers.trained == []
    assert measured.snapshot(tmp_path / "results") == before


def test_fresh_trains_again_and_replaces_the_record(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row())
    measure(tmp_path, row(), fresh=True)
    assert sorted(seed for _, seed in workers.trained) == [0, 0, 1, 1]
    assert len(list((tmp_path / "runs").glob("*-a2"))) == 2


def test_a_number_of_seeds_is_trained_whatever_the_verdict(tmp_path: Path) -> None:
    (done,) = measure(tmp_path, row(), seeds=4)
    assert done.verdict().num_seeds == 2, "the first look that decides stands"
    assert seeds(tmp_path) == [0, 1, 2, 3]


def test_a_later_rule_trains_seeds_from_its_first(tmp_path: Path, workers: type[InProcess]) -> None:
    entry = row()
    later = dataclasses.replace(entry, rule=dataclasses.replace(entry.rule, first_seed=20))
    measure(tmp_path, later)
    assert sorted(seed for _, seed in workers.trained) == [20, 21] == seeds(tmp_path)


@pytest.mark.parametrize(("keep", "kept"), [("first", [3]), ("all", [3, 4]), ("none", [])])
def test_networks_are_kept_of_a_row_s_first_seed_or_as_asked(
    keep: Literal["first", "all", "none"], kept: list[int], tmp_path: Path
) -> None:
    later = dataclasses.replace(row(), rule=Rule(margin_pp=19.0, looks=(2,), first_seed=3))
    measure(tmp_path, later, keep=keep)
    found = {directory for directory in (tmp_path / "runs").glob("*-a1") if (directory / "model.safetensors").exists()}
    assert sorted(found) == [next((tmp_path / "runs").glob(f"*-s{seed}-a1")) for seed in kept]


def test_no_budget_trains_nothing_and_says_so(tmp_path: Path, workers: type[InProcess]) -> None:
    said: list[str] = []
    measure(tmp_path, row(), said=said, budget_seconds=0.0)
    assert workers.trained == []
    assert said[-1] == "mlp2-digits: 2 more seeds do not fit the budget; one takes about 1 s, so BUDGET=1s starts it"


def test_the_cheapest_row_is_trained_first_and_what_does_not_fit_is_not_begun(
    tmp_path: Path, workers: type[InProcess]
) -> None:
    """keras_mlp takes 3 s a seed, two at once; article takes 61 s, and 60 s are there."""
    workers.seconds = {"article": 61.0, "keras_mlp": 3.0}
    said: list[str] = []
    rows = row(), keras()
    _, done = measure(tmp_path, *rows, said=said, budget_seconds=60.0)
    verdict = done.verdict()
    assert sorted(workers.trained) == [("mlp2-digits-keras", 0), ("mlp2-digits-keras", 1)]
    assert said.pop(2) == f"on {done.device}:"
    assert said.pop(2).startswith("2 seeds fit the budget of 60 s; 2 workers; ends about ")
    assert said.pop(3).startswith("mlp2-digits-keras  no seed is here           0         2     3 s     3 s  by about ")
    needs = (
        "mlp2-digits        no seed is here           0         2    61 s    61 s  does not fit; BUDGET=64s would do"
    )
    assert said.pop(3) == needs
    assert [line.partition(", at load")[0] for line in said] == [
        "mlp2-digits: no seed was timed here before, timing a few steps",
        "mlp2-digits-keras: no seed was timed here before, timing a few steps",
        "row                why              seeds here  to train  a seed  in all  fits",
        "a seed's time is from a few steps timed here now: mlp2-digits-keras, mlp2-digits",
        f"mlp2-digits-keras: {verdict.verdict}, {verdict.mean_percent:.3f} % (2 seeds here)",
        "mlp2-digits: 2 more seeds do not fit the budget; one takes about 61 s, so BUDGET=61s starts it",
    ]


def test_rows_are_begun_cheapest_first(tmp_path: Path, workers: type[InProcess]) -> None:
    workers.seconds = {"article": 9.0, "keras_mlp": 3.0}
    measure(tmp_path, row(), keras())
    assert [name for name, _ in workers.trained] == ["mlp2-digits-keras"] * 2 + ["mlp2-digits"] * 2


def test_single_seeds_that_fit_are_trained_although_their_look_does_not(
    tmp_path: Path, workers: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 s a seed, one core, 60 s: the first seed begins with 60 s left, the second would with 20 s."""
    workers.num_cores = 1
    workers.seconds = {"article": 40.0}
    clock = iter([0.0, 0.0, *[40.0] * 100])  # the deadline, the first start, and all after it
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=clock.__next__))
    monkeypatch.setattr(RowCampaign, "seconds_per_seed", lambda entry, **_: entry.timed_seconds)
    said: list[str] = []
    (done,) = measure(tmp_path, row(), said=said, budget_seconds=60.0)
    assert workers.trained == [("mlp2-digits", 0)]
    assert said[4].endswith("1 of 2 seeds fit; BUDGET=80s would do")
    assert said[-1] == "mlp2-digits: 1 more seeds do not fit the budget; the same command goes on"
    assert done.verdict().verdict == "undecided"
    assert seeds(tmp_path) == [0], "published although its look is not complete"


def test_runs_of_two_threads_are_never_beside_others_on_two_cores(tmp_path: Path, workers: type[InProcess]) -> None:
    """InProcess refuses more; what a run of one thread leaves is filled."""

    def two_threads(overrides: Sequence[str]) -> Config:
        return compose([*overrides, *(["cpu_threads=2"] if "recipe=article" in overrides else [])])

    measure(tmp_path, row(), keras(), composed_by=two_threads)
    assert len(workers.trained) == 4
    assert workers.most == 2


def test_a_run_never_takes_more_cores_than_there_are(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row(), composed_by=lambda overrides: compose([*overrides, "cpu_threads=64"]))
    assert (len(workers.trained), workers.most) == (2, 2)


def test_planning_times_each_spec_once_and_trains_nothing(tmp_path: Path, workers: type[InProcess]) -> None:
    said: list[str] = []
    measure(tmp_path, row(), row("mlp2-digits-high", published=99.0), said=said, plan_only=True)
    assert (workers.timed, workers.trained) == (["article"], [])
    first_words = ["mlp2-digits:", "on", "2", "row", "mlp2-digits", "mlp2-digits-high", "a"]
    assert [line.split()[0] for line in said] == first_words
    assert re.search(r"timing a few steps, at load \d+\.\d on \d+ cores", said[0])
    assert said[-1] == "a seed's time is from a few steps timed here now: mlp2-digits, mlp2-digits-high"
    assert list(tmp_path.glob("results/runs/*")) == []


def test_a_row_whose_cost_is_known_is_not_timed(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row(), seeds=1)
    workers.timed.clear()
    measure(tmp_path, row())
    assert workers.timed == []


@pytest.mark.parametrize(
    ("error", "told"), [(MemoryError("no room"), "MemoryError: no room"), (InputError("leak: 3"), "leak: 3")]
)
def test_a_row_that_cannot_be_timed_has_failed_and_others_go_on(
    error: Exception, told: str, tmp_path: Path, workers: type[InProcess]
) -> None:
    workers.seconds = {"article": error}
    failed, other = measure(tmp_path, row(), keras())
    assert failed.failures == [f"timing it: {told}"]
    assert (other.failures, len(other.done)) == ([], 2)


def test_a_checkpoint_makes_its_seed_cheaper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "share_left", lambda _, seed, **__: 0.25 if seed == 1 else 1.0)
    InProcess.seconds = {"article": 40.0}
    (entry,) = measure(tmp_path, row(looks=(3,)), plan_only=True)
    assert list(entry.seconds().values()) == [40.0, 10.0, 40.0]


def test_rows_of_one_spec_share_their_seeds(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row(), row("mlp2-digits-high", published=99.0, margin=0.5, looks=(3, 4)))
    assert sorted(seed for _, seed in workers.trained) == [0, 1, 2]
    assert (seeds(tmp_path), seeds(tmp_path, "mlp2-digits-high")) == ([0, 1], [0, 1, 2])


def test_a_recipe_that_was_renamed_counts_what_was_trained_under_its_old_name(
    tmp_path: Path, workers: type[InProcess]
) -> None:
    def composed(overrides: Sequence[str]) -> Config:
        return compose(
            [each.replace("recipe=renamed", "recipe=article") for each in overrides] + ["recipe.name=renamed"]
        )

    measure(tmp_path, row())
    renamed = row("mlp2-digits-renamed", recipe="renamed")
    measure(tmp_path, renamed, composed_by=composed)
    assert len(workers.trained) == 2
    found = read_row(tmp_path / "results", row=renamed.name)
    assert found is not None
    assert verdict_of(renamed, records=found.records, spec=found.spec).verdict == "reproduced"


def test_a_seed_that_crashes_is_not_replaced_and_other_rows_go_on(tmp_path: Path, workers: type[InProcess]) -> None:
    workers.crash = {1: MemoryError("no room")}
    other = row("mlp2-digits-b", looks=(5, 6))  # its seeds are the same
    said: list[str] = []
    failed, _ = measure(tmp_path, row(looks=(4, 5)), other, said=said)
    assert failed.failures == ["seed 1: MemoryError: no room"]
    assert "mlp2-digits failed: seed 1: MemoryError: no room" in said
    assert ("mlp2-digits", 3) not in workers.asked, "nothing is begun once a seed is lost"
    assert failed.verdict().verdict == "undecided"


def test_a_fault_of_the_input_is_told_once_a_row_and_ends_it(tmp_path: Path, workers: type[InProcess]) -> None:
    workers.crash = dict.fromkeys(range(2), InputError("data digits: leak"))
    said: list[str] = []
    failed, other = measure(tmp_path, row(looks=(5,)), keras(), said=said)
    assert {seed for _, seed in workers.trained} == {0, 1}, "those that were begun side by side"
    told = [line for line in said if "failed: seed" in line]
    assert sorted(told) == [f"{name} failed: seed 0: data digits: leak" for name in (failed.row.name, other.row.name)]
    assert failed.wrong_input
    assert other.wrong_input


def test_a_seed_that_diverged_is_not_replaced(tmp_path: Path, workers: type[InProcess]) -> None:
    def diverging(overrides: Sequence[str]) -> Config:
        wild = ["recipe.optimizer={name: sgd, lr_peak: 1.0e+30}", "recipe.clip_norm=null"]
        return compose([*overrides, *wild])

    recover(tmp_path / "results")
    with Observers([]) as observers:
        running = Campaign(
            place=trained.place(tmp_path),
            results=tmp_path / "results",
            options=OPTIONS,
            observers=observers,
            say=print,
        )
        entry = running.prepare(row(), compose=diverging)
        assert isinstance(entry, RowCampaign)
        running.measure([entry])
    assert entry.verdict().verdict == "undecided"
    assert "diverged" in entry.verdict().reason
    assert {seed for _, seed in workers.trained} <= {0, 1}
    assert read_runs(tmp_path / "results", row="mlp2-digits")[0].accuracy_percent is None


class Standings(Observer):
    """Keeps (row, state, number of seeds, verdict) each time that a row has changed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, str]] = []

    def row(self, standing: Standing) -> None:
        verdict = standing.verdict
        self.seen.append((standing.row.name, standing.state, standing.num_seeds, verdict.verdict))


def test_observers_see_a_row_after_each_of_its_seeds(tmp_path: Path) -> None:
    observer = Standings()
    measure(tmp_path, row(), observer=observer)
    name = "mlp2-digits"
    ended = (name, "finished", 2, "reproduced")
    begun = [(name, "running", 0, "not measured"), (name, "running", 1, "undecided")]
    assert observer.seen == [*begun, ended, ended]


def test_observers_see_an_interrupted_row_as_such_an_ended_one_as_ended_and_none_that_has_not_begun(
    tmp_path: Path, workers: type[InProcess]
) -> None:
    """The last run before the interruption had ended, and nobody had collected it."""
    workers.num_runs = 3
    workers.seconds = {"article": 1.0, "keras_mlp": 2.0, "lbfgs": 3.0}
    observer = Standings()
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, row(), keras(), row("not-begun", recipe="lbfgs"), observer=observer)
    last = {name: (state, num_seeds) for name, state, num_seeds, _ in observer.seen}
    assert last == {"mlp2-digits": ("finished", 2), "mlp2-digits-keras": ("interrupted", 1)}


def test_observers_see_a_row_whose_seed_crashed_as_failed(tmp_path: Path, workers: type[InProcess]) -> None:
    workers.crash = {1: MemoryError("no room")}
    observer = Standings()
    measure(tmp_path, row(), observer=observer)
    assert observer.seen[-1] == ("mlp2-digits", "failed", 1, "undecided")


def test_data_that_are_nowhere_leave_the_row_to_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> object:
        raise DataMissingError("digits.csv: missing")

    monkeypatch.setattr(fingerprint, "fingerprint", missing)
    with Observers([]) as observers:
        running = Campaign(
            place=trained.place(tmp_path), results=tmp_path, options=OPTIONS, observers=observers, say=print
        )
        assert running.prepare(row(), compose=compose) == NotHere(row=row(), missing=(("digits.csv: missing",),))


def prepare(folder: Path, entry: Row, *, composed_by: Compose = compose) -> RowCampaign | NotHere:
    with Observers([]) as observers:
        running = Campaign(place=trained.place(folder), results=folder, options=OPTIONS, observers=observers, say=print)
        return running.prepare(entry, compose=composed_by)


def test_missing_photographs_and_missing_weights_are_both_named_and_nothing_large_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> object:
        raise DataMissingError("weights: missing")

    monkeypatch.setattr(published_weights, "fingerprint", missing)
    monkeypatch.setattr(fingerprint, "fingerprint", lambda *_, **__: pytest.fail("read the data"))
    entry = dataclasses.replace(
        row("vit_b16-imagenet"), model="vit_b16", data="imagenet", recipe="deit_b_eval", mode="evaluate", rule=ONE_LOOK
    )
    found = prepare(tmp_path, entry, composed_by=compose_config)
    assert isinstance(found, NotHere)
    photographs, published = found.missing
    assert photographs[1] == f"  {tmp_path}/data/imagenet/val/<synset>/*.JPEG"
    assert published == ("weights: missing",)


def test_a_row_whose_recipe_is_for_another_mode_is_refused(tmp_path: Path) -> None:
    entry = dataclasses.replace(row(), mode="evaluate", rule=ONE_LOOK)
    with pytest.raises(InputError, match="row mlp2-digits: mode is evaluate, but recipe article is for mode train"):
        prepare(tmp_path, entry)


def test_a_config_with_another_name_inside_is_refused(tmp_path: Path) -> None:
    entry = dataclasses.replace(row(), data="my_digits")

    def composed(choices: Sequence[str]) -> Config:
        return compose_config([choice.replace("my_digits", "digits") for choice in choices])

    with pytest.raises(InputError, match="row mlp2-digits: `name:` inside its configs says data digits, not my_digits"):
        prepare(tmp_path, entry, composed_by=composed)


def test_a_callback_that_cannot_work_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = ("+callback.own={builder: 'pytorch_lightning.callbacks:EarlyStopping', options: {monitr: loss}}",)
    with pytest.raises(InputError, match=r"callback: .*EarlyStopping.*monitr"):
        prepare(tmp_path, row(), composed_by=lambda overrides: compose([*overrides, *wrong]))


# ---------------------------------------------------------------- what happens to the committed record


def committed(folder: Path, *, num_seeds: int, spec_changed: bool = False, own_code: str | None = None) -> RowResults:
    """A record of the row as another checkout left it: other commit, other times, and, if asked for, another spec, or
    modules of the user's own.
    """
    elsewhere = folder / "elsewhere"
    (done,) = measure(elsewhere, row(), seeds=num_seeds)
    parts = []
    for part in done.done.values():
        record = dataclasses.replace(
            part.record, commit="e15e", finished_at="2020-01-01T00:00:00Z", own_code_sha256=own_code
        )
        spec: Any = part.spec
        if spec_changed:
            spec = {**spec, "cpu_threads": 7}
            record = dataclasses.replace(record, spec_sha256=campaign_sha256(spec))
        parts.append(dataclasses.replace(part, record=record, spec=spec))
    results = put_together("mlp2-digits", seeds=parts)
    recover(folder / "results")
    publish(folder / "results", row="mlp2-digits", files=results.to_files())
    InProcess.trained.clear()
    return results


def campaign_sha256(spec: dict[str, Any]) -> str:
    from remeasure.spec.run import spec_sha256

    return spec_sha256(spec)


def test_a_committed_record_is_never_reused(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=2)
    measure(tmp_path, row())
    assert sorted(seed for _, seed in workers.trained) == [0, 1]
    assert {record.commit for record in read_runs(tmp_path / "results", row="mlp2-digits")} == {"unknown"}


def test_a_committed_record_stands_until_the_first_look_is_reached(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=3)
    before = measured.snapshot(tmp_path / "results")
    measure(tmp_path, row(), seeds=1)
    assert workers.trained == [("mlp2-digits", 0)]
    assert measured.snapshot(tmp_path / "results") == before


def test_a_row_without_a_record_is_published_before_its_first_look(tmp_path: Path) -> None:
    measure(tmp_path, row(), seeds=1)
    assert seeds(tmp_path) == [0]


def test_each_seed_is_published_as_it_ends_where_there_is_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[int] = []

    def offered(*given: Any, **named: Any) -> bool:
        taken = offer(*given, **named)
        published.append(len(seeds(tmp_path)))
        return taken

    monkeypatch.setattr(campaign, "offer", offered)
    measure(tmp_path, row(looks=(3, 4)), seeds=3)
    assert published == [1, 2, 3]


def test_continue_publishes_every_seed_beyond_the_committed_ones(tmp_path: Path) -> None:
    committed(tmp_path, num_seeds=1)
    (done,) = measure(tmp_path, row(looks=(5, 10)), seeds=2, adopt=True)  # the first look is far away
    assert seeds(tmp_path) == [0, 1]
    assert (done.adopted, done.measured_here) == ({0}, True)
    before = measured.snapshot(tmp_path / "results")
    (done,) = measure(tmp_path, row(looks=(5, 10)), seeds=2, adopt=True)
    assert (done.adopted, done.measured_here) == ({0, 1}, False)
    assert measured.snapshot(tmp_path / "results") == before


def test_continue_goes_on_from_committed_seeds(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=2)
    measure(tmp_path, row(), seeds=3, adopt=True)
    assert workers.trained == [("mlp2-digits", 2)]
    records = read_runs(tmp_path / "results", row="mlp2-digits")
    assert [(record.seed, record.commit) for record in records] == [(0, "e15e"), (1, "e15e"), (2, "unknown")]


def test_continue_says_which_code_has_changed_since_the_committed_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "changed_since", lambda commit, **_: "models/mlp.py differs" if commit else "")
    committed(tmp_path, num_seeds=2)
    said: list[str] = []
    measure(tmp_path, row(), seeds=2, adopt=True, said=said)
    assert "mlp2-digits: goes on from seeds of commit e15e; here models/mlp.py differs" in said


@pytest.mark.parametrize("change", [{"spec_changed": True}, {"own_code": "1" * 64}])
def test_continue_does_not_adopt_seeds_of_another_spec_or_of_other_code(
    tmp_path: Path, workers: type[InProcess], change: dict[str, Any]
) -> None:
    committed(tmp_path, num_seeds=2, **change)
    said: list[str] = []
    measure(tmp_path, row(), adopt=True, said=said)
    assert sorted(seed for _, seed in workers.trained) == [0, 1]
    assert "mlp2-digits: no committed seed is adopted: spec, device, metric or your own code differs" in said


def test_a_seed_that_other_code_has_trained_fails_though_an_attempt_of_this_code_is_there(
    tmp_path: Path, workers: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker imports what was edited after the plan, and a run of the code before was interrupted."""
    place = Place(runs=tmp_path / "runs", project=tmp_path, data_root=tmp_path, device_kind="cpu")
    train = workers.train

    def edited(_: object, task: Task, place: Place, sink: object) -> list[Outcome]:
        begun = open_directory(task.spec, seed=task.seed, place=place, fresh=False)
        outcomes = train(dataclasses.replace(task, fresh=True), place, sink)
        for outcome in outcomes:
            assert outcome.directory != begun
            kept = json.loads((outcome.directory / CODE_FILE).read_bytes())
            kept |= {"code_sha256": "2" * 64, "files": kept["files"] | {"models/mlp.py": "2" * 64}}
            (outcome.directory / CODE_FILE).write_text(json.dumps(kept))
        return outcomes

    monkeypatch.setattr(workers, "train", edited)
    (done,) = measure(tmp_path, row(), seeds=1)
    assert done.failures == ["seed 0: the code has changed since the start (models/mlp.py differs); start again"]
    assert read_row(tmp_path / "results", row="mlp2-digits") is None
    assert place.runs.is_dir()


def test_a_row_ends_with_its_verdict_and_whether_its_seeds_are_the_committed_ones(tmp_path: Path) -> None:
    committed(tmp_path, num_seeds=2)
    said: list[str] = []
    (done,) = measure(tmp_path, row(), said=said)
    mean = done.verdict().mean_percent
    ended = f"mlp2-digits: reproduced, {mean:.3f} % (2 seeds here); 2 of 2 seeds identical to the committed ones"
    assert said[-1] == ended
    said.clear()
    measure(tmp_path, row(), said=said)
    assert said == ["mlp2-digits: 2 seeds here, reproduced, nothing to train"]
    said.clear()
    measure(tmp_path, row(), said=said, quiet=True)
    assert said == []


def test_the_plan_names_the_device_and_says_where_seeds_are_trained_again(tmp_path: Path) -> None:
    said: list[str] = []
    (planned,) = measure(tmp_path, row(), said=said, plan_only=True)
    assert f"on {planned.device}:" in said
    assert any(re.search(r"mlp2-digits +no seed is here ", line) for line in said)
    said.clear()
    measure(tmp_path, row(), said=said, plan_only=True, fresh=True)
    assert any(re.search(r"mlp2-digits +again, as --fresh says ", line) for line in said)
    said.clear()
    measure(tmp_path, row(), said=said, plan_only=True, quiet=True)
    assert said == []


def test_an_interruption_of_the_first_timing_is_said(
    tmp_path: Path, workers: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> float:
        raise SystemExit(130)

    monkeypatch.setattr(workers, "seconds_of_seed", stop)
    said: list[str] = []
    with pytest.raises(SystemExit):
        measure(tmp_path, row(), said=said)
    assert said[-1] == "mlp2-digits: interrupted while it was timed; no seed has begun"


def test_a_committed_row_gives_way_only_to_a_campaign_that_has_ended(tmp_path: Path) -> None:
    """Undecided after each look, so that it ends with the last one."""
    (edge,) = measure(tmp_path / "before", row(), seeds=2)
    entry = row(published=round(edge.verdict().mean_percent or 0.0, 3) - 1.0, margin=1.0, looks=(2, 3, 4))
    old = committed(tmp_path, num_seeds=4, spec_changed=True)
    before, said = measured.snapshot(tmp_path / "results"), list[str]()
    (done,) = measure(tmp_path, entry, seeds=3, said=said)
    assert measured.snapshot(tmp_path / "results") == before
    assert not done.measured_here
    assert said[-1].startswith("mlp2-digits: undecided, ")
    assert "(3 seeds here); " in said[-1]
    assert f"; the committed record ({len(old.records)} seeds, undecided) stays" in said[-1]
    assert "(4 seeds) before" in said[-1]
    (done,) = measure(tmp_path, entry)
    assert done.measured_here
    assert {record.commit for record in read_runs(tmp_path / "results", row="mlp2-digits")} == {"unknown"}


def test_more_seeds_of_the_same_campaign_replace_fewer_before_the_first_look(tmp_path: Path) -> None:
    entry = row(looks=(5, 10))
    for num in (2, 4):
        measure(tmp_path, entry, seeds=num)
        assert seeds(tmp_path) == list(range(num))
    measure(tmp_path, entry, seeds=3)
    assert seeds(tmp_path) == [0, 1, 2, 3]


def test_fresh_replaces_a_record_of_more_seeds_once_it_has_what_it_was_asked_for(
    tmp_path: Path, workers: type[InProcess]
) -> None:
    measure(tmp_path, row(), seeds=3)
    before = measured.snapshot(tmp_path / "results")
    workers.crash = {1: MemoryError("no room")}
    measure(tmp_path, row(), seeds=2, fresh=True)
    assert measured.snapshot(tmp_path / "results") == before
    workers.crash = {}
    measure(tmp_path, row(), seeds=2, fresh=True)
    assert seeds(tmp_path) == [0, 1]


def test_costs_come_from_this_campaign_then_from_records_of_this_device_then_from_a_few_steps() -> None:
    """The record's seeds 0 to 4 took 1.25 to 5.25 s, so 3.25 s on average, on "Some CPU, two cores"."""
    here, spec = "Some CPU, two cores", trained.spec()
    same = [dataclasses.replace(entry, spec_sha256=spec.spec_sha256) for entry in measured.group().records]
    old = measured.group()
    entry = RowCampaign(row=row(), spec=spec, committed=old, options=OPTIONS, device=here, timed_seconds=7.0)
    assert entry.seconds_per_seed() == 7.0, "another spec tells nothing"
    object.__setattr__(old, "records", tuple(same))
    assert entry.cost() == (3.25, "the record of this device")
    assert dataclasses.replace(entry, device="Another CPU").cost() == (7.0, "a few steps timed here now")
    entry.done[0] = seed_results(dataclasses.replace(same[0], wall_seconds=4.0))
    assert entry.seconds_per_seed() == 4.0
    diverged = {"accuracy_percent": None, "num_correct": None, "loss": None, "predicted_sha256": None}
    entry.done[1] = seed_results(dataclasses.replace(same[1], wall_seconds=0.0, **diverged))
    assert entry.seconds_per_seed() == 4.0, "a seed that diverged tells nothing"


def seed_results(record: RunRecord) -> SeedResults:
    return SeedResults(
        record=record, predicted=None, confidence=None, filters=None, curve=(), findings=(), spec={}, environment={}
    )


def test_published_rows_can_be_read_back(tmp_path: Path) -> None:
    measure(tmp_path, row())
    results = read_row(tmp_path / "results", row="mlp2-digits")
    assert results is not None
    assert results.predicted.shape == results.confidence.shape == (2, 500)
    assert {(point.seed, point.split) for point in results.curves} == {
        (s, p) for s in (0, 1) for p in ("train", "test")
    }
    assert results.filters.shape == (256, 64)
