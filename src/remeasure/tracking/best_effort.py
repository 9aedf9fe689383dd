"""Calls to a tracker that may fail or be slow without stopping or delaying a run."""

import math
import sys
import time
from collections.abc import Callable
from typing import ParamSpec

from remeasure.system import signals
from remeasure.system.redaction import masked

P = ParamSpec("P")


class BestEffort:
    """Calls a tracker for a live run: a failure is reported in one line on stderr, and the run goes on.

    After a call, further calls are skipped for 200 times as long as it took, and for at least 10 s if it failed: live
    points cost at most 0.5 % of the time, however slow the store is. `clock` returns seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resting_until = self._down_until = -math.inf
        self._behind = False

    def __call__(self, send: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
        """`send(*args, **kwargs)`, as in `best_effort(tracker.project, directory)`; "" if it failed or was skipped."""
        return "" if self._clock() < self._resting_until else self.at_once(send, *args, **kwargs)

    def at_once(self, send: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
        """The same for calls that matter: a run's last one, and those whose id is needed.

        Skipped only after a call that failed and took over 1 s, for nine times as long as it took: an outage costs at
        most a tenth of the time.
        """
        began = self._clock()
        if began < self._down_until:
            return ""
        try:
            with signals.held():
                sent = send(*args, **kwargs)
        except Exception as error:
            self._rest(began=began, at_least=10.0)
            if (seconds := self._clock() - began) > 1:
                self._down_until = self._clock() + 9 * seconds
            if not self._behind:
                print(f"tracking is behind: {first_line(error)}; `make track` completes it", file=sys.stderr)
            self._behind = True
            return ""
        self._rest(began=began, at_least=0.0)
        self._behind = False
        return sent

    def _rest(self, *, began: float, at_least: float) -> None:
        ended = self._clock()
        self._resting_until = ended + max(at_least, 200 * (ended - began))


def first_line(error: Exception) -> str:
    text = masked(str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
