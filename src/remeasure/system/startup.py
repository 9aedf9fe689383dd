"""Faster start and end of a process that imports torch, Lightning and mlflow.

Their imports create a million objects. Garbage collection takes a quarter of the import time; freeing the objects one
by one at the end takes two seconds, although the kernel reclaims the memory at once.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

YOUNG_OBJECTS = 100_000  # Python's default of 700 starts a collection every few modules


def begin() -> None:
    """Make garbage collections rarer. Call it before the imports."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)


def run(main: Callable[[], int]) -> NoReturn:
    """Run main and end this process with its exit status: after the atexit handlers, without freeing memory."""
    begin()
    status = 1
    atexit.register(lambda: end(status))  # registered first, so that atexit calls it last
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(status)


def end(status: int) -> NoReturn:
    """Flush stdout and stderr and end this process at once."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader of the pipe has gone; Python itself ends with 120 then
        status = 120
    os._exit(status)
