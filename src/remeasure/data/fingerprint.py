"""The fingerprint of a data set, and whether its bytes are the official ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from remeasure.data import catalog, listing
from remeasure.data.catalog import SPLITS, streamed
from remeasure.data.files import SplitName, leak, shared_images
from remeasure.spec.base import InputError
from remeasure.spec.run import DataSpec


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set's fingerprint, `data_sha256`, and whether its bytes are the official ones."""

    data_sha256: str
    data_official: Literal["yes", "no", "unknown"]
    description: str


def fingerprint(spec: DataSpec, *, root: Path, trains: bool = False) -> Source:
    """SHA-256 over uint8 pixels NCHW and int64 little-endian labels, train then test, whatever the file layout.

    A tuning run (split=validation) never loads the test split: its fingerprint covers the training split alone.
    For photographs it covers the bytes of the test split's files (listing.fingerprint) or, if the run `trains` on
    them, of both splits' files. InputError, beside those of reading: a reader from outside has training images among
    its test images, which would else be found when a network is trained.
    """
    if streamed(spec):
        names: tuple[SplitName, ...] = SPLITS if trains else ("test",)
        found = [listing.fingerprint(catalog.load_listing(spec, name, root=root)) for name in names]
        joined = "\n".join(sha256 for sha256, _ in found)
        data_sha256 = hashlib.sha256(joined.encode()).hexdigest() if trains else joined
        return official(spec, data_sha256, verified=all(verified for _, verified in found))
    digest = hashlib.sha256()
    splits = [catalog.load_split(spec, name, root=root) for name in fingerprinted(spec)]
    for split in splits:
        add_split(digest, images=split.images, labels=split.labels)
    if ":" in spec.source and len(splits) == len(SPLITS):
        train, test = (split.images for split in splits)
        if fault := leak(len(shared_images(train, test)), num_scored=len(test), split="test", name=spec.name):
            raise InputError(fault)
    return official(spec, digest.hexdigest(), verified=all(split.verified for split in splits))


def departure(spec: DataSpec, data_sha256: str) -> str:
    """What to tell before a run on whole splits that are neither those of the data set's config nor a known copy."""
    expected = spec.official_sha256
    if expected is None or spec.split != "test" or streamed(spec):
        return ""
    if official(spec, data_sha256, verified=False).data_official != "unknown":
        return ""
    return (
        f"data {spec.name}: its images or labels are not those of conf/data/{spec.name}.yaml (fingerprint "
        f"{data_sha256[:12]}, there {expected[:12]}); what is measured on them is marked `data_official: unknown`."
        f"{catalog.if_meant(spec)}"
    )


def fingerprinted(spec: DataSpec) -> tuple[SplitName, ...]:
    """The splits that a fingerprint of arrays covers."""
    return SPLITS if spec.split == "test" else SPLITS[:1]


def add_split(digest: "hashlib._Hash", *, images: np.ndarray, labels: np.ndarray) -> None:
    """Add a split's images (N, C, H, W) uint8 and labels (N,) to a fingerprint."""
    digest.update(np.ascontiguousarray(images).data)  # the array's own memory, not a copy
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)


def official(spec: DataSpec, data_sha256: str, *, verified: bool) -> Source:
    """The Source: `yes`, official bytes; `no`, a known copy, which it describes; `unknown`, neither or not comparable.

    Bytes are official if their fingerprint is, or, where no official fingerprint is known, their files' checksums.
    """
    if data_sha256 == spec.official_sha256 or (verified and spec.official_sha256 is None):
        return Source(data_sha256=data_sha256, data_official="yes", description=spec.title)
    if data_sha256 in spec.known_copies:
        return Source(data_sha256=data_sha256, data_official="no", description=spec.known_copies[data_sha256])
    return Source(data_sha256=data_sha256, data_official="unknown", description=f"{spec.title} (unknown fingerprint)")
