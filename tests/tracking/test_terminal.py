"""Progress: live lines on a terminal, else plain ones; it never stops a run and leaves nothing behind."""

import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from tests.support.project import CHECKOUT
from tests.support.terminal import Terminal

from remeasure.judging import ledger
from remeasure.spec.claim import Verdict
from remeasure.tracking.observer import Standing, State
from remeasure.tracking.terminal import Progress, duration

FIRST, SECOND = Path("first"), Path("second")
ROW = ledger.read(CHECKOUT / "conf/benchmark.yaml")["mlp2-mnist"]


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def started(*, seed: int, event: str = "started", row: str = "mlp2-mnist") -> dict[str, Any]:
    return {"event": event, "row": row, "seed": seed, "model": "mlp2", "data": "mnist", "epochs_total": 10}


def epoch(number: int) -> dict[str, Any]:
    return {"event": "epoch", "split": "train", "epoch": number, "loss": 0.25, "accuracy_percent": 93.384}


def finished(epochs: int = 10) -> dict[str, Any]:
    return {"event": "finished", "record": {"accuracy_percent": 97.81, "wall_seconds": 9.84, "epochs": epochs}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


# ---------------------------------------------------------------- plain lines


def test_without_a_terminal_a_run_speaks_at_its_ends_and_every_ten_seconds(clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=3))
    for number in range(1, 8):  # 3 s each: 18 s left after the fourth, 9 s after the seventh
        clock.seconds += 3
        progress(FIRST, epoch(number))
    progress(FIRST, {**epoch(10), "split": "test"})
    progress(FIRST, finished())
    assert stream.getvalue().splitlines() == [
        "mlp2-mnist seed 3: started, 10 epochs",
        "mlp2-mnist seed 3: epoch 4/10, 18 s left, loss 0.2500, train 93.38 %",
        "mlp2-mnist seed 3: 97.810 % in 9.8 s",
    ]


def test_on_request_each_epoch_has_a_line_as_a_loop_by_hand_prints_it(clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock, prints_epochs=True)
    progress(FIRST, started(seed=3))
    progress(FIRST, epoch(1))
    progress(FIRST, {**epoch(10), "split": "test"})
    assert stream.getvalue().splitlines()[1:] == [
        "Epoch 1/10, train loss 0.2500, train accuracy 93.38 %",
        "Epoch 10/10, test loss 0.2500, test accuracy 93.38 %",
    ]


@pytest.mark.parametrize("prints_epochs", [True, False])
def test_a_validation_score_stands_beside_its_own_epochs_training(prints_epochs: bool, clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock, prints_epochs=prints_epochs)
    progress(FIRST, started(seed=3))
    for number in (1, 2):
        clock.seconds += 11
        progress(FIRST, {**epoch(number), "split": "validation", "step": 9 * number, "accuracy_percent": 90.0 + number})
        progress(FIRST, epoch(number))
    progress(FIRST, {**epoch(2), "split": "validation", "step": None})  # the final score
    said = stream.getvalue().splitlines()[1:]
    lines = [
        ("Epoch 1/10, train loss 0.2500, train accuracy 93.38 %, validation loss 0.2500, validation accuracy 91.00 %"),
        ("mlp2-mnist seed 3: epoch 1/10, 99 s left, loss 0.2500, train 93.38 %, validation 91.00 %"),
        ("Epoch 2/10, train loss 0.2500, train accuracy 93.38 %, validation loss 0.2500, validation accuracy 92.00 %"),
        ("mlp2-mnist seed 3: epoch 2/10, 88 s left, loss 0.2500, train 93.38 %, validation 92.00 %"),
        "Epoch 2/10, validation loss 0.2500, validation accuracy 93.38 %",
    ]
    assert said == (lines if prints_epochs else lines[1::2])


def test_a_resumed_run_counts_its_time_from_its_first_whole_epoch(clock: Clock) -> None:
    """It goes on in the midst of epoch 6, so that this one took it less than the others will."""
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0, event="resumed"))
    for seconds, number in ((11, 6), (31, 7)):
        clock.seconds = seconds
        progress(FIRST, epoch(number))
    assert stream.getvalue().splitlines() == [
        "mlp2-mnist seed 0: resumed, 10 epochs",
        "mlp2-mnist seed 0: epoch 6/10, loss 0.2500, train 93.38 %",
        "mlp2-mnist seed 0: epoch 7/10, 60 s left, loss 0.2500, train 93.38 %",
    ]


def test_epochs_on_larger_images_take_longer(clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0) | {"work_by_epoch": [0.25] * 4 + [1.0] * 6})
    clock.seconds = 20
    progress(FIRST, epoch(4))  # one of seven parts of the work
    assert stream.getvalue().splitlines()[1].startswith("mlp2-mnist seed 0: epoch 4/10, 2 min left, ")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event": "interrupted", "reason": "SystemExit(143)"}, "interrupted; start it again and it goes on"),
        ({"event": "failed", "reason": "OSError('disk')"}, "failed"),
        ({"event": "finished", "reason": "not finite", "record": {"accuracy_percent": None}}, "diverged: not finite"),
        (finished(), "97.810 % in 9.8 s"),
        (finished(7), "97.810 % in 9.8 s, stopped by a callback after 7 of 10 epochs"),
    ],
)
def test_how_a_run_ended_is_said_in_words(event: dict[str, Any], expected: str, clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0, row=""))
    progress(FIRST, event)
    assert stream.getvalue().splitlines()[1:] == [f"mlp2-mnist seed 0: {expected}"]


def test_an_evaluation_of_images_was_not_stopped_by_a_callback(clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0) | {"epochs_total": 0})
    progress(FIRST, {"event": "images", "done": 512, "total": 50_000, "images_per_second": 20.0})
    progress(FIRST, finished(0))
    assert stream.getvalue().splitlines()[-1] == "mlp2-mnist seed 0: 97.810 % in 9.8 s"


def test_a_dumb_terminal_gets_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    Progress(terminal, clock=clock)(FIRST, started(seed=0))
    assert terminal.getvalue() == "mlp2-mnist seed 0: started, 10 epochs\n"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5400.0, "90 min"), (7200.0, "2.0 h"), (12600.0, "3.5 h")],
)
def test_a_duration_is_in_the_unit_that_a_person_would_use(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


# ---------------------------------------------------------------- live lines


def standing(num: int, *, state: State = "running") -> Standing:
    verdict = Verdict(verdict="undecided", reason="", num_seeds=num, mean_percent=97.912, sd_percent=0.158)
    none_yet = Verdict(verdict="not measured", reason="", num_seeds=0)
    return Standing(
        row=ROW,
        verdict=verdict if num else none_yet,
        num_seeds=num,
        num_asked=40,
        spec_sha256="0" * 64,
        device_kind="cpu",
        measured="measured here",
        state=state,
    )


def test_two_runs_stand_below_what_was_said(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    progress.say("plan")
    progress(FIRST, started(seed=0))
    progress(SECOND, started(seed=1))
    for number in range(1, 6):  # 2 s each: after 10 s, 10 s are left
        clock.seconds += 2
        if clock.seconds == 4:
            progress(FIRST, epoch(1))  # 4 s each: 36 s left, of which 6 s pass before the last line is drawn
        progress(SECOND, epoch(number))
    state = "loss 0.2500, train 93.38 %"
    said, first, second = terminal.shown()
    assert said == "plan"
    assert re.fullmatch(rf"mlp2-mnist seed 0 [━╸╺]+ epoch 1/10, 30 s left, {state}", first)
    assert re.fullmatch(rf"mlp2-mnist seed 1 [━╸╺]+ epoch 5/10, 10 s left, {state}", second)


def test_a_row_is_one_line_with_its_seeds_mean_and_time_left(clock: Clock, terminal: Terminal) -> None:
    """Two of 40 seeds and half of two others after 30 s: 10 s a seed, 37 to go."""
    progress = Progress(terminal, clock=clock)
    progress.row(standing(0))
    for directory, seed in ((FIRST, 2), (SECOND, 3)):
        progress(directory, started(seed=seed))
    clock.seconds = 30
    progress.row(standing(2))
    progress(FIRST, epoch(5))
    clock.seconds = 30.2
    progress(SECOND, epoch(5))
    (line,) = terminal.shown()
    assert re.fullmatch(r"mlp2-mnist [━╸╺]+ 2/40 seeds, 6 min left, 97.91 ± 0.16 %, undecided so far", line)


def test_a_row_counts_no_time_in_which_other_rows_had_the_workers(clock: Clock, terminal: Terminal) -> None:
    """A seed in 60 s, then an hour in which none of its seeds is trained, then half a seed in 30 s: 38.5 to go."""
    progress = Progress(terminal, clock=clock)
    progress.row(standing(0))
    progress(FIRST, started(seed=0))
    clock.seconds = 60
    progress(FIRST, finished())
    progress.row(standing(1))
    clock.seconds += 3600
    progress(SECOND, started(seed=1))
    clock.seconds += 30
    progress(SECOND, epoch(5))
    (line,) = terminal.shown()
    assert ", 38 min left" in line


def test_a_row_counts_no_time_for_what_a_resumed_seed_had_done_before(clock: Clock, terminal: Terminal) -> None:
    """Half a seed in 30 s, and 39 seeds to go; a rate of a whole seed in 30 s would give 20 minutes."""
    progress = Progress(terminal, clock=clock)
    progress.row(standing(0))
    progress(FIRST, started(seed=0, event="resumed"))
    progress(FIRST, epoch(5))
    clock.seconds = 30
    progress(FIRST, epoch(10))
    (line,) = terminal.shown()
    assert ", 39 min left" in line


def test_a_row_tells_no_time_left_while_its_first_seeds_start(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    progress.row(standing(0))
    progress(FIRST, started(seed=0))
    clock.seconds = 10
    progress(FIRST, epoch(1))
    (line,) = terminal.shown()
    assert line.endswith(" 0/40 seeds")


@pytest.mark.parametrize("is_live", [True, False])
def test_lines_break_between_words(
    is_live: bool, clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm" if is_live else "dumb")
    progress = Progress(terminal, clock=clock)
    progress.say(f"{'x' * 76} 91.867 % {'y' * 90}")
    assert terminal.getvalue().splitlines() == ["x" * 76, "91.867 %", "y" * 90]


def test_the_seeds_of_a_row_have_lines_of_their_own_only_on_request(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for verbosity, expected in (("normal", []), ("verbose", ["started, 10 epochs", "97.810 % in 9.8 s"])):
        stream = Terminal()
        progress = Progress(stream, clock=clock, verbosity=verbosity)
        progress.row(standing(0))
        progress(FIRST, started(seed=0))
        progress(FIRST, finished())
        progress.row(standing(1, state="finished"))
        progress.close()
        assert stream.shown() == [f"mlp2-mnist seed 0: {line}" for line in expected]


def test_a_seed_that_diverges_and_a_row_that_is_interrupted_are_said(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    progress.row(standing(0))
    progress(FIRST, started(seed=0))
    progress(FIRST, {"event": "finished", "reason": "not finite", "record": {"accuracy_percent": None}})
    progress.row(standing(3, state="interrupted"))
    progress.close()
    assert terminal.shown() == [
        "mlp2-mnist seed 0: diverged: not finite",
        "mlp2-mnist: interrupted after 3 of 40 seeds; start it again and it goes on",
    ]


def test_quiet_shows_what_is_said_alone(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock, verbosity="quiet")
    progress(FIRST, started(seed=0))
    clock.seconds = 20
    progress(FIRST, epoch(1))
    progress(FIRST, finished())
    progress.say("mlp2-mnist: reproduced")
    progress.close()
    assert terminal.shown() == ["mlp2-mnist: reproduced"]


def test_a_live_line_gives_way_to_its_result_and_the_others_stay(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    for directory, seed in ((FIRST, 0), (SECOND, 1)):
        progress(directory, started(seed=seed))
        clock.seconds += 1
        progress(directory, epoch(1))
    progress(FIRST, finished())
    done, line = terminal.shown()
    assert done == "mlp2-mnist seed 0: 97.810 % in 9.8 s"
    assert line.startswith("mlp2-mnist seed 1 ")


def test_what_another_prints_is_not_drawn_over(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(clock=clock)
    progress(FIRST, started(seed=0))
    progress(SECOND, started(seed=1))
    clock.seconds = 1
    progress(FIRST, epoch(1))
    print("tracking is behind: the server does not answer", file=sys.stderr)
    clock.seconds = 2
    progress(SECOND, epoch(1))
    lines = terminal.shown()
    progress.close()
    assert lines[0] == "tracking is behind: the server does not answer"
    assert [line[:17] for line in lines[1:]] == ["mlp2-mnist seed 0", "mlp2-mnist seed 1"]


def test_the_terminal_is_clean_after_an_interruption(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    for directory, seed in ((FIRST, 0), (SECOND, 1)):
        progress(directory, started(seed=seed))
        clock.seconds += 1
        progress(directory, epoch(1))
    terminal.write("^C")  # the terminal's own echo
    progress.close()
    terminal.write("$ ")  # the prompt of the shell
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l"), "the cursor is hidden"
    assert terminal.shown() == [
        "mlp2-mnist seed 0: interrupted; start it again and it goes on",
        "mlp2-mnist seed 1: interrupted; start it again and it goes on",
        "$",
    ]


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_a_live_line_fits_the_terminal(
    columns: int, clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that wraps would leave its first half behind whenever it is drawn again."""
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(terminal, clock=clock)
    progress(FIRST, started(seed=0))
    clock.seconds = 1
    progress(FIRST, epoch(10))
    (line,) = terminal.shown(columns=columns)
    assert line.startswith("mlp2-")
    assert 10 < len(line) <= columns


def test_more_runs_than_lines_do_not_scroll(clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "24")
    progress = Progress(terminal, clock=clock)
    for seed in range(30):
        clock.seconds += 1
        progress(Path(str(seed)), started(seed=seed))
        progress(Path(str(seed)), epoch(1))
    assert len(terminal.shown()) <= 24


def test_live_lines_are_drawn_ten_times_a_second_at_most(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    clock.seconds = 1.0
    progress(FIRST, started(seed=0))
    for _ in range(1000):
        clock.seconds += 0.001
        progress(FIRST, epoch(1))
    assert 5 <= terminal.getvalue().count("epoch 1/10") <= 11


# ---------------------------------------------------------------- never in the way


@pytest.mark.parametrize("make", [StringIO, Terminal])
def test_a_stream_that_broke_does_not_stop_the_run(
    make: Callable[[], StringIO], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = make()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0))

    def broken(_: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(stream, "write", broken)
    before = stream.getvalue()
    for number in range(1, 4):
        clock.seconds += 20
        progress(FIRST, epoch(number))
    progress(FIRST, finished())
    progress.say("more")
    progress.close()
    assert stream.getvalue() == before
    progress.stream.close()
