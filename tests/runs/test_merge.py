"""Runs of another machine are taken over whole, once, and never in place of what is here."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import trained

from remeasure.runs.folder import finished, read_record
from remeasure.runs.merge import Merged, merge
from remeasure.spec.base import InputError
from remeasure.system import locks

SPEC = trained.spec("model=logreg", "recipe=article", "recipe.epochs_total=1")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's folder of runs: two seeds, the first with its trained network."""
    folder = tmp_path_factory.mktemp("theirs")
    for seed in (0, 1):
        trained.run(SPEC, folder, seed=seed, row="a-row", keeps=[0])
    return folder / "runs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """This machine's."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def taken(source: Path, *, runs: Path) -> list[str]:
    return [each.taken if isinstance(each, Merged) else str(each) for each in merge(source, runs=runs)]


def test_a_merged_run_counts_as_one_of_this_machine(theirs: Path, runs: Path) -> None:
    assert taken(theirs, runs=runs) == ["merged", "merged"]
    for seed in (0, 1):
        outcome = finished(SPEC, seed=seed, place=trained.place(runs.parent))
        assert outcome is not None
        assert outcome.record == replace(read_record(theirs / outcome.directory.name), mlflow_run_id="")
    assert len(list(runs.glob("*/model.safetensors"))) == 1
    assert not [path for path in runs.rglob("*") if path.name == "lock" or path.name.startswith((".merging", "check"))]


def test_a_renamed_run_is_refused_and_what_a_killed_merge_left_is_removed(theirs: Path, runs: Path) -> None:
    (runs / ".merging-killed/half").mkdir(parents=True)
    other = theirs.parent / "renamed"
    shutil.copytree(theirs, other)
    seed_0, seed_1 = sorted(other.iterdir())
    shutil.rmtree(seed_1)
    seed_0.rename(seed_1)
    (said,) = taken(other, runs=runs)
    assert "was renamed; it holds seed 0 of spec " in said
    assert taken(theirs, runs=runs) == ["merged", "merged"]
    assert not list(runs.glob(".merging-*"))


def test_a_second_merge_changes_nothing(theirs: Path, runs: Path) -> None:
    list(merge(theirs, runs=runs))
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert taken(theirs, runs=runs) == ["here already", "here already"]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_what_was_trained_here_stays(theirs: Path, runs: Path) -> None:
    """With the same spec, seed and code; as if this machine rounded otherwise."""
    outcome = trained.run(SPEC, runs.parent, seed=1)
    other = theirs.parent / "other"
    shutil.copytree(theirs, other, dirs_exist_ok=True)
    assert taken(other, runs=runs) == ["merged", "here already"]
    assert read_record(outcome.directory) == outcome.record
    assert len(list(runs.glob("*-s1-*"))) == 1


def test_a_seed_that_is_trained_here_now_is_left_to_its_process(theirs: Path, runs: Path) -> None:
    (directory,) = theirs.glob("*-s0-*")
    here = runs / directory.name
    here.mkdir()
    shutil.copy(directory / "code.json", here)
    with locks.held(here / "lock"):
        assert taken(theirs, runs=runs) == ["being trained here", "merged"]
    assert taken(theirs, runs=runs) == ["merged", "here already"]  # its process was killed
    assert {path.name[-3:] for path in runs.glob("*-s0-*")} == {"-a1", "-a2"}


def test_a_run_that_was_changed_is_named_and_the_others_are_merged(theirs: Path, runs: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(theirs, tmp_path / "sent"))
    (damaged,) = source.glob("*-s0-*")
    with (damaged / "predictions.npz").open("ab") as file:
        file.write(b"\0")
    first, second = taken(source, runs=runs)
    assert f"{damaged / 'predictions.npz'}: damaged" in first
    assert second == "merged"
    assert not list(runs.glob("*-s0-*"))


def test_a_folder_without_a_finished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run in this folder"):
        list(merge(tmp_path / "nowhere", runs=runs))
