"""SIGINT, SIGTERM and SIGHUP raise SystemExit, but not inside a block that is `held`.

An interrupted call to MLflow's store can leave a transaction open; the process then locks itself out of the store and
cannot write its final state.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_depth = 0  # nesting depth of `held` blocks
_waiting = 0  # the deferred signal; 0: none


def handle() -> None:
    """Install handlers: signal n ends the process with status 128 + n. A SIGHUP that nohup ignores stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def held() -> Iterator[None]:
    """Defer a signal to the end of this block; a second one ends the process at once. For the main thread."""
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
