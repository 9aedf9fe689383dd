"""Whether two samples of accuracies are alike is told as the textbooks tell it, and no value is measured twice."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind

from remeasure.bench import parity
from remeasure.bench.baselines import ours
from remeasure.bench.parity import ARTICLE_LOOP, BFLOAT16, FLOAT32, Kept, compare
from remeasure.bench.series import Setting
from remeasure.campaign.executors.base import Task
from remeasure.runs import provenance

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(98.1, 0.12, 20).tolist(), RNG.normal(98.0, 0.07, 20).tolist()


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(project=tmp_path, data_root=tmp_path / "none", scratch=tmp_path, num_rounds=1, tiny=True)


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (SECOND, FIRST), (FIRST[:12], SECOND)])
def test_the_statistics_are_those_of_another_library(first: Sequence[float], second: Sequence[float]) -> None:
    found = compare(first, second)
    both = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert (found.low, found.high) == pytest.approx(both.tconfint_diff(usevar="unequal"))
    assert found.p_welch == pytest.approx(both.ttest_ind(usevar="unequal")[1])
    assert found.p_tost == pytest.approx(ttost_ind(first, second, -0.10, 0.10, usevar="unequal")[0])
    assert found.p_ks == pytest.approx(stats.kstest(first, second).pvalue)


@pytest.mark.parametrize(
    ("shift", "spread", "alike"),
    [(0.0, 0.05, True), (0.2, 0.05, False), (-0.2, 0.05, False), (0.0, 1.0, False)],
    ids=["equal", "higher", "lower", "too few to tell"],
)
def test_alike_is_shown_and_never_assumed(shift: float, spread: float, alike: bool) -> None:
    first = [98.0 + spread * value for value in np.linspace(-1, 1, 20)]
    second = [value + shift for value in first]
    assert compare(first, second).alike is alike
    assert ("not shown" in parity.remark("a", "b", found=compare(first, second))) is not alike


def keep(setting: Setting, values: dict[str, Sequence[float]]) -> Kept:
    kept = Kept(parity.folder_of(setting))
    for name, percents in values.items():
        for seed, percent in enumerate(percents):
            kept.add(name, seed=seed, accuracy_percent=percent)
    return kept


class MadeUp:
    """Workers whose runs have these accuracies; `trained` gets the specs and seeds of each call."""

    def __init__(self, percent: Callable[[int], float | None], *, trained: list[tuple[Any, list[int]]]) -> None:
        self.percent, self.trained = percent, trained

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, tasks: Sequence[Task], *, keep: Callable[[Any], object]) -> None:
        self.trained.append((tasks[0].spec, [task.seed for task in tasks]))
        for task in tasks:
            record = SimpleNamespace(seed=task.seed, accuracy_percent=self.percent(task.seed))
            keep(SimpleNamespace(record=record))


def test_an_interrupted_run_goes_on_with_the_seeds_that_are_missing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(setting, {ARTICLE_LOOP: [70.0, 71.0, 72.0], FLOAT32: [70.5, 71.5]})
    trained: list[tuple[Any, list[int]]] = []

    monkeypatch.setattr(parity, "own_process", lambda **_: pytest.fail("all of (a) is there"))
    monkeypatch.setattr(ours, "compose_spec", lambda *overrides, **_: overrides[2])
    monkeypatch.setattr(parity, "Workers", lambda _: MadeUp(lambda seed: 75.0 + seed, trained=trained))
    part = parity.accuracy(setting)
    assert trained == [("precision=float32", [2]), ("precision=bfloat16", [0, 1, 2])]
    assert {series.name: series.values for series in part.series} == {
        ARTICLE_LOOP: (70.0, 71.0, 72.0),
        FLOAT32: (70.5, 71.5, 77.0),
        BFLOAT16: (75.0, 76.0, 77.0),
    }
    assert [series.unit for series in part.series] == ["percent"] * 3
    trained.clear()
    assert parity.accuracy(setting) == part
    assert trained == []


def test_a_line_that_was_cut_short_is_no_value(setting: Setting) -> None:
    kept = keep(setting, {FLOAT32: [70.0]})
    with (kept.folder / "journal.jsonl").open("a") as handle:
        handle.write('{"event": "scored", "contestant": "(e) this')
    again = Kept(kept.folder)
    again.add(FLOAT32, seed=1, accuracy_percent=71.0)
    assert again.of(FLOAT32) == {0: 70.0, 1: 71.0}


def test_the_rehearsal_and_another_commit_have_values_of_their_own(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for commit, dirty, tiny in (
        ("a" * 40, False, False),
        ("a" * 40, False, True),
        ("a" * 40, True, False),
        ("b" * 40, False, False),
    ):
        monkeypatch.setattr(
            provenance, "revision", lambda _, it=(commit, dirty): SimpleNamespace(commit=it[0], dirty=it[1])
        )
        folders.append(parity.folder_of(Setting(**{**vars(setting), "tiny": tiny})))
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {setting.project / "runs/bench"}


def test_a_seed_that_diverged_is_not_passed_over(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "compose_spec", lambda *_, **__: None)
    monkeypatch.setattr(parity, "Workers", lambda _: MadeUp(lambda _: None, trained=[]))
    kept = keep(setting, {})
    with pytest.raises(ArithmeticError, match="seed 0 diverged"):
        parity.by_us(setting, FLOAT32, kept=kept, seeds=[0], epochs=1, precision="float32")
    assert kept.of(FLOAT32) == {}
