"""Data: the official bytes or a refusal, from whatever layout, without a trace in the data root."""

import dataclasses
import gzip
import hashlib
import io
import socket
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits
from tests.support.forking import client as forking
from tests.support.mirror import DEAD_MIRROR, Server, serving
from tests.support.project import CHECKOUT

from remeasure.data import catalog, files, fingerprint, mnist
from remeasure.data.digits import NUM_TRAIN
from remeasure.data.files import Split
from remeasure.data.fingerprint import Source
from remeasure.spec.base import DataMissingError, InputError
from remeasure.system import paths

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST = catalog.read_config("mnist", conf_dirs=paths.conf_dirs())
DIGITS = catalog.read_config("digits", conf_dirs=paths.conf_dirs())


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """The IDX format by hand: two zero bytes, 8 for unsigned bytes, the rank, big-endian sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def tiny_arrays() -> dict[str, np.ndarray]:
    """Six training and four test images of 28x28, and their labels."""
    rng = np.random.default_rng(0)
    shapes = zip(STEMS, ((6, 28, 28), (6,), (4, 28, 28), (4,)), strict=True)
    return {stem: rng.integers(0, 256 if len(shape) > 1 else 10, shape, np.uint8) for stem, shape in shapes}


TINY_FILES = {
    name: content
    for stem, values in tiny_arrays().items()
    for name, content in ((stem, idx(values)), (f"{stem}.gz", gzip.compress(idx(values), mtime=0)))
}
TINY = dataclasses.replace(
    MNIST, num_train=6, num_test=4, files_md5={name: md5(content) for name, content in TINY_FILES.items()}
)
PACKED = tuple(f"{stem}.gz" for stem in STEMS)


def place(root: Path, names: tuple[str, ...]) -> Path:
    """A data root that holds these files of the tiny MNIST."""
    (root / "MNIST/raw").mkdir(parents=True)
    for name in names:
        (root / "MNIST/raw" / name).write_bytes(TINY_FILES[name])
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its time of change and size."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in (root, *root.rglob("*"))}


@pytest.fixture(autouse=True)
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """No test reaches a real mirror; a test may set its own."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def use(*urls: str) -> None:
        monkeypatch.setattr(mnist, "MIRRORS", urls)

    use(DEAD_MIRROR)
    return use


# ---------------------------------------------------------------- MNIST as published


def test_checksums_and_mirrors_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real mirrors
    assert {name: MNIST.files_md5[name] for name in PACKED} == dict(torchvision.datasets.MNIST.resources)
    assert list(mnist.MIRRORS) == torchvision.datasets.MNIST.mirrors


@pytest.fixture(scope="session")
def unpacked_root(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official MNIST, all four files unpacked."""
    root = tmp_path_factory.mktemp("unpacked")
    (root / "MNIST/raw").mkdir(parents=True)
    for stem in STEMS:
        packed, unpacked = data_root / f"MNIST/raw/{stem}.gz", data_root / f"MNIST/raw/{stem}"
        content = gzip.decompress(packed.read_bytes()) if packed.is_file() else unpacked.read_bytes()
        (root / "MNIST/raw" / stem).write_bytes(content)
    return root


def test_official_mnist_is_recognised_by_a_fingerprint_that_torchvisions_reader_confirms(
    data_root: Path, unpacked_root: Path
) -> None:
    digest = hashlib.sha256()
    for train in (True, False):
        read = torchvision.datasets.MNIST(unpacked_root, train=train)
        digest.update(read.data.numpy().reshape(-1, 1, 28, 28).tobytes() + read.targets.numpy().tobytes())
    found = fingerprint.fingerprint(MNIST, root=data_root)
    assert found == Source(data_sha256=digest.hexdigest(), data_official="yes", description="MNIST, the official files")
    assert fingerprint.fingerprint(MNIST, root=unpacked_root) == found


def test_mnist_pixel_statistics_are_those_of_the_training_pixels(data_root: Path) -> None:
    images = catalog.load_split(MNIST, "train", root=data_root).images
    counts = sum(np.bincount(part.ravel(), minlength=256) for part in np.array_split(images, 100))
    share, value = counts / images.size, np.arange(256) / 255
    mean = share @ value
    assert MNIST.pixel_mean == pytest.approx([mean], abs=1e-14)
    assert MNIST.pixel_std == pytest.approx([np.sqrt(share @ (value - mean) ** 2)], abs=1e-14)


def test_mnist_splits_are_whole_and_in_the_official_order(data_root: Path) -> None:
    train, test = (catalog.load_split(MNIST, split, root=data_root) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int64)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as in every tutorial
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_one_flipped_bit_in_an_official_file_is_refused(unpacked_root: Path, tmp_path: Path) -> None:
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for stem in STEMS:
        (tmp_path / "MNIST/raw" / stem).symlink_to(unpacked_root / "MNIST/raw" / stem)
    bits = bytearray((unpacked_root / "MNIST/raw" / STEMS[2]).read_bytes())
    bits[5_000_000] ^= 1
    (tmp_path / "MNIST/raw" / STEMS[2]).unlink()
    (tmp_path / "MNIST/raw" / STEMS[2]).write_bytes(bits)
    with pytest.raises(
        InputError, match=f"{STEMS[2]}: not the official file: expected MD5 2646ac64.*, got {md5(bits)}"
    ):
        fingerprint.fingerprint(MNIST, root=tmp_path)


# ---------------------------------------------------------------- digits


def test_digits_are_the_bundles_first_1297_and_last_500_images() -> None:
    bundle = load_digits()
    train, test = (catalog.load_split(DIGITS, split, root=Path("nowhere")) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (1297, 500) == (NUM_TRAIN, DIGITS.num_test)
    images = np.concatenate([train.images, test.images])
    assert images.dtype == np.uint8
    assert images.max() == 255
    np.testing.assert_array_equal(images[:, 0], np.floor(bundle.images * 255 / 16))
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), bundle.target)


def test_digits_pixel_statistics_are_those_of_the_training_pixels() -> None:
    pixels = np.floor(load_digits().images[:1297] * 255 / 16) / 255
    assert DIGITS.pixel_mean == pytest.approx([pixels.mean()], abs=1e-14)
    assert DIGITS.pixel_std == pytest.approx([pixels.std()], abs=1e-14)


def test_digits_are_a_known_copy_and_never_called_official() -> None:
    bundle = load_digits()
    pixels, labels = np.floor(bundle.images * 255 / 16).astype(np.uint8), bundle.target.astype("<i8")
    parts = (part.tobytes() for cut in (slice(1297), slice(1297, None)) for part in (pixels[cut], labels[cut]))
    found = fingerprint.fingerprint(DIGITS, root=Path("nowhere"))
    assert found.data_sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert found.data_official == "no"
    assert "bundled copy of the UCI test part" in found.description


# ---------------------------------------------------------------- fingerprint


@pytest.mark.parametrize("names", [PACKED, STEMS, (PACKED[0], STEMS[1], STEMS[2], PACKED[3])])
def test_the_fingerprint_is_the_same_whatever_the_file_layout(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = tiny_arrays()
    parts = [
        arrays[stem].tobytes() if "images" in stem else arrays[stem].astype("<i8").tobytes() for stem in STEMS
    ]  # train, then test; in each the pixels, then labels of eight bytes
    found = fingerprint.fingerprint(TINY, root=place(tmp_path, names))
    assert found.data_sha256 == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_tuning_run_never_opens_the_test_split(tmp_path: Path) -> None:
    tuning = dataclasses.replace(TINY, num_validation=2, split="validation")
    root = place(tmp_path, PACKED[:2])
    arrays = tiny_arrays()
    parts = arrays[STEMS[0]].tobytes() + arrays[STEMS[1]].astype("<i8").tobytes()
    assert fingerprint.fingerprint(tuning, root=root).data_sha256 == hashlib.sha256(parts).hexdigest()
    with pytest.raises(DataMissingError):
        fingerprint.fingerprint(TINY, root=root)


def test_official_is_yes_for_the_official_bytes_no_for_a_known_copy_else_unknown() -> None:
    spec = dataclasses.replace(MNIST, official_sha256="a" * 64, known_copies={"b" * 64: "93 images are JPEG copies"})
    sources = [fingerprint.official(spec, letter * 64, verified=True) for letter in "abc"]
    assert [source.data_official for source in sources] == ["yes", "no", "unknown"]
    assert [source.description for source in sources] == [
        "MNIST, the official files",
        "93 images are JPEG copies",
        "MNIST, the official files (unknown fingerprint)",
    ]


def no_split(*_: object) -> str:
    return "images"


def raises(*_: object) -> str:
    return {}["images"]


def of(*, images: object = np.zeros((1297, 1, 8, 8), np.uint8), labels: object = np.zeros(1297, np.int64)) -> object:
    return lambda *_: Split(images=images, labels=labels, verified=False)  # type: ignore[arg-type]


floats = of(images=np.zeros((1297, 1, 8, 8)))
lists = of(labels=[0, 1])
grey = of(images=np.zeros((1297, 8, 8), np.uint8))
few = of(labels=np.zeros(7, np.int64))
negative = of(labels=np.full(1297, -1))
many = of(labels=np.arange(1297) % 11)
from_one = of(labels=np.arange(1297) % 10 + 1)


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ("no_split", "data.source: {}:no_split returns str; {expected}"),
        ("raises", "data.source: {}:raises: KeyError: 'images' (test_catalog.py, line {line}); {expected}"),
        ("floats", "data.source: {}:floats returns images (1297, 1, 8, 8) float64; {expected}"),
        ("lists", "data.source: {}:lists returns labels list; {expected}"),
        ("grey", "data.source: {}:grey returns images (1297, 8, 8) uint8; {expected}"),
        ("few", "data digits: 1297 train images, but 7 labels"),
        ("negative", "data digits: expected train labels from 0 up, got -1"),
        (
            "many",
            "data digits: expected train labels 0 to 9, as data.num_classes is 10, got 0 to 10",
        ),
        (
            "from_one",
            "data digits: expected train labels 0 to 9, as data.num_classes is 10, got 1 to 10; subtract 1",
        ),
    ],
)
def test_a_reader_from_outside_is_told_what_a_reader_is(reader: str, said: str, tmp_path: Path) -> None:
    expected = (
        "expected read(split, root, files_md5, fetch) -> remeasure.data.files.Split with images (N, C, H, W) uint8 and "
        "labels (N,) int64"
    )
    with pytest.raises(InputError) as refused:
        catalog.load_split(dataclasses.replace(DIGITS, source=f"{__name__}:{reader}"), "train", root=tmp_path)
    line = raises.__code__.co_firstlineno + 1
    assert refused.value.faults == (said.format(__name__, expected=expected, line=line),)


def leaks(split: str, *_: object) -> Split:
    """A hundredth of the 500 test images, 5, and one more are training images."""
    images = np.random.default_rng(split == "test").integers(256, size=(1297, 1, 8, 8), dtype=np.uint8)
    images = images if split == "train" else np.concatenate([leaks("train").images[:6], images[: 500 - 6]])
    return Split(images=images, labels=np.zeros(len(images), np.int64), verified=False)


def test_a_reader_whose_test_images_are_trained_on_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data digits: leak: 6 of the 500 test images are among the training images, "):
        fingerprint.fingerprint(dataclasses.replace(DIGITS, source=f"{__name__}:leaks"), root=tmp_path)


def test_taking_a_fingerprint_copies_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((1000, 1, 100, 100), np.uint8)  # 10 MB
    split = Split(images=images, labels=np.zeros(1000, np.int64), verified=True)
    spec = dataclasses.replace(DIGITS, num_train=1000, num_test=1000, image_shape=(1, 100, 100))
    monkeypatch.setitem(catalog.READERS, "digits", lambda *_: split)
    tracemalloc.start()
    fingerprint.fingerprint(spec, root=Path("nowhere"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_gzip_file_is_unpacked_whole_and_held_once() -> None:
    content = bytes(range(256)) * 40_000  # 10 MB in many pieces
    packed = gzip.compress(content, compresslevel=0)
    tracemalloc.start()
    unpacked = mnist.unpack(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert unpacked == content
    assert peak < 1.3 * len(content)


@pytest.mark.parametrize("names", [STEMS, PACKED], ids=["unpacked", "gzipped"])
def test_images_can_be_handed_to_torch_without_a_copy(tmp_path: Path, names: tuple[str, ...]) -> None:
    split = catalog.load_split(TINY, "train", root=place(tmp_path, names))
    assert split.images.flags.writeable
    assert split.labels.flags.writeable


# ---------------------------------------------------------------- files that are there and wrong


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


WRONG: dict[str, Callable[[str], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda name: TINY_FILES[name][:-1],
    "one bit flipped": lambda name: flipped(TINY_FILES[name]),
    "labels in place of images": lambda name: TINY_FILES[name.replace("images-idx3", "labels-idx1")],
    "test in place of train": lambda name: TINY_FILES[name.replace("train", "t10k")],
    "a torn archive": lambda _: TINY_FILES[PACKED[0]][:50],
    "a gzip bomb": lambda _: gzip.compress(bytes(20_000_000)),
    "a page of a captive portal": lambda _: b"<html>please log in</html>",
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("names", [PACKED, STEMS], ids=["packed", "unpacked"])
def test_a_wrong_file_is_refused_with_its_name_both_checksums_and_what_to_do(
    kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    root, name = place(tmp_path, names), names[0]
    path, content = root / "MNIST/raw" / name, WRONG[kind](name)
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError) as refused:
        fingerprint.fingerprint(TINY, root=root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.faults == (
        f"{path}: not the official file: expected MD5 {md5(TINY_FILES[name])}, got {md5(content)} "
        f"({len(content):,} bytes). It is truncated, damaged or another file; delete it to have it downloaded, "
        "or put the official one there",
    )
    assert not isinstance(refused.value, DataMissingError)  # it is there, and another row must not hide it
    assert peak < 2_000_000  # the bomb was not unpacked
    assert path.read_bytes() == content  # the user's file is the user's


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    root = place(tmp_path, PACKED[1:])
    (root / "MNIST/raw" / STEMS[0]).mkdir()
    with pytest.raises(InputError, match=f"{STEMS[0]}: expected a file, found a folder; .* put the file there"):
        fingerprint.fingerprint(TINY, root=root)


def test_another_number_of_images_than_the_config_says_is_refused(tmp_path: Path) -> None:
    root = place(tmp_path, PACKED)
    spec = dataclasses.replace(TINY, num_test=5)
    with pytest.raises(InputError, match=r"data mnist: expected test images \(5, 1, 28, 28\), got \(4, 1, 28, 28\)"):
        catalog.load_split(spec, "test", root=root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file of unsigned bytes"),  # floats
        (b"\0\0\x08\x01\0\0\0\x03\x01\x02", "another length than its header says"),
        (b"\0\0\x08\x01\0\0\0\x01\x01\x02", "another length than its header says"),
        (b"\0\0\x08\x03\0\0\0\x01\0\0\0\x01", "another length than its header says"),
    ],
)
def test_a_malformed_idx_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"here: .*{message}"):
        mnist.parse_idx(content, name="here")


def test_checksums_that_the_config_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"data.files_md5: lacks {STEMS[0]}.gz, {STEMS[0]}, "):
        fingerprint.fingerprint(dataclasses.replace(MNIST, files_md5={}), root=tmp_path)


def test_an_unknown_reader_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.source: no such reader 'minst'.*valid: mnist, digits"):
        catalog.load_split(dataclasses.replace(MNIST, source="minst"), "test", root=tmp_path)


# ---------------------------------------------------------------- files that are not there


def test_missing_data_names_every_wanted_file_its_place_and_what_to_do(tmp_path: Path) -> None:
    root = place(tmp_path, (STEMS[1],))
    with pytest.raises(DataMissingError) as missing:
        fingerprint.fingerprint(TINY, root=root)
    first, *lines = missing.value.faults
    assert "put the files there or connect to the network" in first
    wanted = [name for name in PACKED if name != PACKED[1]]
    assert lines[:3] == [f"  {root}/MNIST/raw/{name} (MD5 {TINY.files_md5[name]})" for name in wanted]
    assert f"the data root is {root}" in lines[3]
    assert "REMEASURE_DATA" in lines[3]
    assert f"download of {DEAD_MIRROR}{PACKED[0]} failed" in lines[4]
    assert "refused" in lines[4]


def test_with_fetch_false_nothing_is_downloaded_or_written(tmp_path: Path, server: Server) -> None:
    for split in ("train", "test"):
        with pytest.raises(DataMissingError, match=rf"{PACKED[0]}(?s:.)*nothing is downloaded"):
            catalog.load_split(TINY, split, root=tmp_path, fetch=False)
    with pytest.raises(DataMissingError):
        catalog.test_labels(TINY, root=tmp_path)
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def test_test_labels_are_those_of_the_official_test_split(tmp_path: Path) -> None:
    labels = catalog.test_labels(TINY, root=place(tmp_path, PACKED[2:]))  # no training file is needed
    np.testing.assert_array_equal(labels, tiny_arrays()[STEMS[3]])
    assert labels.dtype == np.int64


def test_reading_writes_nothing_into_the_data_root(tmp_path: Path) -> None:
    root = place(tmp_path, (*PACKED[:2], *STEMS[2:]))
    for folder in (root / "MNIST/raw", root / "MNIST", root):
        folder.chmod(0o555)
    before = snapshot(root)
    fingerprint.fingerprint(TINY, root=root)
    catalog.test_labels(TINY, root=root)
    assert snapshot(root) == before
    for folder in (root, root / "MNIST", root / "MNIST/raw"):
        folder.chmod(0o755)


# ---------------------------------------------------------------- downloads


@pytest.fixture
def server(mirrors: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A good mirror of the tiny MNIST, the only one that is asked."""
    monkeypatch.setattr(files, "DOWNLOAD_TIMEOUT_SECONDS", 5.0)
    with serving(TINY_FILES) as local:
        mirrors(local.url)
        yield local


def test_missing_files_are_downloaded_whole_with_a_progress_bar(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    found = fingerprint.fingerprint(TINY, root=tmp_path / "data")
    raw = tmp_path / "data/MNIST/raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(PACKED)  # and no partial file
    assert all((raw / name).read_bytes() == TINY_FILES[name] for name in PACKED)
    assert found == fingerprint.fingerprint(TINY, root=place(tmp_path / "other", STEMS))
    shown = capfd.readouterr()
    assert shown.out == ""  # standard output belongs to the contract's last line
    assert shown.err.count("100%") >= 4
    assert all(name in shown.err for name in PACKED)
    asked = len(server.asked)
    fingerprint.fingerprint(TINY, root=tmp_path / "data")
    assert len(server.asked) == asked  # what is there is not asked for again


@pytest.mark.usefixtures("server")
def test_what_a_killed_download_left_is_removed_by_the_next(tmp_path: Path) -> None:
    leftover = tmp_path / "MNIST/raw/.partial-killed"
    leftover.mkdir(parents=True)
    (leftover / PACKED[0]).write_bytes(TINY_FILES[PACKED[0]][:100])
    fingerprint.fingerprint(TINY, root=tmp_path)
    assert sorted(path.name for path in (tmp_path / "MNIST/raw").iterdir()) == sorted(PACKED)


DOWNLOAD = """
import sys
from pathlib import Path
from tests.data.test_catalog import TINY
from remeasure.data import fingerprint, mnist
mnist.MIRRORS = tuple(sys.argv[2:])
fingerprint.fingerprint(TINY, root=Path(sys.argv[1]))
"""


def test_two_processes_that_miss_a_file_download_it_once(tmp_path: Path, server: Server) -> None:
    """The second one waits, and its neighbour's unfinished file is not taken for a leftover."""
    environment = forking.environment(PYTHONPATH=f"{CHECKOUT}/src:{CHECKOUT}")
    processes = [forking.popen(["-c", DOWNLOAD, str(tmp_path), *mnist.MIRRORS], env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    requests = 2  # torchvision first asks where a mirror sends it
    assert Counter(server.asked) == dict.fromkeys((f"/{name}" for name in PACKED), requests)


def test_only_what_is_missing_is_downloaded(tmp_path: Path, server: Server) -> None:
    root = place(tmp_path, (STEMS[0], PACKED[1], STEMS[3]))
    fingerprint.fingerprint(TINY, root=root)
    assert set(server.asked) == {f"/{PACKED[2]}"}


def test_a_tuning_run_downloads_the_training_split_alone(tmp_path: Path, server: Server) -> None:
    fingerprint.fingerprint(dataclasses.replace(TINY, num_validation=2, split="validation"), root=tmp_path)
    assert set(server.asked) == {f"/{name}" for name in PACKED[:2]}


@pytest.mark.usefixtures("server")
def test_a_second_mirror_is_asked_where_the_first_fails(tmp_path: Path, mirrors: Callable[..., None]) -> None:
    mirrors(DEAD_MIRROR, *mnist.MIRRORS)
    fingerprint.fingerprint(TINY, root=tmp_path)
    assert (tmp_path / "MNIST/raw" / PACKED[0]).read_bytes() == TINY_FILES[PACKED[0]]


GOOD = TINY_FILES[PACKED[0]]
BAD_ANSWERS = {
    "cut short": (200, {"Content-Length": str(len(GOOD))}, GOOD[: len(GOOD) // 2]),
    "cut short in chunks": (200, {"Transfer-Encoding": "chunked"}, b"1000\r\n" + GOOD[:100]),
    "another file": (200, {}, TINY_FILES[PACKED[1]]),
    "a page of a captive portal": (200, {"Content-Type": "text/html"}, b"<html>please log in</html>"),
    "not found": (404, {}, b"not here"),
    "moved in circles": (302, {"Location": f"/{PACKED[0]}"}, b""),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_download_that_goes_wrong_never_reaches_its_final_name(kind: str, tmp_path: Path, server: Server) -> None:
    server.answers[f"/{PACKED[0]}"] = BAD_ANSWERS[kind]
    with pytest.raises(DataMissingError) as missing:
        fingerprint.fingerprint(TINY, root=tmp_path)
    assert server.asked
    assert list((tmp_path / "MNIST/raw").iterdir()) == []
    assert sum(".gz (MD5 " in fault for fault in missing.value.faults) == 4
    assert f"download of {mnist.MIRRORS[0]}{PACKED[0]} failed: " in missing.value.faults[-1]
    server.answers[f"/{PACKED[0]}"] = (200, {}, GOOD)
    assert fingerprint.fingerprint(TINY, root=tmp_path).data_official == "unknown"  # and the next try succeeds


def test_a_silent_mirror_ends_the_download_and_leaves_the_timeout_as_it_was(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DOWNLOAD_TIMEOUT_SECONDS", 0.2)
    server.silent.set()
    with pytest.raises(DataMissingError, match="timed out"):
        fingerprint.fingerprint(TINY, root=tmp_path)
    assert socket.getdefaulttimeout() is None


def test_a_data_root_that_cannot_be_written_is_said_with_the_wanted_files(tmp_path: Path, server: Server) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(InputError) as refused:
        fingerprint.fingerprint(TINY, root=tmp_path / "data")
    assert refused.value.faults[-1] == f"  cannot write into {tmp_path}/data/MNIST/raw (Not a directory)"
    assert f"  {tmp_path}/data/MNIST/raw/{PACKED[3]} (MD5 {TINY.files_md5[PACKED[3]]})" in refused.value.faults
    assert server.asked == []


# ---------------------------------------------------------------- configs


def write_config(folder: Path, *, text: str) -> Path:
    (folder / "data").mkdir()
    (folder / "data/mnist.yaml").write_text(text)
    return folder


def test_an_unknown_data_set_is_refused_with_the_valid_names() -> None:
    with pytest.raises(InputError, match=r"data: no such data set 'minst' \(did you mean 'mnist'\?\); valid: .*mnist"):
        catalog.read_config("minst", conf_dirs=paths.conf_dirs())


def test_a_config_with_an_unknown_or_missing_key_is_refused_with_the_file_and_the_key(tmp_path: Path) -> None:
    text = (paths.conf_dir() / "data/mnist.yaml").read_text().replace("num_train:", "num_trian:")
    with pytest.raises(InputError) as refused:
        catalog.read_config("mnist", conf_dirs=[write_config(tmp_path, text=text)])
    where = "conf/data/mnist.yaml: data"
    assert f"{where}.num_train: missing" in refused.value.faults
    assert any(fault.startswith(f"{where}.num_trian: no such key (did you mean") for fault in refused.value.faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", r"data/mnist\.yaml: expected a mapping, found NoneType"), ("a: [", r"mnist.yaml: not valid YAML \(")],
)
def test_an_empty_or_broken_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        catalog.read_config("mnist", conf_dirs=[write_config(tmp_path, text=text)])


def test_every_data_config_reads_without_hydra_under_its_own_name() -> None:
    names = {path.stem for path in (paths.conf_dir() / "data").glob("*.yaml")}
    assert names >= {"mnist", "digits"}
    for name in names:
        spec = catalog.read_config(name, conf_dirs=paths.conf_dirs())
        assert spec.name == name
        assert len(spec.pixel_mean) == len(spec.pixel_std) == spec.image_shape[0]


def test_idx_files_of_this_test_are_what_numpy_reads_back() -> None:
    """The tiny files are well formed, so that no test passes on a file that is refused anyway."""
    with gzip.open(io.BytesIO(TINY_FILES[PACKED[0]])) as packed:
        assert packed.read(16) == b"\0\0\x08\x03" + b"\0\0\0\x06" + b"\0\0\0\x1c" * 2
