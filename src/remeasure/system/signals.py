"""SIGINT, SIGTERM and SIGHUP end a command by SystemExit, but not in the middle of what it would spoil.

A call to MLflow's store that is broken off in the middle can keep a transaction open, and the process then locks itself
out of the store: what it has to say at its end would be lost.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_depth = 0  # of blocks that hold interrupts
_waiting = 0  # the signal that came meanwhile


def handle() -> None:
    """End this process with status 128 + n at signal n from now on; a SIGHUP that nohup ignores stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes in this block ends the process after it; a second one at once. For the main thread."""
    global _depth, _waiting
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _waiting and not _depth:
            number, _waiting = _waiting, 0
            raise SystemExit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    global _waiting
    if _depth and not _waiting:
        _waiting = number
        return
    raise SystemExit(128 + number)
