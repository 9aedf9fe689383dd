"""The journal: whole lines, in order, readable after any crash."""

import binascii
import errno
import json
import math
import os
import re
from pathlib import Path

import pytest

from remeasure.runs.journal import JOURNAL_FILE, Journal, curve, encode, last, read
from remeasure.system.clock import now


def epoch(number: int, split: str, **values: object) -> dict[str, object]:
    return {"event": "epoch", "epoch": number, "split": split, **values}


def test_what_is_written_is_read_in_order_with_its_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first = journal.write("started", run_id="a", row="", note="1,2 µs\u2028 and\na new line")
    second = journal.write("epoch", epoch=1, loss=math.nan)
    assert read(tmp_path)[0] == first
    assert [event["event"] for event in read(tmp_path)] == ["started", "epoch"]
    assert math.isnan(read(tmp_path)[1]["loss"])
    assert second["event"] == "epoch"
    assert (tmp_path / JOURNAL_FILE).read_text().count("\n") == 2


def test_times_are_utc_to_the_second() -> None:
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


def test_a_run_without_a_journal_has_no_events(tmp_path: Path) -> None:
    assert read(tmp_path) == []


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_a_line_torn_by_a_crash_is_left_out_and_swallows_nothing(kept: int, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("started", row="a")
    whole = journal.path.read_bytes()
    journal.write("epoch", epoch=1, split="train")
    torn = journal.path.read_bytes()[len(whole) :][:kept]
    journal.path.write_bytes(whole + torn)
    Journal(tmp_path).write("resumed", row="a")
    names = [event["event"] for event in read(tmp_path)]
    assert names == (["started", "epoch", "resumed"] if kept == -1 else ["started", "resumed"])


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    whole = encode({"event": "finished"})
    (tmp_path / JOURNAL_FILE).write_text(f'\n3\n["event"]\n{{"event": "started"}}\n\0\0\0\n{whole}')
    assert read(tmp_path) == [{"event": "finished"}]


def test_a_line_of_which_any_byte_was_changed_is_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).write("started", row="mlp2-mnist", epochs_total=10)
    content = (tmp_path / JOURNAL_FILE).read_bytes()
    for place in range(len(content) - 1):  # the line's end is not the line
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            (tmp_path / JOURNAL_FILE).write_bytes(changed)
            assert read(tmp_path) == [], (place, bit)


def test_a_full_disk_is_an_error_and_not_a_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, write = Journal(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    with pytest.raises(OSError, match="only a part") as raised:
        journal.write("started")
    assert raised.value.errno == errno.ENOSPC


def test_two_writers_of_one_journal_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, two = Journal(tmp_path), Journal(tmp_path)
    for number in range(5):
        one.write("epoch", epoch=number)
        two.write("failed", reason=str(number))
    assert len(read(tmp_path)) == 10


def test_a_curve_has_each_epoch_once_as_it_was_last_journaled() -> None:
    first = [epoch(1, "train", loss=9), epoch(2, "train", loss=8), epoch(3, "train", loss=7)]
    again = [epoch(2, "train", loss=8.5), epoch(3, "train", loss=7.5), epoch(3, "test", loss=1)]
    events = [{"event": "started"}, *first, {"event": "resumed"}, *again, {"event": "finished"}]
    found = [(point["epoch"], point["split"], point["loss"]) for point in curve(events)]
    assert sorted(found) == [(1, "train", 9), (2, "train", 8.5), (3, "test", 1), (3, "train", 7.5)]
    assert [number for number, *_ in found] == [1, 2, 3, 3]


def test_the_last_event_of_a_name_is_found() -> None:
    events = [{"event": "resumed", "n": 1}, {"event": "resumed", "n": 2}, {"event": "failed"}]
    assert last(events, "resumed") == {"event": "resumed", "n": 2}
    assert last(events, "finished") is None


def test_lines_are_plain_json(tmp_path: Path) -> None:
    Journal(tmp_path).write("epoch", epoch=1, lr=None)
    (line,) = (tmp_path / JOURNAL_FILE).read_text().splitlines()
    entry = json.loads(line)
    text = json.dumps({key: value for key, value in entry.items() if key != "crc32"})
    assert entry["crc32"] == f"{binascii.crc32(text.encode()):08x}"
    assert json.loads(text) == {"event": "epoch", "time": entry["time"], "epoch": 1, "lr": None}
