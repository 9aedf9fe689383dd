"""Contests are fair and judged on the right side. No test asserts a time: clocks and contestants are made up here."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support import trained
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from remeasure.bench import speed
from remeasure.bench.baselines import ours, pytorch_loops, roofline
from remeasure.bench.baselines.processes import own_process
from remeasure.bench.series import Part, Ratio, Series, Setting
from remeasure.bench.speed import ARTICLE_LOOP, CONTESTS, HAND_1, OURS, OURS_BF16, RATE, ROWS, SKLEARN
from remeasure.campaign.executors.local import Workers
from remeasure.data import fingerprint
from remeasure.runs.journal import Journal

WITH_DROPOUT = ("model=article_mlp", "data=digits", "steps_per_block=4")


@pytest.fixture
def setting(data_root: Path, tmp_path: Path) -> Setting:
    return Setting(project=tmp_path, data_root=data_root, scratch=tmp_path / "scratch", num_rounds=3, tiny=True)


# ---------------------------------------------------------------- processes


def test_a_contestant_has_a_process_of_its_own_with_the_threads_it_was_given() -> None:
    with own_process(threads=1) as one, own_process(threads=2) as two:
        assert [process.submit(torch.get_num_threads).result() for process in (one, two)] == [1, 2]
        ids = [process.submit(os.getpid).result() for process in (one, two, one, two)]
    assert ids[:2] == ids[2:], "each is kept"
    assert len({*ids, os.getpid()}) == 3


# ---------------------------------------------------------------- the floor


def test_the_floor_counts_every_multiplication_and_addition_once() -> None:
    # 3-2-1 on 5 images: weights 6 + 2; 3 products of 8 multiply-adds each, 5 images, 2 operations: 240.
    # Without the first layer's input gradient, 6 multiply-adds fewer an image: 180.
    assert roofline.products_flop((3, 2, 1), num_images=5, first_inputs=True) == 240
    assert roofline.products_flop((3, 2, 1), num_images=5, first_inputs=False) == 180


@pytest.mark.parametrize("first_inputs", [True, False])
def test_the_floor_is_what_torch_counts_for_the_articles_net(first_inputs: bool) -> None:
    with FlopCounterMode(display=False) as counter:
        pytorch_loops.article_net()(torch.randn(64, 1, 28, 28, requires_grad=first_inputs)).sum().backward()
    flop = roofline.products_flop(speed.ARTICLE_SIZES, num_images=64, first_inputs=first_inputs)
    assert flop == counter.get_total_flops()


def test_the_floor_is_the_operations_over_the_rate() -> None:
    rate = Series(name="rate", unit="GFLOP/s", values=(2.0, 4.0))
    series = speed.floor_series("floor", rate=rate, num_images=60_000, first_inputs=True)
    weights = 784 * 256 + 256 * 128 + 128 * 64 + 64 * 10
    assert series.values == pytest.approx((6 * weights * 60_000 / 2e9, 6 * weights * 60_000 / 4e9))


def test_the_rate_of_all_cores_is_the_sum_of_theirs() -> None:
    asked: list[dict[str, Any]] = []

    class Core:
        def submit(self, function: Callable[..., float], **arguments: Any) -> Any:
            assert function is roofline.product_rate
            asked.append(arguments)
            return SimpleNamespace(result=lambda: 3.0 if len(asked) == 2 else pytest.fail("not at the same time"))

    assert roofline.machine_rate([Core(), Core()], size=8, min_seconds=0.1) == 6.0  # type: ignore[list-item]
    assert asked == [{"size": 8, "min_seconds": 0.1}] * 2


# ---------------------------------------------------------------- this project


def test_lightning_and_the_bare_loop_make_the_very_same_steps() -> None:
    spec = trained.spec(*WITH_DROPOUT)
    names: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: names.append(type(optimizer).__name__))
    with_lightning, bare, other = (trained.training(spec, seed=seed) for seed in (3, 3, 4))
    ours.timed_training(with_lightning, spec=spec)
    through_lightning = len(names)
    ours.timed_steps(bare, spec=spec)
    hook.remove()
    ours.timed_steps(other, spec=spec)
    assert through_lightning == len(names) - through_lightning == 2 * trained.STEPS_PER_EPOCH
    assert trained.same(trained.weights(with_lightning.network), trained.weights(bare.network))
    assert not trained.same(trained.weights(other.network), trained.weights(bare.network))
    assert with_lightning.num_correct == bare.num_correct
    assert with_lightning.loss_total.item() == pytest.approx(bare.loss_total.item())


def test_a_campaign_trains_each_seed_once_on_the_workers(tmp_path: Path) -> None:
    spec = trained.spec("recipe.epochs_total=1")
    place = trained.place(tmp_path)
    with Workers(place) as workers:
        outcomes = workers.run(ours.tasks(spec, seeds=[5, 6, 7]))
        assert not workers.active
    assert sorted(outcome.record.seed for outcome in outcomes) == [5, 6, 7]
    assert len(list(place.runs.iterdir())) == 3
    assert not any(outcome.reused for outcome in outcomes)


@pytest.mark.parametrize(("num_cores", "epochs", "expected"), [(1, 5, 7 + 4 * 3.0), (2, 5, 7 + 4 * 6.0), (1, 1, 7.0)])
def test_further_epochs_cost_what_the_measured_one_did_spread_over_the_workers(
    num_cores: int, epochs: int, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of one core; two seeds whose epoch took 2 and 4 s; 7 s in all on the clock."""
    outcomes = [SimpleNamespace(reused=False, directory=tmp_path / str(seed)) for seed in (0, 1)]
    for outcome, seconds in zip(outcomes, (2.0, 4.0), strict=True):
        outcome.directory.mkdir()
        journal = Journal(outcome.directory)
        journal.write("epoch", epoch=1, split="train", seconds=seconds)
        journal.write("epoch", epoch=1, split="test", seconds=None)
    ticks = iter((100.0, 107.0))
    monkeypatch.setattr(ours.time, "perf_counter", lambda: next(ticks))
    workers: Any = SimpleNamespace(num=2, cores=lambda _: num_cores, run=lambda _: outcomes)
    spec: Any = SimpleNamespace(recipe=SimpleNamespace(epochs_total=1))
    assert ours.campaign_seconds(workers, spec=spec, seeds=[0, 1], epochs=epochs) == expected


# ---------------------------------------------------------------- targets

Measured = Mapping[str, float]


@pytest.fixture
def judged(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Measured], Part]:
    """A contest's part for made-up values: those named, and 1.0 for everybody else."""

    def part(name: str, values: Measured) -> Part:
        def taken(contestants: Mapping[str, object], *, num_rounds: int) -> dict[str, list[float]]:
            assert set(values) <= set(contestants)
            return {contestant: [values.get(contestant, 1.0)] * num_rounds for contestant in contestants}

        monkeypatch.setattr(speed, "interleaved", taken)
        return CONTESTS[name](setting)

    monkeypatch.setattr(speed, "own_process", lambda **_: NobodyProcess())
    monkeypatch.setattr(speed, "Workers", lambda _: NobodyProcess())
    monkeypatch.setattr(ours, "warm_up", lambda *_, **__: None)
    monkeypatch.setattr(pytorch_loops, "unpack", lambda *_, **__: Path())
    monkeypatch.setattr(fingerprint, "fingerprint", lambda *_, **__: SimpleNamespace(data_sha256=""))
    return part


class NobodyProcess:
    """A process that does nothing."""

    def __enter__(self) -> "NobodyProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(result=lambda: None)


def targets(part: Part) -> dict[str, Ratio]:
    return {ratio.name: ratio for ratio in part.ratios if ratio.target}


GFLOP = 6 * (784 * 256 + 256 * 128 + 128 * 64 + 64 * 10) * 2_000 / 1e9  # of the rehearsal's images


@pytest.mark.parametrize(
    ("contest", "values", "ratio", "target", "met"),
    [
        ("article", {ARTICLE_LOOP: 6.1}, "article's loop / this project", "at least 6", True),
        ("article", {ARTICLE_LOOP: 5.9}, "article's loop / this project", "at least 6", False),
        ("article", {SKLEARN: 1.1}, "scikit-learn / this project", "at least 1", True),
        ("article", {SKLEARN: 0.9}, "scikit-learn / this project", "at least 1", False),
        ("article", {OURS: 1.9, RATE: GFLOP}, "this project / matrix products alone", "at most 2", True),
        ("article", {OURS: 2.1, RATE: GFLOP}, "this project / matrix products alone", "at most 2", False),
        ("rows", {f"(e) {row}": 0.59 for row in ROWS.values()}, "this project / hand loop, the four rows", "0.6", True),
        ("rows", {"(e) mlp2-mnist": 0.1}, "this project / hand loop, the four rows", "at most 0.6", False),
        ("lenet", {"plain": 0.75}, "as published / plain", "at most 1.35", True),
        ("lenet", {"plain": 0.73}, "as published / plain", "at most 1.35", False),
        ("lightning", {"mlp2, Lightning": 1.04}, "mlp2, Lightning / bare", "at most 1.05", True),
        ("lightning", {"mlp2, Lightning": 1.06}, "mlp2, Lightning / bare", "at most 1.05", False),
    ],
)
def test_a_target_is_judged_on_the_right_side(
    contest: str,
    values: Measured,
    ratio: str,
    target: str,
    met: bool,
    judged: Callable[[str, Measured], Part],
) -> None:
    found = targets(judged(contest, values))[ratio]
    assert target in found.target
    assert found.met is met


def test_every_contest_has_the_targets_of_the_plan_and_no_other(judged: Callable[[str, Measured], Part]) -> None:
    found = {name: sorted(ratio.target for ratio in targets(judged(name, {})).values()) for name in CONTESTS}
    assert found == {
        "article": ["at least 1", "at least 6", "at most 2"],
        "rows": ["at most 0.6"],
        "lenet": ["at most 1.35"],
        "lightning": ["at most 1.05", "at most 1.05"],
        "variants": [],
    }


def test_the_sum_of_the_rows_is_of_what_was_measured(judged: Callable[[str, Measured], Part]) -> None:
    part = judged("rows", {"(e) mlp2-mnist": 2.0, "(d) lenet5-mnist": 5.0})
    (found,) = targets(part).values()
    assert found.value == pytest.approx((1 + 2 + 1 + 1) / (1 + 1 + 1 + 5))


# ---------------------------------------------------------------- who is timed, and on what


def test_no_seed_of_a_campaign_is_trained_twice(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(
        ours, "campaign_seconds", lambda *_, seeds, **__: asked.append(list(seeds)) or float(len(asked))
    )
    monkeypatch.setattr(pytorch_loops, "unpack", lambda *_, **__: Path())
    with speed.Contest(setting) as contest:
        for _ in range(3):
            contest.campaign_seconds(None, spec=None, epochs=1)  # type: ignore[arg-type]
    seeds = [seed for round_seeds in asked for seed in round_seeds]
    assert len(set(seeds)) == len(seeds) == 3 * speed.TINY.num_seeds


def test_who_takes_part_in_the_articles_contest(judged: Callable[[str, Measured], Part]) -> None:
    part = judged("article", {})
    names = [series.name for series in part.series]
    assert [name[:3] for name in names if name.startswith("(")] == ["(a)", "(b)", "(c)", "(d)", "(d)", "(e)", "(e)"]
    assert {HAND_1, OURS, OURS_BF16} <= set(names)
    assert all(len(series.values) == 3 for series in part.series), "a value for each round"


def test_a_contest_runs_from_end_to_end(setting: Setting) -> None:
    part = CONTESTS["lenet"](replace(setting, num_rounds=2))
    assert len(part.series) == 3
    assert all(len(series.values) == 2 and min(series.values) > 0 for series in part.series)
    assert not list(setting.project.glob("*.db*"))


def test_the_row_of_lenet_5_is_trained_with_its_distortions_and_its_rate(setting: Setting) -> None:
    with speed.Contest(setting) as contest:
        spec, epochs = speed._one_epoch(contest, "lenet5")
        lbfgs, iterations = speed._one_epoch(contest, "logreg")
    recipe: Any = spec.recipe
    assert (recipe.augmentation.name, recipe.epochs_total, epochs) == ("affine", 1, 20)
    assert recipe.schedule.epochs_warmup == pytest.approx(5 / 20)
    assert lbfgs.recipe.epochs_total == iterations == speed.TINY.iterations
