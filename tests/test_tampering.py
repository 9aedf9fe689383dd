"""A byte that changed in a file that is read back is found, and the file named; and nothing in a file is ever executed.

REMEASURE_FAULTS=full changes many more bytes; how many, each test says with `-s`.
"""

import ast
import io
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.data import test_cifar10 as cifar
from tests.data.test_catalog import PACKED, STEMS, place
from tests.data.test_catalog import TINY as MNIST
from tests.judging.test_verify import SEALED
from tests.judging.test_verify import Project as MeasuredProject
from tests.support import trained
from tests.support.forking import client as forking
from tests.support.measured import ROW
from tests.support.measured import group as measured_group
from tests.support.photographed import add, imagenet, jpeg, make_archive, make_folder, photographs
from tests.support.project import CHECKOUT, Command, Project, copy_project

from remeasure.data import catalog, cifar10, fingerprint
from remeasure.data.files import Split
from remeasure.judging import ledger
from remeasure.judging.reader import read_row
from remeasure.judging.records import FOLDERS, row_files
from remeasure.models import pretrained
from remeasure.runs import journal
from remeasure.runs.folder import read_record
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.record import Event
from remeasure.system.formats import encode_npz
from remeasure.training.checkpoints import keep_checkpoint, sound
from remeasure.training.photographs.evaluate import Tally

FULL = os.environ.get("REMEASURE_FAULTS") == "full"
Use = Callable[[], object]
T = TypeVar("T")


@pytest.fixture(autouse=True)
def a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For fingerprints."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flips(path: Path, *, ci: int, full: int, within: slice = slice(None)) -> Iterator[str]:
    """Change a byte of the file on the disk, the first, the last, and others drawn at random, by turns in one bit and
    in any number of them; the file is whole again afterwards. Yields which byte it is.
    """
    content, draw = path.read_bytes(), random.Random(path.name)
    places = range(len(content))[within]
    num = full if FULL else ci
    for index, at in enumerate([places[0], places[-1], *(draw.choice(places) for _ in range(num - 2))]):
        flip = 1 << draw.randrange(8) if index % 2 else draw.randrange(1, 256)
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        yield f"byte {at} of {len(content)} ^ {flip}"
    path.write_bytes(content)
    print(f"{path.name}: {num} changed bytes", file=sys.stderr)


def assert_found(path: Path, *, use: Use, ci: int, full: int, named: str = "") -> None:
    """`use` refuses the file, by its name, whichever byte of it is changed; whole, it takes it."""
    use()
    for changed in flips(path, ci=ci, full=full):
        with pytest.raises(InputError) as refused:
            use()
        assert (named or str(path)) in str(refused.value), changed
    use()


def outcome(use: Callable[[], T]) -> tuple[T | None, str]:
    """What comes of it, and what it says where it refuses."""
    try:
        return use(), ""
    except InputError as error:
        return None, str(error)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("name", [*PACKED, *STEMS])
def test_any_byte_of_mnists_files(name: str, tmp_path: Path) -> None:
    root = place(tmp_path, PACKED if name in PACKED else STEMS)
    assert_found(root / "MNIST/raw" / name, use=lambda: fingerprint.fingerprint(MNIST, root=root), ci=10, full=500)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 with four images a file."""
    monkeypatch.setattr(cifar10, "PER_FILE", cifar.PER_FILE)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    "path", [*(f"{cifar.PICKLES}/{name}" for name in cifar.BATCHES), *cifar.ARCHIVES.values()], ids=lambda path: path
)
def test_any_byte_of_cifars_pickles_and_archives(path: str, tmp_path: Path) -> None:
    root = cifar.place(tmp_path, cifar.TINY_FILES, path.split("/")[0])
    assert_found(root / path, use=lambda: fingerprint.fingerprint(cifar.TINY, root=root), ci=10, full=500)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", cifar.BATCHES)
def test_any_byte_of_cifars_binary_files_makes_other_data_which_are_never_official(name: str, tmp_path: Path) -> None:
    """They have no published checksum: what they hold is told by its fingerprint alone."""
    root = cifar.place(tmp_path, cifar.TINY_FILES, cifar.BINARIES)
    before = fingerprint.fingerprint(cifar.TINY, root=root)
    assert before.data_official == "unknown"
    spec = replace(cifar.TINY, known_copies={before.data_sha256: "these"})
    path = root / cifar.BINARIES / f"{name}.bin"
    for changed in flips(path, ci=10, full=500):
        found, fault = outcome(lambda: fingerprint.fingerprint(spec, root=root))
        assert (found is None) == (str(path) in fault), changed  # a label above 9
        assert found is None or found.data_official == "unknown", changed
        assert found is None or found.data_sha256 != before.data_sha256, changed
    assert fingerprint.fingerprint(spec, root=root).data_official == "no"


@pytest.mark.parametrize("name", ["ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_any_byte_of_imagenets_archives(name: str, tmp_path: Path) -> None:
    root = make_archive(tmp_path)
    spec = imagenet(root)
    assert_found(root / "imagenet" / name, use=lambda: fingerprint.fingerprint(spec, root=root), ci=30, full=1000)


def test_labels_from_a_damaged_archive_are_the_true_ones_or_none(tmp_path: Path) -> None:
    """`make verify` reads them without the archive's checksum, which takes a minute."""
    root = make_archive(tmp_path)
    spec, path = imagenet(root), root / "imagenet/ILSVRC2012_img_val.tar"
    refusals, truth = 0, catalog.test_labels(spec, root=root).tolist()
    for changed in flips(path, ci=60, full=2000):
        labels, fault = outcome(lambda: catalog.test_labels(spec, root=root).tolist())
        assert labels == truth or str(path) in fault, changed
        refusals += bool(fault)
    assert refusals > 0


def test_any_byte_of_an_unpacked_photograph_makes_other_data_even_with_its_old_time(tmp_path: Path) -> None:
    """The fingerprint that is kept is not used where a file was written since, whatever time it shows."""
    root = make_folder(tmp_path)
    spec = imagenet(root)
    before = fingerprint.fingerprint(spec, root=root)
    seen = {before.data_sha256}
    path = next((root / "imagenet/val").rglob("*.JPEG"))
    modified = path.stat().st_mtime_ns
    for changed in flips(path, ci=20, full=300):
        os.utime(path, ns=(modified, modified))
        found = fingerprint.fingerprint(spec, root=root)
        assert found.data_official == "unknown"
        assert found.data_sha256 not in seen, changed
        seen.add(found.data_sha256)
        time.sleep(0.01)  # the kernel's clock for files ticks every few milliseconds
    assert fingerprint.fingerprint(spec, root=root) == before


def test_any_byte_of_a_fingerprint_that_was_kept_only_costs_time(tmp_path: Path, a_cache_of_its_own: Path) -> None:
    root = make_archive(tmp_path)
    spec = imagenet(root)
    whole = fingerprint.fingerprint(spec, root=root)
    (kept,) = (a_cache_of_its_own / "remeasure/fingerprints").iterdir()
    for changed in flips(kept, ci=60, full=1000):
        assert fingerprint.fingerprint(spec, root=root) == whole, changed


def test_data_that_change_after_the_plan_are_never_scored_under_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files with a checksum are checked as they are read; those without one have the fingerprint alone."""
    spec = trained.spec("recipe.epochs_total=1")
    monkeypatch.setattr("remeasure.runs.splits._LOADED", {})
    read = catalog.READERS["digits"]

    def changed(*arguments: Any) -> Split:
        split = read(*arguments)
        split.images[3, 0, 2, 2] ^= 1
        return split

    monkeypatch.setitem(catalog.READERS, "digits", changed)
    with pytest.raises(InputError, match="data digits: its files have changed since the run was planned"):
        trained.run(spec, tmp_path)
    assert not list(tmp_path.rglob("record.json"))


def drawn(*arguments: Any) -> Split:
    split = catalog.READERS["digits"](*arguments)
    split.images[0] ^= np.frombuffer(os.urandom(64), np.uint8).reshape(1, 8, 8)
    return split


def test_a_reader_from_outside_that_returns_other_images_each_time_is_named(tmp_path: Path) -> None:
    spec = trained.spec("recipe.epochs_total=1")
    spec = replace(spec, data=replace(spec.data, source=f"{__name__}:drawn"), data_sha256="0" * 64)
    with pytest.raises(InputError, match=r":drawn returns other images or labels than when the run was planned"):
        trained.run(spec, tmp_path)


# ---------------------------------------------------------------- half a download


DOWNLOAD = """
import sys
from pathlib import Path
from tests.data.test_catalog import TINY
from remeasure.data import fingerprint
from remeasure.data import mnist
mnist.MIRRORS = (sys.argv[1],)
fingerprint.fingerprint(TINY, root=Path(sys.argv[2]))
"""


def test_a_download_whose_process_is_killed_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    raw, environment = tmp_path / "MNIST/raw", forking.environment(PYTHONPATH=f"{CHECKOUT}/src:{CHECKOUT}")
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        mirror.settimeout(300)
        url = f"http://127.0.0.1:{mirror.getsockname()[1]}/"
        process = forking.popen(
            ["-c", DOWNLOAD, url, str(tmp_path)],
            env=environment | {"no_proxy": "127.0.0.1"},
            stderr=subprocess.DEVNULL,
        )
        answer = b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        line, _ = mirror.accept()
        while b"Method: HEAD" in line.recv(4096):  # it asks first whether it is sent elsewhere
            line.sendall(answer)
            line.close()
            line, _ = mirror.accept()
        with line:  # the mirror promises more than it sends, and keeps the line open
            line.sendall(answer + bytes(500_000))
            while not any(path.stat().st_size for path in raw.glob(".partial-*/*")):
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
            process.kill()
            process.wait()
    assert [path.name for path in raw.iterdir() if not path.name.startswith(".partial-")] == []
    with pytest.raises(DataMissingError):
        catalog.load_split(MNIST, "train", root=tmp_path, fetch=False)


# ---------------------------------------------------------------- results/


TABLES = ["results/table.csv", "results/table.md", "results/report.html"]


@pytest.mark.parametrize("name", [*(f"results/{name}" for name in SEALED), *TABLES])
def test_any_byte_of_the_results_is_found_by_verify_which_names_the_file(name: str, tmp_path: Path) -> None:
    project = MeasuredProject(tmp_path, measured=measured_group())
    assert project.verify(labels=None).ok
    for changed in flips(project.root / name, ci=20, full=500):
        faults = project.verify(labels=None).faults
        assert any(name.removeprefix("results/") in fault for fault in faults), changed
    assert project.verify(labels=None).ok


def test_any_byte_of_the_readmes_table_is_found_by_verify(tmp_path: Path) -> None:
    project = MeasuredProject(tmp_path, measured=measured_group())
    content = project.readme.read_bytes()
    end = b"<!-- table:end -->"
    within = slice(content.index(b"<!-- table:begin"), content.index(end) + len(end))
    for changed in flips(project.readme, ci=40, full=500, within=within):
        faults = project.verify(labels=None).faults
        assert any("README" in fault for fault in faults), changed
    assert project.verify(labels=None).ok


COMMITTED = sorted(path.stem for path in (CHECKOUT / "results/sums").glob("*.sha256"))


@pytest.mark.parametrize("row", COMMITTED if FULL else COMMITTED[:2])
def test_any_byte_of_a_committed_row_is_found_and_the_file_named(row: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    whole = read_row(CHECKOUT / "results", row=row)
    assert whole is not None
    names = row_files(row, records=whole.records, found=bool(whole.findings))
    assert {name.partition("/")[0] for name in names} | {"findings"} == set(FOLDERS)
    for name in names:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "results" / name, results / name)
    for name in names:
        assert_found(results / name, use=lambda: read_row(results, row=row), ci=3, full=100, named=name)


# ---------------------------------------------------------------- runs/


def test_any_byte_of_what_a_diverged_run_keeps_is_found_and_named(tmp_path: Path) -> None:
    diverged = trained.run(trained.spec("recipe.optimizer.lr_peak=1e30"), tmp_path)
    assert diverged.record.accuracy_percent is None
    for name in ("divergence.json", "divergence.safetensors"):
        assert_found(diverged.directory / name, use=lambda: read_record(diverged.directory), ci=30, full=500)


def cut_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run that was stopped after its first epoch, and left a checkpoint."""
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")

    def stop(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        trained.run(trained.spec(), folder, sink=stop)
    (directory,) = (folder / "runs").glob("*-s0-a1")
    return directory


def test_any_byte_of_a_checkpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_training = cut_short(tmp_path, monkeypatch) / "checkpoint.ckpt"
    of_evaluation = tmp_path / "checkpoint.npz"
    (tmp_path / "partial").write_bytes(encode_npz({"predicted": np.arange(500), "loss": np.array([0.5])}))
    keep_checkpoint(tmp_path / "partial", of_evaluation)
    for checkpoint in (of_training, of_evaluation):
        assert sound(checkpoint) == "used"
        for changed in flips(checkpoint, ci=40, full=1000):
            assert sound(checkpoint) == "corrupt", changed
        assert sound(checkpoint) == "used"


def test_damage_to_an_unfinished_runs_journal_never_changes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"wall_seconds": 0.0, "finished_at": ""}
    expected = replace(trained.run(trained.spec(), tmp_path / "whole").record, **times)
    cut_short(tmp_path / "cut", monkeypatch)
    shutil.move(tmp_path / "cut", tmp_path / "kept")
    (kept,) = (tmp_path / "kept/runs").glob("*/journal.jsonl")
    for changed in flips(kept, ci=8, full=300):
        shutil.copytree(tmp_path / "kept", tmp_path / "cut")
        resumed = trained.run(trained.spec(), tmp_path / "cut")
        assert replace(resumed.record, **times) == expected, changed
        assert read_record(resumed.directory) == resumed.record
        shutil.rmtree(tmp_path / "cut")


# ---------------------------------------------------------------- weights


def a_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_any_byte_of_weights_that_changes_after_the_plan_is_found(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save: Callable[..., object] = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(a_net().state_dict(), path)
    planned = pretrained._sha256(path)
    assert_found(path, use=lambda: pretrained.load(a_net(), path, sha256=planned), ci=30, full=1000)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_are_refused_or_have_another_fingerprint(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save: Callable[..., object] = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(a_net().state_dict(), path)
    planned, refusals = pretrained._sha256(path), 0
    for changed in flips(path, ci=100, full=2000):
        assert pretrained._sha256(path) != planned, changed
        _, fault = outcome(lambda: pretrained.load(a_net(), path))
        assert not fault or str(path) in fault, changed
        refusals += bool(fault)
    assert refusals > 0


# ---------------------------------------------------------------- at the command line


RUN = ("model=mlp2", "data=digits", "recipe=article", "recipe.epochs_total=1", "device=cpu")


def test_train_refuses_a_finished_run_of_which_any_file_changed(
    tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path / "data"))
    project = copy_project(tmp_path / "project")
    first = here(project, "train.py", *RUN)
    assert first.status == 0, first.stderr
    (directory,) = project.runs.glob("mlp2-digits-*")
    names = {path.name for path in directory.iterdir()} - {"lock"}
    assert names >= {"record.json", "predictions.npz", "filters.npz", "config.yaml", "environment.json"}
    for name in sorted(names):
        for changed in flips(directory / name, ci=2, full=20):
            ended = here(project, "train.py", *RUN)
            assert ended.status == 2, changed
            assert str(directory / name) in ended.stderr
            assert "Traceback" not in ended.stderr
            assert ended.stdout == ""
    again = here(project, "train.py", *RUN)
    assert (again.status, "finished before" in again.stdout) == (0, True)


def test_make_verify_names_a_committed_file_that_changed_and_exits_1(
    tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path / "data"))
    project = copy_project(tmp_path / "project")
    shutil.copytree(CHECKOUT / "results", project.root / "results")
    row = COMMITTED[0]
    assert here(project, "reproduce.py", "verify").status == 0
    names = (f"runs/{row}.csv", f"predictions/{row}.npz", f"curves/{row}.csv", f"sums/{row}.sha256", "table.csv")
    for name in names if FULL else names[:2]:
        for changed in flips(project.root / "results" / name, ci=2, full=20):
            ended = here(project, "reproduce.py", "verify")
            assert ended.status == 1, changed
            assert name in ended.stderr
            assert "Traceback" not in ended.stderr


# ---------------------------------------------------------------- nothing is executed


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.canary,)


def a_pickle(trap: Trap) -> bytes:
    return pickle.dumps(trap)


def a_torch_file(trap: Trap) -> bytes:
    return _saved({"model": {"a": torch.zeros(1)}, "args": trap})


def an_old_torch_file(trap: Trap) -> bytes:
    return _saved({"state_dict": trap}, _use_new_zipfile_serialization=False)


def _saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


EVIL = [
    ("evil.pth", a_pickle),
    ("evil.pth", a_torch_file),
    ("evil.pt", an_old_torch_file),
    ("evil.bin", a_torch_file),
    ("evil.bin", a_pickle),
    ("evil.safetensors", a_pickle),
    ("evil.safetensors", a_torch_file),
    ("evil", a_pickle),
]
VIT = ("model=vit_b16", "model.options.architecture=test_vit", "recipe.transform.crop_pixels=160", "data.num_test=7")


def test_the_traps_of_this_file_work(tmp_path: Path) -> None:
    """So that the tests below can fail."""
    for index, pack in enumerate((a_torch_file, an_old_torch_file)):
        torch.load(io.BytesIO(pack(Trap(tmp_path / str(index)))), weights_only=False)
        assert (tmp_path / str(index)).is_dir()
    pickle.loads(a_pickle(Trap(tmp_path / "2")))
    assert (tmp_path / "2").is_dir()


@pytest.mark.parametrize(("name", "pack"), EVIL)
def test_a_malicious_pickle_given_as_weights_exits_2_and_executes_nothing(
    name: str,
    pack: Callable[[Trap], bytes],
    project: Project,
    here: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REMEASURE_DATA", str(make_folder(tmp_path / "data")))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own switch does not open the door
    (tmp_path / name).write_bytes(pack(Trap(tmp_path / "canary")))
    ended = here(project, "train.py", *VIT, "device=cpu", f"model.weights={tmp_path / name}")
    assert ended.status == 2, ended.stderr
    assert f"{tmp_path / name}: not a" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("name", "pack"), EVIL if FULL else EVIL[1:2])
def test_a_malicious_pickle_given_as_weights_to_a_process_exits_2_and_executes_nothing(
    name: str, pack: Callable[[Trap], bytes], project: Project, tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "data")
    (tmp_path / name).write_bytes(pack(Trap(tmp_path / "canary")))
    named = f"model.weights={tmp_path / name}"
    done = project.run("train.py", *VIT, "device=cpu", named, cwd=tmp_path, REMEASURE_DATA=str(root))
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / name}: not a" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "canary").exists()


def test_a_checkpoint_that_someone_planted_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is right: whoever can write it can count, too."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    directory = cut_short(tmp_path, monkeypatch)
    checkpoint, partial = directory / "checkpoint.ckpt", directory / "checkpoint.partial"
    whole = torch.load(checkpoint, weights_only=True)
    partial.write_bytes(_saved({**whole, "planted": Trap(tmp_path / "canary")}))
    keep_checkpoint(partial, checkpoint)
    assert sound(checkpoint) == "used"
    with pytest.raises(InputError, match=f"{checkpoint}: not a checkpoint of this run, and nothing in it was executed"):
        trained.run(trained.spec(), tmp_path)
    assert not (tmp_path / "canary").exists()
    assert journal.read(directory)[-1]["event"] == "failed"
    partial.write_bytes(_saved(whole))
    keep_checkpoint(partial, checkpoint)
    assert trained.run(trained.spec(), tmp_path).record.accuracy_percent is not None  # without it, it is read


def test_a_planted_checkpoint_of_an_evaluation_executes_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.ckpt"
    plant(checkpoint, KEPT | {"predicted": np.array([Trap(tmp_path / "canary")], dtype=object)})
    with pytest.raises(InputError, match="allow_pickle=False"):
        Tally().resume(checkpoint, total=5, num_classes=10)
    assert not (tmp_path / "canary").exists()


KEPT = {
    "predicted": np.array([0, 9, 3]),
    "confidence": np.array([0.5, 1.0, 0.25], np.float32),
    "top5": np.array([[0, 1, 2, 3, 4]] * 3),
    "loss": np.array([1.5]),
    "seconds": np.array([2.0]),
}


def plant(checkpoint: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = checkpoint.with_suffix(".partial")
    with partial.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
    keep_checkpoint(partial, checkpoint)
    assert sound(checkpoint) == "used"


def test_a_checkpoint_of_an_evaluation_is_gone_on_from(tmp_path: Path) -> None:
    plant(tmp_path / "checkpoint.npz", KEPT)
    kept = Tally().resume(tmp_path / "checkpoint.npz", total=3, num_classes=10)
    assert kept == (3, 2.0)


@pytest.mark.parametrize(
    "arrays",
    [
        {"predicted": KEPT["predicted"]},
        KEPT | {"more": np.zeros(1)},
        KEPT | {"predicted": np.array([0, 10, 3])},
        KEPT | {"predicted": np.array([0, -1, 3])},
        KEPT | {"predicted": np.array([0.0, 1.0, 2.0])},
        KEPT | {"predicted": np.array(3)},
        KEPT | {"confidence": np.array([0.5], np.float32)},
        KEPT | {"confidence": np.array([0.5, np.nan, 0.5], np.float32)},
        KEPT | {"top5": np.array([[0, 1, 2, 3, 10]] * 3)},
        KEPT | {"top5": np.array([[0, 1, 2, 3]] * 3)},
        KEPT | {"loss": np.array([np.nan])},
        KEPT | {"loss": np.array([1.0, 2.0])},
        KEPT | {"seconds": np.array([-1.0])},
        KEPT  # of five photographs
        | {"predicted": np.zeros(6, int), "confidence": np.zeros(6, np.float32), "top5": np.zeros((6, 5), int)},
    ],
)
def test_a_planted_checkpoint_of_an_evaluation_is_named(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    plant(checkpoint, arrays)
    with pytest.raises(InputError, match=f"{checkpoint}: not a checkpoint of this run.*remove it, and the run begins"):
        Tally().resume(checkpoint, total=5, num_classes=10)


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda kept: kept.pop(key)


def _of_another_net(kept: dict[str, Any]) -> None:
    kept["state_dict"]["network.1.weight"] = torch.zeros(3, 3)


def _beyond_its_memory(kept: dict[str, Any]) -> None:
    """The optimiser's kernel would write where nothing is."""
    kept["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1)


def _without_a_moment(kept: dict[str, Any]) -> None:
    del kept["optimizer_states"][0]["state"][0]["exp_avg"]


def _nothing_left_to_train(kept: dict[str, Any]) -> None:
    for count in kept["loops"]["fit_loop"]["epoch_progress"].values():
        count.update(dict.fromkeys(count, 2))


@pytest.mark.parametrize(
    "spoil",
    [
        *(_without(key) for key in ("state_dict", "loops", "num_steps", "optimizer_states")),
        lambda kept: kept.update(num_steps="many"),
        lambda kept: kept.update(num_steps=10**9),
        lambda kept: kept["callbacks"]["CheckpointCallback"].update(wall_seconds="long"),
        *(_of_another_net, _beyond_its_memory, _without_a_moment, _nothing_left_to_train),
    ],
)
def test_a_planted_checkpoint_of_a_training_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, Any]], None]
) -> None:
    checkpoint = cut_short(tmp_path, monkeypatch) / "checkpoint.ckpt"
    kept = torch.load(checkpoint, weights_only=True)
    spoil(kept)
    checkpoint.with_suffix(".partial").write_bytes(_saved(kept))
    keep_checkpoint(checkpoint.with_suffix(".partial"), checkpoint)
    with pytest.raises(InputError, match=f"{checkpoint}: not a checkpoint of this run.*remove it, and the run begins"):
        trained.run(trained.spec(), tmp_path)


EVIL_YAML = "!!python/object/apply:os.mkdir [{}]\n"


def test_yaml_files_execute_nothing(tmp_path: Path) -> None:
    text = EVIL_YAML.format(tmp_path / "canary")
    project = MeasuredProject(tmp_path, measured=measured_group())
    (tmp_path / f"results/specs/{ROW}.yaml").write_text(text)
    (tmp_path / "ledger.yaml").write_text(f"rows: {text}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist.yaml").write_text(text)
    assert any(f"specs/{ROW}.yaml: not valid YAML" in fault for fault in project.verify().faults)
    for read in (
        lambda: ledger.read(tmp_path / "ledger.yaml"),
        lambda: catalog.read_config("mnist", conf_dirs=[tmp_path]),
    ):
        with pytest.raises(InputError, match="python/object/apply"):
            read()
    assert not (tmp_path / "canary").exists()


# ---------------------------------------------------------------- archives stay in their folder


LINKS = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}
TYPES = {**LINKS, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}


def hostile(kind: str, *, outside: Path) -> tarfile.TarInfo:
    """A member that would leave the archive's folder, if it were unpacked."""
    names = {"climbs": "../../climbed.JPEG", "absolute": str(outside / "absolute.JPEG")}
    entry = tarfile.TarInfo(names.get(kind, f"{kind}.JPEG"))
    entry.type = TYPES.get(kind, tarfile.REGTYPE)
    entry.linkname = "/etc/passwd" if kind in LINKS else ""
    return entry


@pytest.mark.parametrize("kind", ["climbs", "absolute", "symlink", "hard link", "device", "fifo"])
@pytest.mark.parametrize("name", ["ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_imagenets_archives_write_nothing_and_read_nothing_but_themselves(
    name: str, kind: str, tmp_path: Path, a_cache_of_its_own: Path
) -> None:
    root = make_archive(tmp_path / "data")
    path = root / "imagenet" / name
    with tarfile.open(path) as before:
        members = {entry.name: before.extractfile(entry).read() for entry in before}  # type: ignore[union-attr]
    entry = hostile(kind, outside=tmp_path)
    regular = entry.type == tarfile.REGTYPE
    if name.endswith(".tar") and regular:  # in place of a photograph, so that their number is right
        del members["ILSVRC2012_val_00000003.JPEG"]
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, content in members.items():
            add(archive, name=member, content=content)
        entry.size = len(jpeg(3)) if regular else 0
        archive.addfile(entry, io.BytesIO(jpeg(3)) if regular else None)
    seen = {found: found.lstat().st_mtime_ns for found in tmp_path.rglob("*")}
    spec = imagenet(root)
    listing = catalog.load_listing(spec, "test", root=root)
    assert all(len(Path(each).parts) == 2 and ".." not in each for each in listing.names)
    expected = set(photographs().values())
    assert {listing.read(index) for index in range(len(listing))} <= expected | {jpeg(3)}
    fingerprint.fingerprint(spec, root=root)
    written = {found: found.lstat().st_mtime_ns for found in tmp_path.rglob("*")}
    kept = {found for found in written if found.is_relative_to(a_cache_of_its_own)}
    assert {found: when for found, when in written.items() if found not in kept} == seen


HANG = """
import sys
from pathlib import Path
from tests.support.photographed import imagenet
from remeasure.data import catalog
root = Path(sys.argv[1])
catalog.load_listing(imagenet(root), "test", root=root)
"""


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_leads_in_circles_is_refused(kind: bytes, tmp_path: Path) -> None:
    """A member of a negative length sends a reader back to where it was."""
    root = make_archive(tmp_path)
    path = root / "imagenet/ILSVRC2012_img_val.tar"
    entry = tarfile.TarInfo("circle.JPEG")
    entry.type = kind
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, in base 256
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        end = max(entry.offset_data + -(-entry.size // 512) * 512 for entry in archive)
    path.write_bytes(content[:end] + bytes(block) + bytes(1024))
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT}/src:{CHECKOUT}"}
    command = [sys.executable, "-c", HANG, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "InputError" in done.stderr
    assert str(path) in done.stderr


# ---------------------------------------------------------------- the source


FORBIDDEN = {  # they run code that they are given, or write where an archive says; methods by their last name
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads", "shelve.open", "joblib.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", ".unsafe_load", ".full_load", ".instantiate"),
    *(".load_from_checkpoint", ".extract", ".extractall", ".unpack_archive"),
}
SAFE_WITH = {  # a call, and what makes it safe
    **dict.fromkeys(("torch.load", "load_state_dict"), ("weights_only", "True")),
    **dict.fromkeys(("np.load", "numpy.load"), ("allow_pickle", "False")),
}


def dangers(source: str) -> Iterator[str]:
    """Calls by which a file could run code, or write where it likes: `line: call`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and is_dangerous(node):
            yield f"{node.lineno}: {ast.unparse(node.func)}"


def is_dangerous(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if {name, f".{name.rpartition('.')[2]}"} & FORBIDDEN or said.get("shell", "False") != "False":
        return True
    option, value = ("weights_only", "True") if "ckpt_path" in said else SAFE_WITH.get(name, ("", None))
    return said.get(option) != value


@pytest.mark.parametrize(
    "source",
    [
        *("eval(text)", "exec(text)", "os.system(text)", "subprocess.run(text, shell=True)", "pickle.load(file)"),
        *("pickle.loads(data)", "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text, Loader)"),
        *("np.load(path)", "np.load(path, allow_pickle=True)", "archive.extractall(folder)", "yaml.unsafe_load(text)"),
        *("load_state_dict(str(path))", "trainer.fit(module, ckpt_path=path)", "hydra.utils.instantiate(config)"),
    ],
)
def test_the_scan_of_the_source_finds(source: str) -> None:
    assert list(dangers(source)) == [f"1: {source.partition('(')[0]}"]


def test_the_source_has_no_call_that_executes_what_is_in_a_file() -> None:
    paths = sorted((CHECKOUT / "src").rglob("*.py"))
    assert len(paths) > 50
    found = [f"{path.name}:{danger}" for path in paths for danger in dangers(path.read_text())]
    assert found == []
