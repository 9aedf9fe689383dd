"""A process that ends at once still ends as it should: its status, what it printed, what it promised to do at exit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remeasure.system import startup

SOURCE = Path(startup.__file__).parents[2]


def ended(main: str, *, stdout: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """`startup.run` on a function with this body, in a process of its own."""
    code = (
        "import atexit, sys, threading, time\nfrom remeasure.system import startup\n"
        f"def main():\n  {main}\nstartup.run(main)"
    )
    environment = {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("main", "status"),
    [("return 0", 0), ("return 2", 2), ("sys.exit(143)", 143), ("sys.exit()", 0), ("sys.exit('why')", 1), ("1 / 0", 1)],
)
def test_the_exit_status_is_mains(main: str, status: int) -> None:
    assert ended(main).returncode == status


def test_an_exception_is_shown_and_so_is_all_that_was_printed() -> None:
    done = ended("print('begun', end=''); 1 / 0")
    assert done.stdout == "begun"
    assert "ZeroDivisionError" in done.stderr


def test_what_was_promised_for_the_exit_is_done_and_threads_are_waited_for() -> None:
    later = "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    assert ended(f"atexit.register(print, 'promise'); {later}; return 0").stdout == "thread\npromise\n"


def test_memory_is_not_freed_object_by_object() -> None:
    keeps = "main.kept = type('Kept', (), {'__del__': lambda self: print('freed')})(); return 0"
    assert ended(keeps).stdout == ""


def test_output_that_nobody_reads_ends_with_pythons_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def flush(self) -> None:
            raise BrokenPipeError

    ends: list[int] = []
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(startup.os, "_exit", ends.append)
    finish: Callable[[int], object] = startup.end
    finish(0)
    assert ends == [120]
