"""Wait for what another process or thread does. Imports no torch: worker processes use it, too."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, seconds: float = 300.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)
