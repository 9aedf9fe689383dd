"""A process that ends at once still ends as it should: its status, what it printed, what it promised to do at exit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remeasure.system import startup

SOURCE = Path(startup.__file__).parents[2]


def ended(main: str, *, stdout: int | None = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    """`startup.run` on a function with this body, in a process of its own."""
    code = (
        "import atexit, sys, threading, time\nfrom remeasure.system import startup\n"
        f"def main():\n  {main}\nstartup.run(main)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="latin-1",
        env={"PYTHONPATH": str(SOURCE), **environment},
        check=False,
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


SAID = "97.3 ± 0.1 × 2 – α Δ ½ … → \u2265 é █ \u2603 \udce9"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", "97.3 +- 0.1 x 2 - alpha Delta 1/2 ... -> >= e # ? \xe9"),
        ("latin-1", "97.3 ± 0.1 × 2 - alpha Delta ½ ... -> >= é # ? \xe9"),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_character_that_the_terminal_lacks_has_a_stand_in(encoding: str, printed: str, stream: str) -> None:
    done = ended(f"print({SAID!a}, file=sys.{stream}); return 0", PYTHONUTF8="0", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert getattr(done, stream) == f"{printed}\n"


def test_every_file_has_a_name_in_a_locale_without_utf_8_whose_encoding_is_still_printed_in() -> None:
    main = "print(sys.getfilesystemencoding(), sys.stdout.encoding, '\\xb1'); return 0"
    done = ended(main, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "utf-8 ascii +-\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_a_closed_stdout_or_stderr_is_no_failure(closed: tuple[int, ...]) -> None:
    closes = "import os, sys; [os.close(each) for each in map(int, sys.argv[2:])]; "
    closes += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    code = "import sys; from remeasure.system import startup; "
    code += "startup.run(lambda: 3 + sys.stderr.isatty() + sys.stdout.isatty())"
    done = subprocess.run(
        [sys.executable, "-c", closes, code, *map(str, closed)],
        capture_output=True,
        env={"PYTHONPATH": str(SOURCE)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, b"")


def test_every_core_is_used_where_the_system_does_not_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no sched_getaffinity."""
    assert startup.num_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert startup.num_cores() == 10
