"""What a seed costs and what fits the budget, by hand on made-up seconds; a few real steps leave nothing behind."""

import dataclasses
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path

import pytest
import torch
from tests.support import trained
from torch.optim.optimizer import _global_optimizer_post_hooks

from remeasure.campaign import schedule
from remeasure.campaign.schedule import Forecast, plan, shown
from remeasure.runs import timing
from remeasure.runs.folder import Place, open_directory
from remeasure.runs.journal import Journal
from remeasure.runs.timing import EnoughError, StepClock, share_left
from remeasure.spec.photographs import Transform
from remeasure.spec.recipe import Evaluation, Normalisation, Recipe, Resolution
from remeasure.spec.run import RunSpec
from remeasure.system.console import console, rendered


def forecast(row: str, *seconds: float, spec: str = "", num_cores: int = 1, num_done: int = 0) -> Forecast:
    """Seeds 0, 1, … of a row, which cost so many seconds each."""
    each = {(spec or row, seed): value for seed, value in enumerate(seconds)}
    return Forecast(why="no seed is here", row=row, num_done=num_done, num_cores=num_cores, seconds=each)


# ---------------------------------------------------------------- what fits


def test_seeds_end_when_the_cores_that_are_free_first_have_done_them() -> None:
    """Two cores. a: 10 on each, then 10 on the first, so 20. b, 3 s, goes on the second: 13. c needs both: 20 + 5."""
    rows = [forecast("a", 10.0, 10.0, 10.0), forecast("b", 3.0), forecast("c", 5.0, num_cores=2)]
    assert schedule.ends(rows, num_cores=2) == {
        ("a", 0): 10.0,
        ("a", 1): 10.0,
        ("a", 2): 20.0,
        ("b", 0): 13.0,
        ("c", 0): 25.0,
    }


def test_the_plan_is_cheapest_first_and_says_what_each_row_needs_behind_those_before_it() -> None:
    """On two cores: dear 2 x 50 s side by side is 50 s; cheap 3 x 10 s is 20 s. Cheap ends after 10, 10 and 20 s, so
    that dear ends after 10 + 50 and 20 + 50 s. In 65 s its first seed fits, and its second does not.
    """
    rows = [forecast("dear", 50.0, 50.0), forecast("cheap", 10.0, 10.0, 10.0)]
    cheap, dear = plan(rows, num_cores=2, budget_seconds=65.0)
    assert (cheap.forecast.row, cheap.seconds_in_all, cheap.seconds_needed, len(cheap.fit)) == ("cheap", 20.0, 20.0, 3)
    assert (dear.forecast.row, dear.seconds_in_all, dear.seconds_needed, len(dear.fit)) == ("dear", 50.0, 70.0, 1)


def test_a_seed_fits_a_budget_of_exactly_its_seconds() -> None:
    assert plan([forecast("a", 10.0)], num_cores=1, budget_seconds=10.0)[0].fit
    assert not plan([forecast("a", 10.0)], num_cores=1, budget_seconds=9.9)[0].fit


def test_seeds_that_two_rows_share_are_planned_once() -> None:
    """One core: 3 seeds of 10 s for both rows, and one more for the second: 40 s, not 70."""
    rows = [forecast("a", 10.0, 10.0, 10.0, spec="s"), forecast("b", 10.0, 10.0, 10.0, 10.0, spec="s")]
    first, second = plan(rows, num_cores=1, budget_seconds=100.0)
    assert (first.seconds_needed, second.seconds_needed) == (30.0, 40.0)
    told = rendered(
        shown([first, second], num_cores=1, budget_seconds=100.0, now=datetime.now()), on=console(StringIO())
    )
    assert told.startswith("4 seeds fit the budget"), "4 are trained, not 7"


def test_a_row_of_two_threads_has_two_cores_to_itself() -> None:
    """Four cores hold two of them: 4 seeds of 10 s end after 20 s; with one thread, after 10 s."""
    (two,) = plan([forecast("a", *[10.0] * 4, num_cores=2)], num_cores=4, budget_seconds=100.0)
    (one,) = plan([forecast("a", *[10.0] * 4)], num_cores=4, budget_seconds=100.0)
    assert (two.seconds_in_all, one.seconds_in_all) == (20.0, 10.0)


def test_the_table_names_the_budget_that_would_do() -> None:
    """One core: 5 x 36 s; then 2 x 2,000 s behind them, 4,180 s or 69.7 minutes; then 20,000 s, until 6.72 h."""
    rows = [forecast("a", *[36.0] * 5, num_done=2), forecast("bcd", 2000.0, 2000.0), forecast("e", 20000.0)]
    planned = plan(rows, num_cores=1, budget_seconds=3600.0)
    now = datetime(2026, 1, 31, 23, 0)
    content = shown(planned, num_cores=1, budget_seconds=3600.0, now=now)
    assert rendered(content, on=console(StringIO())).splitlines() == [
        "6 seeds fit the budget of 60 min; 1 worker; ends about 23:36",
        "row  why              seeds here  to train  a seed  in all  fits",
        "a    no seed is here           2         5    36 s   3 min  by about 23:03",
        "bcd  no seed is here           0         2  33 min  67 min  1 of 2 seeds fit; BUDGET=70m would do",
        "e    no seed is here           0         1   5.6 h   5.6 h  does not fit; BUDGET=6.8h would do",
    ]


def test_on_a_narrow_terminal_the_plan_leaves_out_columns() -> None:
    planned = plan([forecast("resnet18-cifar10", 60.0)], num_cores=1, budget_seconds=3600.0)
    content = shown(planned, num_cores=1, budget_seconds=3600.0, now=datetime(2026, 1, 31, 23, 59, 30))
    wide, narrow = (rendered(content, on=console(StringIO(), columns=columns)) for columns in (84, 60))
    assert wide.splitlines()[1:] == [
        "row               why              to train  in all  fits",
        "resnet18-cifar10  no seed is here         1    60 s  by about 2026-02-01 00:00",
    ]
    assert narrow.splitlines()[-3:] == [  # below a first line that is folded
        "row               to train  in all  fits",
        "resnet18-cifar10         1    60 s  by about 2026-02-01",
        "                                    00:00",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.2, "45s"), (90.0, "90s"), (91.0, "2m"), (120.5, "3m"), (6000.0, "1.7h"), (7200.0, "2h")]
)
def test_a_budget_is_written_rounded_up(seconds: float, text: str) -> None:
    assert schedule.budget(seconds) == text


# ---------------------------------------------------------------- what a seed costs


def ticking(*times: float) -> Callable[[], float]:
    """A clock that shows these times, one after another."""
    return iter(times).__next__


def test_the_first_step_warms_up_and_timing_stops_once_enough_seconds_have_passed() -> None:
    """Steps end at 9, 10, 12 and 13 s; from 9 on, 4 s have then passed in 3 steps."""
    clock = StepClock(limit_seconds=4.0, now=ticking(0.0, 9.0, 10.0, 12.0, 13.0))
    for _ in range(3):
        clock()
    with pytest.raises(EnoughError):
        clock()
    assert clock.seconds_per_step() == pytest.approx(4 / 3)


def test_a_step_that_takes_longer_than_the_limit_is_timed_all_the_same() -> None:
    clock = StepClock(limit_seconds=1.0, now=ticking(0.0, 90.0, 170.0))
    clock()
    with pytest.raises(EnoughError):
        clock()
    assert clock.seconds_per_step() == 80.0


def test_a_first_step_that_is_slow_is_enough() -> None:
    clock = StepClock(limit_seconds=1.0, now=ticking(0.0, 40.0), slow_seconds=10.0)
    with pytest.raises(EnoughError):
        clock()
    assert clock.seconds_per_step() == 40.0


def test_a_training_of_one_step_is_timed_from_its_start() -> None:
    clock = StepClock(limit_seconds=1.0, now=ticking(2.0, 5.0))
    clock()
    assert clock.seconds_per_step() == 3.0


def test_on_a_device_that_runs_behind_the_time_is_read_after_8_16_32_steps() -> None:
    """8 steps warm up. The next 8 take 1 s, the 16 after them 2 s: of a limit of 6 s the next 32 would be beyond."""
    clock = StepClock(limit_seconds=6.0, now=ticking(0.0, 9.0, 10.0, 12.0), ahead=True)
    for _ in range(31):
        clock()
    with pytest.raises(EnoughError):
        clock()
    assert clock.seconds_per_step() == 3 / 24


def test_a_short_training_on_such_a_device_is_timed_to_its_end() -> None:
    """5 steps from 2 to 7 s; and 20, of which 8 warm up until 9 s: 12 in 6 s."""
    for num, times, each in ((5, (2.0, 7.0), 1.0), (20, (2.0, 9.0, 13.0, 15.0), 0.5)):
        clock = StepClock(limit_seconds=100.0, now=ticking(*times), ahead=True)
        for _ in range(num):
            clock()
        assert clock.seconds_per_step() == each


def with_sizes(*, epochs_total: int, resolution: Resolution | None) -> RunSpec:
    spec = trained.spec()
    assert isinstance(spec.recipe, Recipe)
    recipe = dataclasses.replace(spec.recipe, epochs_total=epochs_total, resolution=resolution)
    return dataclasses.replace(spec, recipe=recipe)


def test_each_image_size_is_timed_and_weighed_by_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs 0 and 1 at 4 pixels, 2 to 4 at 6, 5 to 8 at all 8; 21 steps each. A step costs its pixels in seconds:
    21 x (2 x 4 + 3 x 6 + 4 x 8) = 1,218 s.
    """
    spec = with_sizes(epochs_total=9, resolution=Resolution(pixels=(4, 6), until_epoch=(2, 5)))
    seen = []

    def seconds_per_epoch(spec: RunSpec, *, place: Place, limit_seconds: float) -> float:
        assert isinstance(spec.recipe, Recipe)
        pixels = spec.recipe.resolution.pixels_at(0) if spec.recipe.resolution else 8
        seen.append((pixels, place.device_kind, limit_seconds))
        return 21.0 * (pixels or 0)

    monkeypatch.setattr(timing, "TIMED_SECONDS", 3.0)
    monkeypatch.setattr(timing, "_seconds_per_epoch", seconds_per_epoch)
    assert timing.seconds_of_seed(spec, place=trained.place(tmp_path)) == 1218.0
    assert seen == [(4, "cpu", 1.0), (6, "cpu", 1.0), (8, "cpu", 1.0)], "together at most 3 s"


@pytest.mark.parametrize("overrides", [(), ("model=logreg", "recipe=lbfgs"), ("recipe.epochs_total=1",)])
def test_timing_real_steps_leaves_nothing_behind(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, before = torch.get_num_threads(), len(_global_optimizer_post_hooks)
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.05)
    assert timing.seconds_of_seed(trained.spec(*overrides), place=trained.place(tmp_path)) > 0
    assert (torch.get_num_threads(), len(_global_optimizer_post_hooks), list(tmp_path.iterdir())) == (
        threads,
        before,
        [],
    )


def test_timing_stops_long_before_a_long_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million epochs: 1,000,000 x 21 steps, of which a few were done."""
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.05)
    steps: list[float] = []

    class Counting(StepClock):
        def seconds_per_step(self) -> float:
            steps.extend(self.marks)
            return 2.0

    monkeypatch.setattr(timing, "StepClock", Counting)
    spec = with_sizes(epochs_total=1_000_000, resolution=None)
    assert timing.seconds_of_seed(spec, place=trained.place(tmp_path)) == 42e6
    assert 2 < len(steps) < 100_000


def evaluation(*, batch_size: int) -> RunSpec:
    """mlp2 on the digits, as if its weights were published."""
    spec = trained.spec()
    recipe = Evaluation(
        name="published",
        mode="evaluate",
        weights="none",
        batch_size=batch_size,
        transform=Transform(crop_pixels=8, crop_pct=1.0, interpolation="bicubic"),
        normalisation=Normalisation(mean=(0.5,), std=(0.5,)),
    )
    return dataclasses.replace(spec, recipe=recipe)


def test_an_evaluation_costs_its_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing.seconds_of_seed(evaluation(batch_size=16), place=trained.place(tmp_path)) > 0
    monkeypatch.setattr(timing, "_seconds_per_image", lambda *_, **__: 0.5)
    assert timing.seconds_of_seed(evaluation(batch_size=16), place=trained.place(tmp_path)) == 250.0  # 500 images


# ---------------------------------------------------------------- what is left of a seed


def interrupted(spec: RunSpec, folder: Path, *, epochs: int, checkpoint: bool = True) -> None:
    """Seed 0 as it stands after so many epochs."""
    directory = open_directory(spec, seed=0, place=trained.place(folder), fresh=False)
    journal = Journal(directory)
    journal.write("started")
    for epoch in range(1, epochs + 1):
        journal.write("epoch", epoch=epoch)
    if checkpoint:
        (directory / "checkpoint.ckpt").touch()


def test_a_seed_with_a_checkpoint_costs_what_is_left_of_it(tmp_path: Path) -> None:
    spec = with_sizes(epochs_total=10, resolution=None)
    place = trained.place(tmp_path)
    assert share_left(spec, seed=0, place=place) == 1.0
    interrupted(spec, tmp_path, epochs=7)
    assert share_left(spec, seed=0, place=place) == pytest.approx(0.3)
    assert share_left(spec, seed=1, place=place) == 1.0


def test_without_its_checkpoint_a_seed_begins_anew(tmp_path: Path) -> None:
    spec = with_sizes(epochs_total=10, resolution=None)
    interrupted(spec, tmp_path, epochs=7, checkpoint=False)
    assert share_left(spec, seed=0, place=trained.place(tmp_path)) == 1.0


def test_epochs_on_small_images_are_a_small_share(tmp_path: Path) -> None:
    """Of 4 epochs, 2 at half of 8 pixels: 1/4 + 1/4 + 1 + 1 = 2.5. After the first, 2.25 of them are left."""
    spec = with_sizes(epochs_total=4, resolution=Resolution(pixels=(4,), until_epoch=(2,)))
    interrupted(spec, tmp_path, epochs=1)
    assert share_left(spec, seed=0, place=trained.place(tmp_path)) == pytest.approx(2.25 / 2.5)
