"""Signals end a process by an exception that no call to a store is broken off by."""

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

import remeasure.cli
from remeasure.cli import commands
from remeasure.system import signals
from remeasure.tracking.best_effort import BestEffort

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPPING}  # under nohup, one is ignored
    signals.handle()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_here(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_the_process_with_its_status(number: int) -> None:
    with pytest.raises(SystemExit) as ended:
        raise_here(number)
    assert ended.value.code == 128 + number


def status_of(body: Callable[[], None]) -> object:
    """Of a process that does this with its interrupts held."""
    with pytest.raises(SystemExit) as ended, signals.held():
        body()
    with signals.held():  # none is left over
        pass
    return ended.value.code


def test_a_signal_waits_for_the_outermost_block_and_comes_once() -> None:
    reached = []

    def body() -> None:
        with signals.held():
            raise_here(signal.SIGTERM)
            reached.append("inner")
        reached.append("outer")

    assert status_of(body) == 143
    assert reached == ["inner", "outer"]


def test_a_second_signal_does_not_wait() -> None:
    reached = []

    def body() -> None:
        raise_here(signal.SIGTERM)
        reached.append("first")
        raise_here(signal.SIGINT)
        reached.append("second")

    assert status_of(body) == 143
    assert reached == ["first"]


def test_a_signal_outlives_the_fault_that_ends_the_block() -> None:
    def body() -> None:
        raise_here(signal.SIGTERM)
        raise ValueError

    assert status_of(body) == 143


def test_a_call_to_a_store_is_not_broken_off() -> None:
    """A transaction that stays open locks the process out of its own store."""
    sent = []

    def send() -> str:
        raise_here(signal.SIGTERM)
        sent.append("whole")
        return "id"

    with pytest.raises(SystemExit):
        BestEffort().at_once(send)
    assert sent == ["whole"]


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.handle()
    raise_here(signal.SIGHUP)


@pytest.mark.parametrize(
    ("command", "imports"), [("reproduce_main", "remeasure.cli.reproduce"), ("train_main", "hydra")]
)
def test_signals_are_handled_before_the_imports_that_take_a_while(
    command: str, imports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Watching:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == imports:
                seen.append("imported")
                raise LookupError(name)

    monkeypatch.setattr(signals, "handle", lambda: seen.append("handled"))
    monkeypatch.delitem(sys.modules, imports, raising=False)
    monkeypatch.delattr(remeasure.cli, imports.rpartition(".")[2], raising=False)
    monkeypatch.setattr(sys, "meta_path", [Watching, *sys.meta_path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(LookupError):
        getattr(commands, command)(*[[]] * (command == "reproduce_main"))
    assert seen == ["handled", "imported"]
