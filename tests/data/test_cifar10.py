"""CIFAR-10: the same images from whatever layout, nothing executed, nothing written, and honest about its origin."""

import dataclasses
import hashlib
import io
import pickle
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torchvision
from tests.support.mirror import DEAD_MIRROR, serving

from remeasure.data import catalog, cifar10, files, fingerprint
from remeasure.data.fingerprint import Source
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.run import DataSpec
from remeasure.system import paths

CIFAR10 = catalog.read_config("cifar10", conf_dirs=paths.conf_dirs())
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
PICKLES, BINARIES = "cifar-10-batches-py", "cifar-10-batches-bin"
ARCHIVES = {PICKLES: "cifar-10-python.tar.gz", BINARIES: "cifar-10-binary.tar.gz"}
LAYOUTS = (PICKLES, ARCHIVES[PICKLES], BINARIES, ARCHIVES[BINARIES])  # in the order of preference
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # batch: pixels (N, 3072) uint8, labels (N,) uint8


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# ---------------------------------------------------------------- the official layouts, written by hand


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: every text is a byte string, and NumPy's reconstructor has its old name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin-1") if isinstance(value, str) else value
        self.write(b"T" + len(content).to_bytes(4, "little") + content)  # BINSTRING
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, value: Any, name: str | None = None) -> None:
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)


def pickled(value: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def a_pickle(name: str, pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as the official ones are: a batch_label, labels as a list, data, filenames."""
    filenames = [f"{index}.png" for index in range(len(labels))]
    return pickled({"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": filenames})


def a_binary(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """One row for each image: its label, then its pixels."""
    return np.column_stack([labels, pixels]).tobytes()


def an_archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=0) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def every_file(arrays: Arrays) -> dict[str, bytes]:
    """All four layouts: path below the data root to content."""
    pickles = {f"{PICKLES}/{name}": a_pickle(name, *arrays[name]) for name in BATCHES}
    binaries = {f"{BINARIES}/{name}.bin": a_binary(*arrays[name]) for name in BATCHES}
    pickles[f"{PICKLES}/batches.meta"] = pickled({"label_names": list("abcdefghij")})
    return {**pickles, ARCHIVES[PICKLES]: an_archive(pickles), **binaries, ARCHIVES[BINARIES]: an_archive(binaries)}


def checked(spec: DataSpec, content: dict[str, bytes]) -> DataSpec:
    """The spec that takes these files for the official ones."""
    known = {Path(path).name: md5(found) for path, found in content.items() if not path.endswith(".bin")}
    return dataclasses.replace(spec, files_md5={name: known.get(name, "0" * 32) for name in spec.files_md5})


def place(root: Path, content: dict[str, bytes], *layouts: str) -> Path:
    """A data root that holds these layouts, all by default."""
    for path, found in content.items():
        if path.split("/")[0] in (layouts or LAYOUTS):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(found)
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in (root, *root.rglob("*"))}


# ---------------------------------------------------------------- four images a file

PER_FILE = 4


def tiny_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (PER_FILE, 3072), np.uint8), rng.integers(0, 10, PER_FILE, np.uint8))
        for name in BATCHES
    }


ARRAYS = tiny_arrays()
TINY_FILES = every_file(ARRAYS)
TINY = checked(dataclasses.replace(CIFAR10, num_train=5 * PER_FILE, num_test=PER_FILE), TINY_FILES)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test reaches the real mirror; those without the real data have files of four images."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar10, "MIRRORS", (DEAD_MIRROR,))
    if "cifar10_root" not in request.fixturenames:
        monkeypatch.setattr(cifar10, "PER_FILE", PER_FILE)


def fingerprint_of(arrays: Arrays) -> str:
    """By the definition: train, then test; of each the pixels, then the labels as eight bytes each."""
    digest = hashlib.sha256()
    for names in (BATCHES[:5], BATCHES[5:]):
        digest.update(b"".join(arrays[name][0].tobytes() for name in names))
        digest.update(b"".join(arrays[name][1].astype("<i8").tobytes() for name in names))
    return digest.hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_arrays_and_the_same_fingerprint(layout: str, tmp_path: Path) -> None:
    root = place(tmp_path, TINY_FILES, layout)
    train, test = (catalog.load_split(TINY, split, root=root) for split in ("train", "test"))
    assert (train.images.dtype, train.labels.dtype, train.images.shape) == (np.uint8, np.int64, (20, 3, 32, 32))
    np.testing.assert_array_equal(train.images.reshape(20, -1), np.concatenate([ARRAYS[b][0] for b in BATCHES[:5]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([ARRAYS[b][1] for b in BATCHES[:5]]))
    np.testing.assert_array_equal(test.images.reshape(4, -1), ARRAYS["test_batch"][0])
    np.testing.assert_array_equal(test.labels, ARRAYS["test_batch"][1])
    assert fingerprint.fingerprint(TINY, root=root).data_sha256 == fingerprint_of(ARRAYS)


@pytest.mark.parametrize("first", range(4))
def test_the_first_layout_that_is_there_is_read_and_no_other(first: int, tmp_path: Path) -> None:
    root = place(tmp_path, TINY_FILES, *LAYOUTS[first:])
    for later in LAYOUTS[first + 1 :]:  # a fault in it would be noticed
        for path in [root / later] if (root / later).is_file() else (root / later).iterdir():
            path.write_bytes(b"damaged")
    assert fingerprint.fingerprint(TINY, root=root).data_sha256 == fingerprint_of(ARRAYS)


def test_reading_writes_nothing_into_the_data_root(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        root = place(tmp_path / layout, TINY_FILES, layout)
        before = snapshot(root)
        fingerprint.fingerprint(TINY, root=root)
        assert snapshot(root) == before


def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    pixels, labels = ARRAYS["test_batch"]
    content = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=4)
    root = place(tmp_path, {f"{PICKLES}/test_batch": content})
    found = catalog.load_split(checked(TINY, {f"{PICKLES}/test_batch": content}), "test", root=root)
    np.testing.assert_array_equal(found.images.reshape(4, -1), pixels)


def test_a_tuning_run_never_opens_the_test_batch(tmp_path: Path) -> None:
    tuning = dataclasses.replace(TINY, num_validation=4, split="validation")
    for layout in (PICKLES, BINARIES):
        root = place(tmp_path / layout, TINY_FILES, layout)
        next((root / layout).glob("test_batch*")).unlink()
        digest = hashlib.sha256(b"".join(ARRAYS[name][0].tobytes() for name in BATCHES[:5]))
        digest.update(b"".join(ARRAYS[name][1].astype("<i8").tobytes() for name in BATCHES[:5]))
        assert fingerprint.fingerprint(tuning, root=root).data_sha256 == digest.hexdigest()
        with pytest.raises(InputError, match="test_batch"):
            fingerprint.fingerprint(TINY, root=root)


# ---------------------------------------------------------------- official or not


def test_checksums_and_the_mirror_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real mirror
    theirs = torchvision.datasets.CIFAR10
    expected = {**dict(theirs.train_list), **dict(theirs.test_list), theirs.filename: theirs.tgz_md5}
    assert len(expected) == 7
    assert {name: CIFAR10.files_md5[name] for name in expected} == expected
    assert set(CIFAR10.files_md5) - set(expected) == {"cifar-10-binary.tar.gz"}
    assert [f"{mirror}{theirs.filename}" for mirror in cifar10.MIRRORS] == [theirs.url]
    assert (theirs.base_folder, theirs.filename) == (PICKLES, ARCHIVES[PICKLES])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_with_the_official_checksums_are_official_and_binaries_need_a_fingerprint(
    layout: str, tmp_path: Path
) -> None:
    root = place(tmp_path, TINY_FILES, layout)
    found = fingerprint.fingerprint(TINY, root=root)
    assert found.data_official == ("unknown" if layout == BINARIES else "yes")
    listed = dataclasses.replace(TINY, known_copies={fingerprint_of(ARRAYS): "a copy from JPEG files"})
    if layout == BINARIES:
        assert dataclasses.replace(found, data_official="no", description="a copy from JPEG files") == (
            fingerprint.fingerprint(listed, root=root)
        )
        official = dataclasses.replace(TINY, official_sha256=fingerprint_of(ARRAYS))
        assert fingerprint.fingerprint(official, root=root).data_official == "yes"


# ---------------------------------------------------------------- files that are there and wrong


@pytest.mark.parametrize("layout", [PICKLES, *ARCHIVES.values()])
def test_one_flipped_bit_is_refused_with_the_files_name_and_both_checksums(layout: str, tmp_path: Path) -> None:
    root = place(tmp_path, TINY_FILES, layout)
    path = root / layout / "data_batch_3" if layout == PICKLES else root / layout
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    official = TINY.files_md5[path.name]
    with pytest.raises(InputError, match=f"{path}: not the official file: expected MD5 {official}, got {md5(content)}"):
        fingerprint.fingerprint(TINY, root=root)


def refused(layout: str, path: str, content: bytes, *, root: Path) -> str:
    """What is said to this file in place of the official one, its checksum taken for the official one."""
    wrong = {**TINY_FILES, path: content}
    place(root, wrong, layout)
    before = snapshot(root.parent)
    with pytest.raises(InputError) as refusal:
        fingerprint.fingerprint(checked(TINY, wrong), root=root)
    assert not isinstance(refusal.value, DataMissingError)
    assert snapshot(root.parent) == before, "something was written"
    (fault,) = refusal.value.faults
    assert str(root / path.partition(".tar.gz")[0].split("/")[0]) in fault
    return fault


class Shell:
    """Whoever unpickles it runs a shell."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.trace}",)


class Copier:
    """Whoever unpickles it copies a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, str(self.trace))


WANTS: dict[str, Callable[[Path], bytes]] = {
    "posix.system": lambda trace: pickle.dumps(Shell(trace), protocol=2),
    "shutil.copyfile": lambda trace: pickle.dumps(Copier(trace), protocol=4),
    "builtins.eval": lambda _: b"cbuiltins\neval\n.",
    "_codecs.encode": lambda _: pickle.dumps({b"data": b"\xff"}, protocol=2),
    "numpy.core.multiarray.scalar": lambda _: b"cnumpy.core.multiarray\nscalar\n.",
    "numpy.load": lambda _: b"cnumpy\nload\n.",
    "numpy.ndarray.tofile": lambda _: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
}


@pytest.mark.parametrize("wanted", WANTS)
def test_a_pickle_that_asks_for_anything_but_arrays_is_refused_and_not_executed(wanted: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content = WANTS[wanted](trace)
    for layout in (PICKLES, ARCHIVES[PICKLES]):
        path, packed = f"{PICKLES}/data_batch_2", {**TINY_FILES, f"{PICKLES}/data_batch_2": content}
        if layout != PICKLES:
            members = {name: found for name, found in packed.items() if name.startswith(f"{PICKLES}/")}
            path, content = layout, an_archive(members)
        fault = refused(layout, path, content, root=tmp_path / layout)
        module, _, name = wanted.rpartition(".") if "tofile" not in wanted else ("numpy", "", "ndarray.tofile")
        assert "data_batch_2: not a batch of CIFAR-10" in fault
        assert f"it asks for {module}.{name}, which" in fault
        assert not trace.exists()


def test_the_malicious_pickles_of_this_file_would_do_harm(tmp_path: Path) -> None:
    """So that the test above can fail."""
    for wanted in ("posix.system", "shutil.copyfile"):
        pickle.loads(WANTS[wanted](tmp_path / wanted))
        assert (tmp_path / wanted).exists()


PIXELS, CLASSES = ARRAYS["data_batch_1"]


WRONG_BATCHES = {
    "cut short": (a_pickle("x", PIXELS, CLASSES)[:-500], "not a batch of CIFAR-10"),
    "empty": (b"", "not a batch of CIFAR-10"),
    "a page of a captive portal": (b"<html>please log in</html>", "not a batch of CIFAR-10"),
    "a list": (pickled([1, 2]), "not a batch of CIFAR-10"),
    "without data": (pickled({"labels": CLASSES.tolist()}), "not a batch of CIFAR-10 .*data"),
    "an image too few": (
        a_pickle("x", PIXELS[1:], CLASSES),
        r"expected 4 images of 3x32x32 bytes, got uint8 \(3, 3072\)",
    ),
    "images of floats": (a_pickle("x", PIXELS / 1.0, CLASSES), r"expected 4 images .* got float64 \(4, 3072\)"),
    "grey images": (a_pickle("x", PIXELS[:, :1024], CLASSES), r"expected 4 images .* got uint8 \(4, 1024\)"),
    "a label too few": (a_pickle("x", PIXELS, CLASSES[1:]), r"expected 4 integer labels, got int64 \(3,\)"),
    "a label of a half": (a_pickle("x", PIXELS, CLASSES / 2), "expected 4 integer labels, got float64"),
    "a label of 10": (a_pickle("x", PIXELS, np.array([0, 10, 3, 4])), "expected labels 0 to 9, got 0 to 10"),
    "a negative label": (a_pickle("x", PIXELS, np.array([0, -1, 3, 4])), "expected labels 0 to 9, got -1 to 4"),
}


@pytest.mark.parametrize("kind", WRONG_BATCHES)
def test_a_pickle_that_holds_something_else_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, message = WRONG_BATCHES[kind]
    fault = refused(PICKLES, f"{PICKLES}/data_batch_1", content, root=tmp_path / "place")
    assert re.search(f"data_batch_1: {message}", fault)


def test_no_damage_to_a_pickle_is_a_traceback() -> None:
    """A thousand times another byte somewhere outside the pixels: a batch, or a refusal with the file's name."""
    whole, draw, refusals = a_pickle("x", PIXELS, CLASSES), random.Random(0), []
    start = whole.index(PIXELS.tobytes())
    outside = [*range(start), *range(start + PIXELS.nbytes, len(whole))]
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[draw.choice(outside)] = draw.randrange(256)
        try:
            cifar10._unpickle(bytes(damaged), name="here")
        except InputError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 1000
    assert all(refusal.startswith("here: ") for refusal in refusals)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (a_binary(PIXELS, CLASSES)[:-1], "expected 12,292 bytes, got 12,291; it is damaged"),
        (a_binary(PIXELS, CLASSES) + b"\0", "expected 12,292 bytes, got 12,293; it is damaged"),
        (b"", "expected 12,292 bytes, got 0; it is damaged"),
        (a_binary(PIXELS, np.array([0, 10, 3, 4], np.uint8)), "expected labels 0 to 9, got 0 to 10"),
    ],
    ids=["short", "long", "empty", "label 10"],
)
def test_a_damaged_binary_file_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    fault = refused(BINARIES, f"{BINARIES}/data_batch_4.bin", content, root=tmp_path / "place")
    assert fault == f"{tmp_path}/place/{BINARIES}/data_batch_4.bin: {message}"


@pytest.mark.parametrize("layout", [PICKLES, BINARIES])
def test_a_folder_that_lacks_a_file_is_refused_by_name(layout: str, tmp_path: Path) -> None:
    root = place(tmp_path, TINY_FILES, layout)
    lost = next((root / layout).glob("data_batch_5*"))
    lost.unlink()
    with pytest.raises(InputError, match=f"{lost}: cannot be read .No such file or directory.; put the official file"):
        fingerprint.fingerprint(TINY, root=root)


def members(folder: str) -> dict[str, bytes]:
    return {name: content for name, content in TINY_FILES.items() if name.startswith(f"{folder}/")}


def linked(folder: str) -> bytes:
    """An archive in which the second batch is a link to a file of the machine."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members(folder).items():
            entry = tarfile.TarInfo(name)
            if "data_batch_2" in name:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def renamed(folder: str, prefix: str) -> bytes:
    """An archive in which the second batch stands under another folder."""
    return an_archive({(prefix + name if "data_batch_2" in name else name): it for name, it in members(folder).items()})


@pytest.mark.parametrize("folder", [PICKLES, BINARIES])
@pytest.mark.parametrize(
    "pack",
    [
        lambda folder: an_archive({name: it for name, it in members(folder).items() if "data_batch_2" not in name}),
        lambda folder: renamed(folder, "../"),
        lambda folder: renamed(folder, "/"),
        linked,
    ],
    ids=["a batch too few", "climbs out", "absolute", "a link"],
)
def test_an_archive_without_a_batch_in_its_place_is_refused_and_nothing_is_unpacked(
    pack: Callable[[str], bytes], folder: str, tmp_path: Path
) -> None:
    archive, suffix = ARCHIVES[folder], ".bin" if folder == BINARIES else ""
    fault = refused(archive, archive, pack(folder), root=tmp_path / "place")
    assert fault == f"{tmp_path}/place/{archive}: lacks {folder}/data_batch_2{suffix}"


@pytest.mark.parametrize("content", [TINY_FILES[ARCHIVES[PICKLES]][:-2000], b"", b"\x1f\x8b" + b"x" * 50, b"text"])
def test_an_archive_that_is_not_whole_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    fault = refused(ARCHIVES[PICKLES], ARCHIVES[PICKLES], content, root=tmp_path / "place")
    assert fault.startswith(f"{tmp_path}/place/{ARCHIVES[PICKLES]}: not a whole .tar.gz (")


def test_checksums_that_the_config_lacks_are_named(tmp_path: Path) -> None:
    expected = ", ".join((*BATCHES, ARCHIVES[PICKLES], ARCHIVES[BINARIES]))
    with pytest.raises(InputError, match=f"^data.files_md5: lacks {expected}$"):
        fingerprint.fingerprint(dataclasses.replace(TINY, files_md5={}), root=tmp_path)


# ---------------------------------------------------------------- files that are not there


def test_missing_data_names_the_archive_its_place_and_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as missing:
        fingerprint.fingerprint(TINY, root=tmp_path)
    lines = missing.value.faults
    assert "put the files there or connect to the network" in lines[0]
    assert lines[1] == f"  {tmp_path}/{ARCHIVES[PICKLES]} (MD5 {TINY.files_md5[ARCHIVES[PICKLES]]})"
    assert "REMEASURE_DATA" in lines[2]
    assert f"download of {DEAD_MIRROR}{ARCHIVES[PICKLES]} failed" in lines[3]
    assert lines[4] == f"  or put there {PICKLES}/, {BINARIES}/ or {ARCHIVES[BINARIES]}"


def test_a_missing_archive_is_downloaded_whole_once_and_left_packed(tmp_path: Path) -> None:
    archive = ARCHIVES[PICKLES]
    with serving({archive: TINY_FILES[archive]}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "MIRRORS", (DEAD_MIRROR, server.url))  # the second is asked where the first fails
        found = fingerprint.fingerprint(TINY, root=tmp_path / "data")
        assert set(server.asked) == {f"/{archive}"}
    assert found == Source(
        data_sha256=fingerprint_of(ARRAYS), data_official="yes", description="CIFAR-10, the official files"
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == [archive]
    assert (tmp_path / "data" / archive).read_bytes() == TINY_FILES[archive]


@pytest.mark.parametrize("body", [TINY_FILES[ARCHIVES[PICKLES]][:-9], b"<html>please log in</html>"])
def test_a_download_that_goes_wrong_never_reaches_its_final_name(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DOWNLOAD_TIMEOUT_SECONDS", 5.0)
    with serving({ARCHIVES[PICKLES]: body}) as server:
        monkeypatch.setattr(cifar10, "MIRRORS", (server.url,))
        with pytest.raises(DataMissingError, match=f"download of {server.url}{ARCHIVES[PICKLES]} failed: "):
            fingerprint.fingerprint(TINY, root=tmp_path)
        assert server.asked
    assert list(tmp_path.iterdir()) == []


def test_with_fetch_false_nothing_is_downloaded_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(TINY_FILES) as server:
        monkeypatch.setattr(cifar10, "MIRRORS", (server.url,))
        with pytest.raises(DataMissingError, match="nothing is downloaded for this command"):
            catalog.test_labels(TINY, root=tmp_path)
        assert server.asked == []
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the real images


def test_the_copy_is_known_and_never_called_official(cifar10_root: Path, tmp_path: Path) -> None:
    (tmp_path / BINARIES).symlink_to(cifar10_root / BINARIES)  # the data root may hold the official pickles beside
    found = fingerprint.fingerprint(CIFAR10, root=tmp_path)
    if found.data_sha256 not in CIFAR10.known_copies:
        pytest.skip(f"another copy of CIFAR-10: {found.data_sha256}")
    assert found.data_official == "no"
    assert "93 (73 train, 20 test) come from JPEG copies" in found.description


def test_the_real_images_are_the_same_from_all_layouts_and_torchvision_reads_these_pickles_alike(
    cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 1,000 of each file."""
    monkeypatch.setattr(cifar10, "PER_FILE", 1000)
    files = {name: np.fromfile(cifar10_root / BINARIES / f"{name}.bin", np.uint8) for name in BATCHES}
    raw = {name: content.reshape(-1, 3073)[:1000] for name, content in files.items()}
    content = every_file({name: (rows[:, 1:], rows[:, 0]) for name, rows in raw.items()})
    spec = checked(dataclasses.replace(CIFAR10, num_train=5000, num_test=1000), content)
    expected = fingerprint_of({name: (rows[:, 1:], rows[:, 0]) for name, rows in raw.items()})
    for layout in reversed(LAYOUTS):  # the one that is preferred comes last
        assert fingerprint.fingerprint(spec, root=place(tmp_path, content, layout)).data_sha256 == expected

    class Theirs(torchvision.datasets.CIFAR10):
        train_list = [[name, spec.files_md5[name]] for name in BATCHES[:5]]  # noqa: RUF012 - torchvision's own shape
        test_list = [["test_batch", spec.files_md5["test_batch"]]]  # noqa: RUF012
        meta = {  # noqa: RUF012
            "filename": "batches.meta",
            "key": "label_names",
            "md5": md5(content[f"{PICKLES}/batches.meta"]),
        }

    for split in ("train", "test"):
        theirs = Theirs(tmp_path, train=split == "train")
        ours = catalog.load_split(spec, split, root=tmp_path)
        np.testing.assert_array_equal(theirs.data.transpose(0, 3, 1, 2), ours.images)
        assert theirs.targets == ours.labels.tolist()


def test_the_real_splits_are_whole_and_in_the_official_order(cifar10_root: Path) -> None:
    train, test = (catalog.load_split(CIFAR10, split, root=cifar10_root) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # frog, truck, truck, deer, car, as published
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.images[0, :, 0, 0].tolist() == [59, 62, 63]  # red, green, blue of the frog's first pixel


def test_pixel_statistics_are_those_of_the_training_pixels(cifar10_root: Path) -> None:
    images = catalog.load_split(CIFAR10, "train", root=cifar10_root).images
    for channel in range(3):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        value = np.arange(256) / 255
        mean = share @ value
        assert CIFAR10.pixel_mean[channel] == pytest.approx(mean, abs=1e-5)  # the copy differs in 73 images of 50,000
        assert CIFAR10.pixel_std[channel] == pytest.approx(np.sqrt(share @ (value - mean) ** 2), abs=1e-5)
