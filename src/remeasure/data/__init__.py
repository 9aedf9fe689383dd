"""Data sets in their official order, verified and fingerprinted. NumPy only: torch comes later.

There are two kinds: small images are read whole, as uint8 arrays (`load_split`); photographs stay in their files, and
are listed (`load_listing`). The data root holds torchvision's own layout. Official test splits are never mixed with
training data.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from remeasure.convert import convert, did_you_mean
from remeasure.data import cifar10, digits, imagenet, mnist, photographs
from remeasure.data.files import DataMissingError, Split
from remeasure.data.photographs import Listing
from remeasure.encoding import decode_yaml
from remeasure.paths import read_file, refuse_no_file
from remeasure.spec import DataSpec, InputError

__all__ = [
    "DataMissingError",
    "Listing",
    "Source",
    "Split",
    "add_split",
    "fingerprint",
    "fingerprinted",
    "load_listing",
    "load_split",
    "official",
    "read_config",
    "streamed",
    "test_labels",
]

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")
Reader = Callable[[SplitName, Path, dict[str, str], bool], Split]
READERS: dict[str, Reader] = {"mnist": mnist.read, "digits": digits.read, "cifar10": cifar10.read}
Finder = Callable[[SplitName, Path, dict[str, str]], Listing]
FINDERS: dict[str, Finder] = {"imagenet": imagenet.find, "imagenet_sample": imagenet.find_sample}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set's fingerprint stands: `data_sha256`, and whether the bytes are the official ones."""

    data_sha256: str
    data_official: Literal["yes", "no", "unknown"]
    description: str


def read_config(name: str, *, conf_dir: Path) -> DataSpec:
    """conf/data/<name>.yaml without Hydra. Raises InputError: no such data set, or a fault in its file."""
    path = refuse_no_file(conf_dir / "data" / f"{name}.yaml")
    if not path.is_file():
        valid = sorted(entry.stem for entry in (conf_dir / "data").glob("*.yaml") if entry.is_file())
        raise InputError(f"data: no such data set {name!r}{did_you_mean(name, valid)}; valid: {', '.join(valid)}")
    try:
        values = decode_yaml(read_file(path), name=str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return convert(DataSpec, values, where=f"conf/data/{name}.yaml: data")


def streamed(spec: DataSpec) -> bool:
    """Whether it is of the kind that stays in its files (`load_listing`), and not read whole (`load_split`)."""
    check_source(spec.source)
    return spec.source in FINDERS


def check_source(source: object) -> None:
    """Raise InputError where there is no such reader."""
    if source not in (*READERS, *FINDERS):
        raise InputError(f"data.source: no such reader {source!r}; valid: {', '.join((*READERS, *FINDERS))}")


def load_listing(spec: DataSpec, split: SplitName, *, root: Path) -> Listing:
    """The photographs of one official split, in order, unopened.

    Raises DataMissingError (what is wanted and where it goes) or InputError (a set that is read whole, files that are
    not what they should be).
    """
    if not streamed(spec):
        raise InputError(f"data {spec.name}: has no photographs in files; valid: {', '.join(FINDERS)}")
    listing = FINDERS[spec.source](split, root, spec.files_md5)
    expected = spec.num_train if split == "train" else spec.num_test
    if len(listing) != expected:
        raise InputError(
            f"data {spec.name}: expected {expected:,} photographs in {listing.place}, got {len(listing):,}"
        )
    return listing


def load_split(spec: DataSpec, split: SplitName, *, root: Path, fetch: bool = True) -> Split:
    """One whole official split; where it is missing, it is downloaded first, unless `fetch` is false.

    Raises DataMissingError (what is wanted and where it goes) or InputError (photographs, which are not read whole, or
    a file is not what it should be).
    """
    if streamed(spec):
        raise InputError(f"data {spec.name}: photographs are not read whole; valid: {', '.join(READERS)}")
    loaded = READERS[spec.source](split, root, spec.files_md5, fetch)
    expected = (spec.num_train if split == "train" else spec.num_test, *spec.image_shape)
    if loaded.images.shape != expected:
        raise InputError(f"data {spec.name}: expected {split} images {expected}, got {loaded.images.shape}")
    if (most := int(loaded.labels.max(initial=0))) >= spec.num_classes:
        raise InputError(f"data.num_classes: {spec.num_classes}, but {spec.name} has {most + 1} classes or more")
    return loaded


def test_labels(spec: DataSpec, *, root: Path) -> np.ndarray:
    """Labels of the official test split, shape (N,) int64. Raises DataMissingError: nothing is downloaded for them."""
    if streamed(spec):
        return load_listing(spec, "test", root=root).labels
    return load_split(spec, "test", root=root, fetch=False).labels


def fingerprint(spec: DataSpec, *, root: Path, trains: bool = False) -> Source:
    """SHA-256 over uint8 pixels NCHW and int64 little-endian labels, train then test, whatever the file layout.

    A tuning run (split=validation) never loads the test split: its fingerprint is over the training split alone.
    Of photographs it is over the bytes of the test split's files (photographs.fingerprint), and where a run trains on
    them, of both splits'.
    """
    if streamed(spec):
        names: tuple[SplitName, ...] = SPLITS if trains else ("test",)
        found = [photographs.fingerprint(load_listing(spec, name, root=root)) for name in names]
        joined = "\n".join(sha256 for sha256, _ in found)
        data_sha256 = hashlib.sha256(joined.encode()).hexdigest() if trains else joined
        return official(spec, data_sha256, verified=all(verified for _, verified in found))
    digest, verified = hashlib.sha256(), True
    for name in fingerprinted(spec):
        split = load_split(spec, name, root=root)
        verified = verified and split.verified
        add_split(digest, images=split.images, labels=split.labels)
    return official(spec, digest.hexdigest(), verified=verified)


def fingerprinted(spec: DataSpec) -> tuple[SplitName, ...]:
    """The splits that a fingerprint is over."""
    return SPLITS if spec.split == "test" else SPLITS[:1]


def add_split(digest: "hashlib._Hash", *, images: np.ndarray, labels: np.ndarray) -> None:
    """Add a split's images (N, C, H, W) uint8 and labels (N,) to a fingerprint."""
    digest.update(np.ascontiguousarray(images).data)  # as it lies in memory: no second copy
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)


def official(spec: DataSpec, data_sha256: str, *, verified: bool) -> Source:
    """`yes`: the official bytes; `no`: a known copy, with its description; `unknown`: neither, or not comparable.

    Official are bytes with the official fingerprint, and where that is not known, files with the official checksums.
    """
    if data_sha256 == spec.official_sha256 or (verified and spec.official_sha256 is None):
        return Source(data_sha256=data_sha256, data_official="yes", description=spec.title)
    if data_sha256 in spec.known_copies:
        return Source(data_sha256=data_sha256, data_official="no", description=spec.known_copies[data_sha256])
    return Source(data_sha256=data_sha256, data_official="unknown", description=f"{spec.title} (unknown fingerprint)")
