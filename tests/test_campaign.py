"""Campaigns on scikit-learn's digits: one epoch of mlp2 a seed, trained in this process instead of in workers."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tests import measured, trained

from remeasure import campaign, tracking
from remeasure.campaign import Campaign, NotHere, Options, RowCampaign, compare
from remeasure.cli import compose as compose_config
from remeasure.collect import SeedResults, put_together
from remeasure.observe import Observer
from remeasure.records import RowResults, read_row, read_runs
from remeasure.rundir import Outcome, Place
from remeasure.spec import Config, Published, Row, Rule, Source
from remeasure.storage import publish, recover
from remeasure.workers import Task

OPTIONS = Options(seeds=None, budget_seconds=3600.0, fresh=False, adopt=False)


def row(
    name: str = "mlp2-digits", *, published: float = 80.0, margin: float = 19.0, looks: Sequence[int] = (2, 3)
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
    return Row(name=name, model="mlp2", data="digits", recipe="article", mode="train", published=claim, rule=rule)


def compose(overrides: Sequence[str]) -> Config:
    """The row's config, cut to one epoch."""
    return compose_config([*overrides, "recipe.epochs_total=1"])


class InProcess:
    """Workers without processes: a task runs when it is submitted. `trained` lists them; a seed in `crash` raises."""

    trained: list[tuple[str, int]]
    crash: set[int]

    def __init__(self, place: Place) -> None:
        self.place, self.pending = place, list[tuple[Task, Future[Outcome]]]()

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.pending

    @property
    def idle(self) -> int:
        return 2 - len(self.pending)

    @property
    def active(self) -> list[Task]:
        return [task for task, _ in self.pending]

    def submit(self, task: Task) -> None:
        self.trained.append((task.row, task.seed))
        future: Future[Outcome] = Future()
        if task.seed in self.crash:
            future.set_exception(MemoryError("no room"))
        else:
            place = self.place.runs.parent
            future.set_result(trained.run(task.spec, place, seed=task.seed, row=task.row, fresh=task.fresh))
        self.pending.append((task, future))

    def finished(self) -> Iterator[tuple[Task, Future[Outcome]]]:
        yield self.pending.pop(0)

    def events(self) -> Iterator[Any]:
        return iter(())


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    InProcess.trained, InProcess.crash = [], set()
    monkeypatch.setattr(campaign, "Workers", InProcess)
    monkeypatch.setattr(tracking, "available", lambda: False)
    return InProcess


def measure(folder: Path, *rows: Row, said: list[str] | None = None, **options: Any) -> list[RowCampaign]:
    """Measure the rows into folder/results, as `make reproduce` does."""
    recover(folder / "results")
    with Observer(project=folder) as observer:
        running = Campaign(
            place=trained.place(folder),
            results=folder / "results",
            options=dataclasses.replace(OPTIONS, **options),
            observer=observer,
            say=(said if said is not None else []).append,
        )
        prepared = [running.prepare(entry, compose=compose) for entry in rows]
        campaigns = [entry for entry in prepared if isinstance(entry, RowCampaign)]
        running.measure(campaigns)
    return campaigns


def seeds(folder: Path, name: str = "mlp2-digits") -> list[int]:
    return [record.seed for record in read_runs(folder / "results", row=name)]


# ---------------------------------------------------------------- what is trained


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


def test_no_budget_trains_nothing_and_says_so(tmp_path: Path, workers: type[InProcess]) -> None:
    said: list[str] = []
    measure(tmp_path, row(), said=said, budget_seconds=0.0)
    assert workers.trained == []
    assert said == ["mlp2-digits: 2 more seeds do not fit the budget; the same command goes on"]


def test_rows_of_one_spec_share_their_seeds(tmp_path: Path, workers: type[InProcess]) -> None:
    measure(tmp_path, row(), row("mlp2-digits-high", published=99.0, margin=0.5, looks=(3, 4)))
    assert sorted(seed for _, seed in workers.trained) == [0, 1, 2]
    assert (seeds(tmp_path), seeds(tmp_path, "mlp2-digits-high")) == ([0, 1], [0, 1, 2])


def test_a_seed_that_crashes_is_not_replaced_and_other_rows_go_on(tmp_path: Path, workers: type[InProcess]) -> None:
    workers.crash = {1}
    other = row("mlp2-digits-b", looks=(2,))
    said: list[str] = []
    failed, _ = measure(tmp_path, row(looks=(4, 5)), other, said=said)
    assert failed.failures == ["seed 1: MemoryError: no room"]
    assert "mlp2-digits failed: seed 1: MemoryError: no room" in said
    assert ("mlp2-digits", 3) not in workers.trained, "nothing is begun once a seed is lost"
    assert failed.verdict().verdict == "undecided"


def test_a_seed_that_diverged_is_not_replaced(tmp_path: Path, workers: type[InProcess]) -> None:
    def diverging(overrides: Sequence[str]) -> Config:
        wild = ["recipe.optimizer={name: sgd, lr_peak: 1.0e+30}", "recipe.clip_norm=null"]
        return compose([*overrides, *wild])

    recover(tmp_path / "results")
    with Observer(project=tmp_path) as observer:
        running = Campaign(
            place=trained.place(tmp_path),
            results=tmp_path / "results",
            options=OPTIONS,
            observer=observer,
            say=print,
        )
        entry = running.prepare(row(), compose=diverging)
        assert isinstance(entry, RowCampaign)
        running.measure([entry])
    assert entry.verdict().verdict == "undecided"
    assert "diverged" in entry.verdict().reason
    assert {seed for _, seed in workers.trained} <= {0, 1}
    assert read_runs(tmp_path / "results", row="mlp2-digits")[0].accuracy_percent is None


def test_data_that_are_nowhere_leave_the_row_to_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> object:
        raise campaign.data.DataMissingError("digits.csv: missing")

    monkeypatch.setattr(campaign.data, "fingerprint", missing)
    with Observer(project=tmp_path) as observer:
        running = Campaign(
            place=trained.place(tmp_path), results=tmp_path, options=OPTIONS, observer=observer, say=print
        )
        assert running.prepare(row(), compose=compose) == NotHere(row=row(), reasons=("digits.csv: missing",))


# ---------------------------------------------------------------- what happens to the committed record


def committed(folder: Path, *, num_seeds: int, spec_changed: bool = False) -> RowResults:
    """A record of the row as another checkout left it: other commit, other times, and, if asked for, another spec."""
    elsewhere = folder / "elsewhere"
    (done,) = measure(elsewhere, row(), seeds=num_seeds)
    parts = []
    for part in done.done.values():
        record = dataclasses.replace(part.record, commit="e15e", finished_at="2020-01-01T00:00:00Z")
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
    from remeasure.spec import spec_sha256

    return spec_sha256(spec)


def test_a_committed_record_is_never_reused(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=2)
    measure(tmp_path, row())
    assert sorted(seed for _, seed in workers.trained) == [0, 1]
    assert {record.commit for record in read_runs(tmp_path / "results", row="mlp2-digits")} == {""}


def test_a_committed_record_stands_until_the_first_look_is_reached(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=3)
    before = measured.snapshot(tmp_path / "results")
    measure(tmp_path, row(), seeds=1)
    assert workers.trained == [("mlp2-digits", 0)]
    assert measured.snapshot(tmp_path / "results") == before


def test_a_row_without_a_record_is_published_before_its_first_look(tmp_path: Path) -> None:
    measure(tmp_path, row(), seeds=1)
    assert seeds(tmp_path) == [0]


def test_continue_goes_on_from_committed_seeds(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=2)
    measure(tmp_path, row(), seeds=3, adopt=True)
    assert workers.trained == [("mlp2-digits", 2)]
    records = read_runs(tmp_path / "results", row="mlp2-digits")
    assert [(record.seed, record.commit) for record in records] == [(0, "e15e"), (1, "e15e"), (2, "")]


def test_continue_does_not_adopt_seeds_of_another_spec(tmp_path: Path, workers: type[InProcess]) -> None:
    committed(tmp_path, num_seeds=2, spec_changed=True)
    measure(tmp_path, row(), adopt=True)
    assert sorted(seed for _, seed in workers.trained) == [0, 1]


def test_a_new_measurement_says_whether_it_agrees_with_the_one_it_replaces(tmp_path: Path) -> None:
    committed(tmp_path, num_seeds=3)
    said: list[str] = []
    measure(tmp_path, row(), said=said)
    (line,) = said
    assert line.startswith("mlp2-digits: ")
    assert "(3 seeds) before" in line
    assert "(2 seeds) now: they agree (Welch's t-test, p = " in line


def test_records_that_differ_are_called_different() -> None:
    old = measured.group()
    later = [dataclasses.replace(entry, finished_at="2030-01-01T00:00:00Z") for entry in old.records]
    worse = [
        dataclasses.replace(entry, num_correct=20, accuracy_percent=50.0, predicted_sha256=None) for entry in later
    ]
    new = dataclasses.replace(measured.group(), records=old.records)
    assert compare(old, new, row=row()) == "", "the same runs are not a new measurement"
    object.__setattr__(new, "records", tuple(worse))  # past the checks: only the accuracies matter here
    assert "93.750 %" not in compare(old, new, row=row())
    assert "50.000 % (5 seeds) now: they differ" in compare(old, new, row=row())


def test_costs_come_from_this_campaign_then_from_a_record_of_the_same_kind() -> None:
    spec = trained.spec()
    old = measured.group()
    entry = RowCampaign(row=row(), spec=spec, committed=old, options=OPTIONS)
    assert entry.seconds_per_seed(device_kind="cpu") is None, "another spec tells nothing"
    part = SeedResults(
        record=measured.record(0, wall_seconds=4.0),
        predicted=None,
        confidence=None,
        filters=None,
        curve=(),
        spec={},
        environment={},
    )
    entry.done[0] = part
    assert entry.seconds_per_seed(device_kind="cpu") == 4.0


def test_published_rows_can_be_read_back(tmp_path: Path) -> None:
    measure(tmp_path, row())
    results = read_row(tmp_path / "results", row="mlp2-digits")
    assert results is not None
    assert results.predicted.shape == results.confidence.shape == (2, 500)
    assert {(point.seed, point.split) for point in results.curves} == {
        (s, p) for s in (0, 1) for p in ("train", "test")
    }
    assert results.filters.shape == (256, 64)
