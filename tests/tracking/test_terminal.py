"""Progress: bars on a terminal, plain lines where there is none; it never stops a run and leaves nothing behind."""

import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from tests.support.terminal import Terminal

from remeasure.tracking.terminal import Progress, duration

FIRST, SECOND = Path("first"), Path("second")


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


def finished() -> dict[str, Any]:
    return {"event": "finished", "record": {"accuracy_percent": 97.81, "wall_seconds": 9.84}}


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


def test_a_resumed_run_counts_its_time_from_where_it_goes_on(clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0, event="resumed"))
    clock.seconds = 12
    progress(FIRST, epoch(6))  # the first that it trains itself: 4 more at 12 s
    assert stream.getvalue().splitlines() == [
        "mlp2-mnist seed 0: resumed, 10 epochs",
        "mlp2-mnist seed 0: epoch 6/10, 48 s left, loss 0.2500, train 93.38 %",
    ]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event": "interrupted", "reason": "SystemExit(143)"}, "interrupted; start it again and it goes on"),
        ({"event": "failed", "reason": "OSError('disk')"}, "failed: OSError('disk')"),
        ({"event": "finished", "reason": "not finite", "record": {"accuracy_percent": None}}, "diverged: not finite"),
        (finished(), "97.810 % in 9.8 s"),
    ],
)
def test_how_a_run_ended_is_said_in_words(event: dict[str, Any], expected: str, clock: Clock) -> None:
    stream = StringIO()
    progress = Progress(stream, clock=clock)
    progress(FIRST, started(seed=0, row=""))
    progress(FIRST, event)
    assert stream.getvalue().splitlines()[1:] == [f"mlp2-mnist seed 0: {expected}"]


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


# ---------------------------------------------------------------- bars


def test_two_bars_stand_below_what_was_said(clock: Clock, terminal: Terminal) -> None:
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
    assert terminal.shown() == [  # 79 columns - 17 of the title - 49 of the state - 2 spaces = 11 for the bar
        "plan",
        f"mlp2-mnist seed 0 █{'░' * 10} epoch 1/10, 30 s left, {state}",
        f"mlp2-mnist seed 1 {'█' * 5}{'░' * 6} epoch 5/10, 10 s left, {state}",
    ]


def test_a_bar_gives_way_to_its_result_and_the_others_stay(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    for directory, seed in ((FIRST, 0), (SECOND, 1)):
        progress(directory, started(seed=seed))
        clock.seconds += 1
        progress(directory, epoch(1))
    progress(FIRST, finished())
    done, bar = terminal.shown()
    assert done == "mlp2-mnist seed 0: 97.810 % in 9.8 s"
    assert bar.startswith("mlp2-mnist seed 1 █░")


def test_what_another_prints_is_not_drawn_over(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    progress(FIRST, started(seed=0))
    progress(SECOND, started(seed=1))
    clock.seconds = 1
    progress(FIRST, epoch(1))
    terminal.write("tracking is behind: the server does not answer; it will be completed by `make track`, later\n")
    clock.seconds = 2
    progress(SECOND, epoch(1))
    lines = terminal.shown()
    assert lines[0].startswith("tracking is behind")
    assert [line[:17] for line in lines[2:]] == ["mlp2-mnist seed 0", "mlp2-mnist seed 1"]


def test_the_terminal_is_clean_after_an_interruption(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    for directory, seed in ((FIRST, 0), (SECOND, 1)):
        progress(directory, started(seed=seed))
        clock.seconds += 1
        progress(directory, epoch(1))
    terminal.write("^C")  # the terminal's own echo
    progress.close()
    terminal.write("$ ")  # the prompt of the shell
    assert terminal.shown() == [
        "mlp2-mnist seed 0: interrupted; start it again and it goes on",
        "mlp2-mnist seed 1: interrupted; start it again and it goes on",
        "$",
    ]


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_a_bar_fits_the_line(columns: int, clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps would leave its first half behind whenever it is drawn again."""
    monkeypatch.setattr(terminal, "fileno", lambda: 7)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    progress = Progress(terminal, clock=clock)
    progress(FIRST, started(seed=0))
    clock.seconds = 1
    progress(FIRST, epoch(10))
    last = terminal.getvalue().rpartition("\x1b[J")[2].rstrip("\r")
    assert last.startswith("mlp2-mnist seed 0")
    assert 10 < len(last) < columns


def test_more_runs_than_lines_do_not_scroll(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    for seed in range(30):  # on a terminal of 24 lines
        clock.seconds += 1
        progress(Path(str(seed)), started(seed=seed))
        progress(Path(str(seed)), epoch(1))
    assert len(terminal.shown()) == 23


def test_bars_are_drawn_ten_times_a_second_at_most(clock: Clock, terminal: Terminal) -> None:
    progress = Progress(terminal, clock=clock)
    progress(FIRST, started(seed=0))
    for _ in range(1000):
        clock.seconds += 0.001
        progress(FIRST, epoch(1))
    assert 5 <= terminal.getvalue().count("\x1b[J") <= 10


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
