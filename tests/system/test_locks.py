"""Locks that tell who is there: taken by one, seen by others, freed by whatever ends a process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remeasure.spec.base import InputError
from remeasure.system import locks
from remeasure.system.locks import Presence

HOLD = """
import sys, time
from pathlib import Path
from remeasure.system import locks
{take}
print("there", flush=True)
time.sleep(60)
"""
ALONE = HOLD.format(take="held = locks.held(Path(sys.argv[1])); held.__enter__()")
TOGETHER = HOLD.format(take="present = locks.Presence(Path(sys.argv[1]), note='row/abc/cpu')")


def start(code: str, path: Path) -> "subprocess.Popen[str]":
    """A process that has what it wants, and stays."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_what_a_process_holds_is_seen_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    process = start(ALONE, path)
    assert locks.is_held(path)
    with locks.held_if_free(path) as free:
        assert not free
    kill(process)
    assert not locks.is_held(path)
    with locks.held_if_free(path) as free:
        assert free
        assert locks.is_held(path)  # by this very process
    assert not locks.is_held(path)


def orphaned(path: Path, *, settled: bool = True) -> list[str]:
    """The note that killed processes left, if any; dealt with, or not."""
    notes = list[str]()

    def take(note: str) -> bool:
        notes.append(note)
        return settled

    locks.settle(path, take=take)
    return notes


def test_the_last_one_to_leave_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "campaigns" / "row"
    first, second = Presence(path, note="row/abc/cpu"), Presence(path, note="row/abc/cpu")
    assert orphaned(path) == []
    assert not first.leave()
    assert path.read_text() == "row/abc/cpu"
    assert second.leave()
    assert path.read_text() == ""
    assert orphaned(path) == []


def test_what_killed_processes_left_is_found_once(tmp_path: Path) -> None:
    path = tmp_path / "row"
    first, second = start(TOGETHER, path), start(TOGETHER, path)
    kill(first)
    assert orphaned(path) == []  # the other one is still there
    kill(second)
    assert orphaned(path) == ["row/abc/cpu"]
    assert orphaned(path) == []


def test_an_orphan_that_could_not_be_dealt_with_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "row"
    kill(start(TOGETHER, path))

    def fail(note: str) -> bool:
        raise OSError(note)

    with pytest.raises(OSError, match="row/abc/cpu"):
        locks.settle(path, take=fail)
    assert orphaned(path, settled=False) == ["row/abc/cpu"]
    assert orphaned(path) == ["row/abc/cpu"]
    assert orphaned(path) == []


def test_whoever_waits_says_so_and_not_for_ever_where_there_is_a_deadline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    process = start(ALONE, path)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match="lock for 1 s"), locks.held(path, seconds=1.2):
        pass
    assert capsys.readouterr().err == f"waiting for another process, which holds {path}\n"
    kill(process)
    with locks.held(path, seconds=0.0):
        assert locks.is_held(path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_can_be_read_and_is_named_where_it_would_be_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)
    with locks.held_folder(tmp_path):
        pass
    writers = [
        lambda: locks.held_folder(tmp_path, writes=True).__enter__(),
        lambda: locks.held(tmp_path / "lock").__enter__(),
        lambda: Presence(tmp_path / "row", note="row/abc/cpu"),
    ]
    for write in writers:
        with pytest.raises(InputError, match="no file locks") as refused:
            write()
        assert refused.value.faults[0].startswith(f"{tmp_path}: ")
