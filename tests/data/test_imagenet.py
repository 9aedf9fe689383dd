"""ImageNet as it lies on a disk: the same photographs, labels and fingerprint from either layout; nothing written."""

import hashlib
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torchvision.datasets.imagenet
from tests.support.photographed import LABELS, TRUTH, imagenet, make_archive, make_folder, photographs

from remeasure.data import catalog, fingerprint
from remeasure.data import listing as stored
from remeasure.data.imagenet import ARCHIVE, DEVKIT, synsets
from remeasure.data.listing import Listing
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.run import DataSpec
from remeasure.system import paths

# Seven photographs, by class and then by name: worked out by hand from TRUTH.
NUMBERS_IN_ORDER = (2, 4, 5, 1, 6, 3, 7)
LABELS_IN_ORDER = [0, 0, 1, 217, 217, 999, 999]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "unpacked")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_archive(tmp_path / "packed")


@pytest.fixture(scope="module")
def sample() -> tuple[DataSpec, Path]:
    """The hundred real photographs: without them, tests are skipped, or fail where REMEASURE_REQUIRE_DATA is set."""
    root = paths.data_root()
    if not (root / "imagenet-sample/val").is_dir():
        reason = f"{root} lacks imagenet-sample"
        if os.environ.get("REMEASURE_REQUIRE_DATA"):
            pytest.fail(f"REMEASURE_REQUIRE_DATA is set, but {reason}")
        pytest.skip(reason)
    return catalog.read_config("imagenet_sample", conf_dirs=paths.conf_dirs()), root


def _listing(root: Path) -> Listing:
    return catalog.load_listing(imagenet(root), "test", root=root)


# ---------------------------------------------------------------- order and labels


@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_photographs_come_by_class_and_then_by_name(layout: str, request: pytest.FixtureRequest) -> None:
    listing = _listing(request.getfixturevalue(layout))
    contents = list(photographs().values())
    expected = [f"{TRUTH[number - 1]}/ILSVRC2012_val_{number:08d}.JPEG" for number in NUMBERS_IN_ORDER]
    assert list(listing.names) == expected
    assert listing.labels.dtype == np.int64
    assert listing.labels.tolist() == LABELS_IN_ORDER
    assert [listing.read(index) for index in range(7)] == [contents[number - 1] for number in NUMBERS_IN_ORDER]


def test_class_indices_are_those_of_timm_and_of_the_sorted_synsets() -> None:
    names = timm.data.ImageNetInfo().label_names()
    assert list(synsets()) == names == sorted(names)
    assert list(synsets().values()) == list(range(1000))
    assert {name: synsets()[name] for name in LABELS} == LABELS


def test_the_archive_is_read_as_torchvision_unpacks_it(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, home = _listing(archive), archive / "imagenet"
    for key, name in (("val", ARCHIVE), ("devkit", DEVKIT)):
        md5 = hashlib.md5((home / name).read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision.datasets.imagenet.ARCHIVE_META, key, (name, md5))
    theirs = torchvision.datasets.ImageNet(home, split="val")
    assert [str(Path(path).relative_to(home / "val")) for path, _ in theirs.samples] == list(ours.names)
    assert [theirs.wnids[target] for target in theirs.targets] == [name.partition("/")[0] for name in ours.names]


def test_the_checksums_are_the_ones_that_torchvision_checks() -> None:
    meta = torchvision.datasets.imagenet.ARCHIVE_META
    spec = catalog.read_config("imagenet", conf_dirs=paths.conf_dirs())
    assert spec.files_md5 == dict((meta["val"], meta["devkit"]))


def test_the_sample_is_in_timms_order_with_the_labels_of_the_1000_classes(sample: tuple[DataSpec, Path]) -> None:
    spec, root = sample
    listing = catalog.load_listing(spec, "test", root=root)
    theirs = timm.data.create_dataset("", root=str(root / "imagenet-sample/val"))
    assert list(listing.names) == theirs.filenames()
    assert listing.labels.tolist() == list(range(0, 1000, 10))  # every tenth of the sorted synsets


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_over_labels_lengths_and_bytes_in_order(folder: Path) -> None:
    contents, digest = list(photographs().values()), hashlib.sha256()
    for number, label in zip(NUMBERS_IN_ORDER, LABELS_IN_ORDER, strict=True):
        digest.update(struct.pack("<qq", label, len(contents[number - 1])) + contents[number - 1])
    assert fingerprint.fingerprint(imagenet(folder), root=folder).data_sha256 == digest.hexdigest()


def test_both_layouts_have_one_fingerprint_and_the_verified_archive_is_official(folder: Path, archive: Path) -> None:
    unpacked = fingerprint.fingerprint(imagenet(folder), root=folder)
    packed = fingerprint.fingerprint(imagenet(archive), root=archive)
    assert unpacked.data_sha256 == packed.data_sha256
    assert (unpacked.data_official, packed.data_official) == ("unknown", "yes")
    assert fingerprint.fingerprint(imagenet(archive), root=archive) == packed  # from the cache, too


def test_the_fingerprint_is_kept_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, read = imagenet(folder), list[int]()
    monkeypatch.setattr(stored.Listing, "read", _counting(read))
    first = fingerprint.fingerprint(spec, root=folder)
    assert fingerprint.fingerprint(spec, root=folder) == first
    assert len(read) == 7
    path = folder / "imagenet/val" / _listing(folder).names[3]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(1, 1))
    assert fingerprint.fingerprint(spec, root=folder).data_sha256 != first.data_sha256
    assert len(read) == 14


def _counting(read: list[int]) -> Callable[[Listing, int], bytes]:
    original = stored.Listing.read

    def counted(self: Listing, index: int) -> bytes:
        read.append(index)
        return original(self, index)

    return counted


def test_a_spoiled_cache_or_none_at_all_only_costs_time(folder: Path, cache: Path) -> None:
    first = fingerprint.fingerprint(imagenet(folder), root=folder)
    (kept,) = (cache / "remeasure/fingerprints").iterdir()
    kept.write_text("{")
    assert fingerprint.fingerprint(imagenet(folder), root=folder) == first
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    assert fingerprint.fingerprint(imagenet(folder), root=folder) == first


@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_nothing_is_written_into_the_data_root(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    fingerprint.fingerprint(imagenet(root), root=root)
    catalog.test_labels(imagenet(root), root=root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_sample_is_a_known_copy_that_says_what_it_is_not_for(sample: tuple[DataSpec, Path]) -> None:
    source = fingerprint.fingerprint(sample[0], root=sample[1])
    assert source.data_official == "no"
    assert "training images" in source.description
    assert "not for accuracy" in source.description


def test_labels_need_no_photograph_that_can_be_decoded(folder: Path) -> None:
    for path in folder.rglob("*.JPEG"):
        path.write_bytes(b"")
    assert catalog.test_labels(imagenet(folder), root=folder).tolist() == LABELS_IN_ORDER


# ---------------------------------------------------------------- what is missing or wrong


def test_missing_photographs_are_named_with_both_places_they_may_go(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as error:
        fingerprint.fingerprint(imagenet(tmp_path), root=tmp_path)
    text = str(error.value)
    assert f"{tmp_path}/imagenet/val/<synset>/*.JPEG" in text
    assert f"{tmp_path}/imagenet/{ARCHIVE} (MD5 29b22e2961454d5413ddabcf34fc5622)" in text
    assert f"{tmp_path}/imagenet/{DEVKIT} (MD5 fa75699e90414af021442c21a62c3abf)" in text
    assert len(error.value.faults) <= 6


def test_an_empty_folder_is_missing_photographs(tmp_path: Path) -> None:
    (tmp_path / "imagenet/val").mkdir(parents=True)
    with pytest.raises(DataMissingError, match="these photographs are missing"):
        fingerprint.fingerprint(imagenet(tmp_path), root=tmp_path)


def test_an_archive_without_its_devkit_names_the_devkit(archive: Path) -> None:
    (archive / "imagenet" / DEVKIT).unlink()
    with pytest.raises(DataMissingError, match=rf"{DEVKIT} \(MD5 fa75699e90414af021442c21a62c3abf\)"):
        fingerprint.fingerprint(imagenet(archive), root=archive)


def test_an_archive_that_is_not_the_official_one_is_refused(archive: Path) -> None:
    spec, path = imagenet(archive), archive / "imagenet" / ARCHIVE
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{ARCHIVE}: not the official file: expected MD5 {spec.files_md5[ARCHIVE]}"):
        fingerprint.fingerprint(spec, root=archive)


def test_a_devkit_that_is_not_the_official_one_is_not_opened(archive: Path) -> None:
    spec = imagenet(archive)
    (archive / "imagenet" / DEVKIT).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(InputError, match=rf"{DEVKIT}: not the official file"):
        fingerprint.fingerprint(spec, root=archive)


@pytest.mark.parametrize("kept", [0, 700, 9000, "all but the last photograph's last byte"])
def test_a_truncated_archive_is_refused(archive: Path, kept: int | str) -> None:
    path, spans = archive / "imagenet" / ARCHIVE, _listing(archive).spans
    assert spans is not None
    end = int(spans.sum(axis=1).max()) - 1
    path.write_bytes(path.read_bytes()[: kept if isinstance(kept, int) else end])
    with pytest.raises(InputError, match=rf"{ARCHIVE}: (not a whole tar archive|expected 7 photographs)"):
        _listing(archive)


def test_an_archive_of_other_files_is_refused(archive: Path) -> None:
    with tarfile.open(archive / "imagenet" / ARCHIVE, "a") as handle:
        handle.addfile(tarfile.TarInfo("another"))
    with pytest.raises(InputError, match=rf"{ARCHIVE}: expected 7 photographs, got 8"):
        _listing(archive)


def test_a_folder_that_is_no_class_is_named(folder: Path) -> None:
    (folder / "imagenet/val/n00000001").mkdir()
    with pytest.raises(InputError, match=r"not among ImageNet's 1,000 classes: n00000001$"):
        _listing(folder)


def test_too_few_and_too_many_photographs_are_counted(folder: Path) -> None:
    spec = imagenet(folder)
    for num, expected in ((6, "expected 6 photographs in .*, got 7"), (8, "expected 8 photographs in .*, got 7")):
        with pytest.raises(InputError, match=expected):
            catalog.load_listing(replace(spec, num_test=num), "test", root=folder)


def test_what_is_no_photograph_is_not_counted_as_one(folder: Path) -> None:
    for name in ("valprep.sh", "n01440764/.DS_Store", "n01440764/notes.txt", "n01440764/._a.JPEG"):
        (folder / "imagenet/val" / name).write_text("")
    assert len(_listing(folder)) == 7


def test_the_training_photographs_are_never_taken_for_the_test_split(folder: Path) -> None:
    (folder / "imagenet/val").rename(folder / "imagenet/train")
    with pytest.raises(DataMissingError, match=r"imagenet/val/<synset>"):
        _listing(folder)


def test_the_two_kinds_of_data_sets_are_not_mixed_up(folder: Path) -> None:
    digits = catalog.read_config("digits", conf_dirs=paths.conf_dirs())
    with pytest.raises(InputError, match="data digits: has no photographs in files"):
        catalog.load_listing(digits, "test", root=folder)
    with pytest.raises(InputError, match="data imagenet: photographs are not read whole"):
        catalog.load_split(imagenet(folder), "test", root=folder)


def test_a_fingerprint_that_takes_long_says_how_far_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored, "PROGRESS_SECONDS", 0.0)
    fingerprint.fingerprint(imagenet(folder), root=folder)
    assert "3 of 7 photographs" in capsys.readouterr().err
