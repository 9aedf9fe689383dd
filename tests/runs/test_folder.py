"""Folders of runs: found by what was trained, on what kind of device, with which seed; files whole or not at all."""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import stat
from pathlib import Path

import pytest
from tests.support.measured import record
from tests.support.trained import place, run, spec

from remeasure.runs.folder import find_run, finished, open_directory, read_record, remove_leftovers, write_record
from remeasure.runs.journal import Journal
from remeasure.spec.base import InputError, canonical_json
from remeasure.spec.record import RunRecord
from remeasure.system.atomic import write_atomic
from remeasure.training.checkpoints import keep_checkpoint, sound


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for written in (record(3), record(1, accuracy_percent=None, num_correct=None, loss=None, predicted_sha256=None)):
        write_record(tmp_path, written)
        assert read_record(tmp_path) == written


def test_a_run_is_named_by_what_it_is(tmp_path: Path) -> None:
    directory = open_directory(spec(), seed=3, place=place(tmp_path), fresh=False)
    assert directory == tmp_path / "runs" / f"mlp2-digits-{spec().spec_sha256[:12]}-cpu-s3-a1"
    assert directory.is_dir()


def recorded(seed: int, **changes: object) -> RunRecord:
    """A record of this seed of `spec()`."""
    return record(seed, spec_sha256=spec().spec_sha256, **changes)


def test_only_a_record_makes_a_run_finished(tmp_path: Path) -> None:
    here = place(tmp_path)
    assert finished(spec(), seed=3, place=here) is None
    directory = open_directory(spec(), seed=3, place=here, fresh=False)
    Journal(directory).write("finished")
    assert finished(spec(), seed=3, place=here) is None
    write_record(directory, recorded(3))
    outcome = finished(spec(), seed=3, place=here)
    assert outcome is not None
    assert (outcome.record, outcome.directory, outcome.reused) == (recorded(3), directory, True)


def test_another_seed_spec_or_device_is_another_run(tmp_path: Path) -> None:
    here = place(tmp_path)
    write_record(open_directory(spec(), seed=3, place=here, fresh=False), recorded(3))
    write_record(open_directory(spec(), seed=42, place=here, fresh=False), recorded(42))
    for seed in (0, 13, 33, 30, 4, 2):
        assert finished(spec(), seed=seed, place=here) is None
    assert finished(spec("recipe.batch_size=32"), seed=3, place=here) is None
    assert finished(spec(), seed=3, place=dataclasses.replace(here, device_kind="cuda")) is None


def test_a_name_does_not_make_another_run(tmp_path: Path) -> None:
    """Names cannot move a weight."""
    here = place(tmp_path)
    write_record(open_directory(spec(), seed=3, place=here, fresh=False), recorded(3))
    renamed = dataclasses.replace(spec(), model=dataclasses.replace(spec().model, name="perceptron"))
    assert finished(renamed, seed=3, place=here) is not None


@pytest.mark.parametrize("change", [{"seed": 4}, {"spec_sha256": "0" * 64}, {"device_kind": "cuda"}])
def test_a_renamed_folder_is_refused_with_what_it_holds(tmp_path: Path, change: dict[str, object]) -> None:
    here = place(tmp_path)
    directory = open_directory(spec(), seed=3, place=here, fresh=False)
    write_record(directory, dataclasses.replace(recorded(3), **change))
    with pytest.raises(
        InputError, match=rf"{directory}: was renamed; it holds seed \d of spec \w{{12}} on \w+; give it"
    ):
        finished(spec(), seed=3, place=here)


def test_an_unfinished_run_is_gone_on_with_and_fresh_begins_the_next_attempt(tmp_path: Path) -> None:
    here = place(tmp_path)
    first = open_directory(spec(), seed=3, place=here, fresh=False)
    assert open_directory(spec(), seed=3, place=here, fresh=False) == first
    second = open_directory(spec(), seed=3, place=here, fresh=True)
    assert second.name == first.name[:-1] + "2"
    assert open_directory(spec(), seed=3, place=here, fresh=False) == second


def test_the_tenth_attempt_is_newer_than_the_ninth(tmp_path: Path) -> None:
    here, a_spec = place(tmp_path), spec()
    for attempt in range(1, 11):
        directory = open_directory(a_spec, seed=3, place=here, fresh=True)
        write_record(directory, recorded(3, wall_seconds=float(attempt)))
    outcome = finished(spec(), seed=3, place=here)
    assert outcome is not None
    assert outcome.record.wall_seconds == 10.0
    assert open_directory(spec(), seed=3, place=here, fresh=True).name.endswith("-a11")


def test_a_copy_or_an_archive_beside_a_run_is_none(tmp_path: Path) -> None:
    here, a_spec = place(tmp_path), spec()
    directory = open_directory(a_spec, seed=3, place=here, fresh=False)
    write_record(directory, recorded(3))
    for name in (f"{directory.name}.bak", f"{directory.name} (copy)"):
        shutil.copytree(directory, directory.with_name(name))
    directory.with_name(f"{directory.name}.tar.gz").touch()
    directory.with_name(f"{directory.name[:-1]}7").touch()
    outcome = finished(a_spec, seed=3, place=here)
    assert outcome is not None
    assert outcome.directory == directory
    assert open_directory(a_spec, seed=3, place=here, fresh=True).name.endswith("-a2")


def test_a_run_of_the_demo_is_found_by_its_mlflow_run_id_and_mlflows_copy_of_its_record_is_none(tmp_path: Path) -> None:
    here = dataclasses.replace(place(tmp_path), runs=tmp_path / "runs/demo")
    (copy := here.runs / "mlartifacts/1/0af3/artifacts").mkdir(parents=True)
    directory = open_directory(spec(), seed=3, place=here, fresh=False)
    write_record(directory, dataclasses.replace(recorded(3), mlflow_run_id="0af3"))
    shutil.copy(directory / "record.json", copy)
    assert find_run("0af3", runs=tmp_path / "runs") == directory


def test_the_newest_finished_attempt_counts_while_a_newer_one_is_under_way(tmp_path: Path) -> None:
    here = place(tmp_path)
    first = open_directory(spec(), seed=3, place=here, fresh=False)
    write_record(first, recorded(3))
    open_directory(spec(), seed=3, place=here, fresh=True)
    outcome = finished(spec(), seed=3, place=here)
    assert outcome is not None
    assert outcome.directory == first


def test_a_crash_while_writing_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def crash(*_: object) -> None:
        raise OSError("no power")

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, moment, crash)
            with pytest.raises(OSError, match="no power"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fsynced and what got its name, in order."""
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        happened.append("fsync of " + ("the folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes"))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        happened.append(f"named {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return happened


def test_content_reaches_the_disk_before_its_name(tmp_path: Path, happened: list[str]) -> None:
    write_atomic(tmp_path / "record.json", b"12345")
    assert happened == ["fsync of 5 bytes", "named record.json", "fsync of the folder"]


# ---------------------------------------------------------------- what has changed since it was written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real finished run."""
    return run(spec(), tmp_path_factory.mktemp("whole")).directory


def with_byte(path: Path, place: int, flip: int) -> bytes:
    """The file as it was; on the disk, one byte of it is another."""
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
    return content


def test_any_byte_of_a_record_that_is_not_what_was_written_is_found_and_named(whole: Path) -> None:
    path, draw = whole / "record.json", random.Random(0)
    for place_in_file in range(path.stat().st_size):
        content = with_byte(path, place_in_file, flip=draw.randrange(1, 256))
        with pytest.raises(InputError) as refused:
            read_record(whole)
        assert f"{path}: damaged" in refused.value.faults[0]
        path.write_bytes(content)
    read_record(whole)


@pytest.mark.parametrize("key", ["seed", "files_sha256"])
def test_a_record_that_was_sealed_anew_without_a_key_is_found_and_named(whole: Path, key: str, tmp_path: Path) -> None:
    directory = shutil.copytree(whole, tmp_path / "copy")
    content = json.loads((directory / "record.json").read_text())
    del content[key], content["seal_sha256"]
    content["seal_sha256"] = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    (directory / "record.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(InputError, match=re.escape(f"{directory / 'record.json'}: damaged")):
        read_record(directory)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "predictions.npz", "filters.npz", "journal.jsonl"])
def test_any_byte_beside_a_record_that_is_not_what_was_written_is_found_and_named(whole: Path, name: str) -> None:
    path, draw = whole / name, random.Random(0)
    for _ in range(100):
        content = with_byte(path, draw.randrange(path.stat().st_size), flip=draw.randrange(1, 256))
        with pytest.raises(InputError) as refused:
            read_record(whole)
        assert f"{path}: damaged" in refused.value.faults[0]
        path.write_bytes(content)
    path.rename(whole / "away")
    with pytest.raises(InputError, match=f"{name}: damaged"):
        read_record(whole)
    (whole / "away").rename(path)
    read_record(whole)


def test_all_that_is_damaged_is_named_at_once_and_what_to_do(whole: Path) -> None:
    kept = [(whole / name, with_byte(whole / name, 5, flip=1)) for name in ("filters.npz", "predictions.npz")]
    with pytest.raises(InputError) as refused:
        read_record(whole)
    for path, content in kept:
        path.write_bytes(content)
    assert [fault.partition(":")[0].rpartition("/")[2] for fault in refused.value.faults[:2]] == [
        "predictions.npz",
        "filters.npz",
    ]
    assert refused.value.faults[2] == f"remove the folder {whole}, and this seed is measured again"


def test_any_byte_of_a_checkpoint_that_is_not_what_was_written_is_found(tmp_path: Path) -> None:
    partial, checkpoint, draw = tmp_path / "checkpoint.partial", tmp_path / "checkpoint.ckpt", random.Random(0)
    assert sound(checkpoint) == "none"
    for place_in_file in range(300 + 32):
        partial.write_bytes(draw.randbytes(300))
        keep_checkpoint(partial, checkpoint)
        assert sound(checkpoint) == "used"
        with_byte(checkpoint, place_in_file, flip=draw.randrange(1, 256))
        assert sound(checkpoint) == "corrupt"
        assert not checkpoint.exists()


def test_a_checkpoint_reaches_the_disk_before_its_name(tmp_path: Path, happened: list[str]) -> None:
    (tmp_path / "checkpoint.partial").write_bytes(b"12345")
    keep_checkpoint(tmp_path / "checkpoint.partial", tmp_path / "checkpoint.ckpt")
    assert happened == ["fsync of 37 bytes", "named checkpoint.ckpt"]


# ---------------------------------------------------------------- cut between the last event and the record


def test_a_run_that_was_cut_before_its_record_goes_on_as_the_same_attempt(tmp_path: Path) -> None:
    here = place(tmp_path)
    directory = open_directory(spec(), seed=3, place=here, fresh=False)
    for event in ("started", "finished"):
        Journal(directory).write(event)
    assert open_directory(spec(), seed=3, place=here, fresh=False) == directory


def test_a_tuning_run_that_ended_has_no_record_and_is_begun_anew(tmp_path: Path) -> None:
    here, tuning = place(tmp_path), spec("data.split=validation", "data.num_validation=297", "seed=1000")
    directory = open_directory(tuning, seed=1000, place=here, fresh=False)
    for event in ("started", "finished"):
        Journal(directory).write(event)
    assert open_directory(tuning, seed=1000, place=here, fresh=False).name.endswith("-a2")


def test_what_a_run_needs_no_more_once_it_has_its_record_is_removed(whole: Path) -> None:
    (whole / "checkpoint.ckpt").write_bytes(b"left by a kill")
    remove_leftovers(whole)
    assert not list(whole.glob("checkpoint.*"))
    read_record(whole)


@pytest.mark.parametrize("name", ["record.json", "journal.jsonl", "checkpoint.ckpt", "lock"])
def test_a_pipe_in_the_folder_of_a_run_is_refused_and_not_waited_at(tmp_path: Path, name: str) -> None:
    directory = open_directory(spec(), seed=0, place=place(tmp_path), fresh=False)
    os.mkfifo(directory / name)
    with pytest.raises(InputError, match=f"{name}: expected a file, found a pipe or device"):
        run(spec(), tmp_path)
