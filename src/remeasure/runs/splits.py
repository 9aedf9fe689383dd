"""The images of a run: training images, scored images, and the check that the files match the planned fingerprint."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from remeasure.data import catalog, fingerprint
from remeasure.data.listing import Listing
from remeasure.runs.folder import Place
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.training import negative_controls
from remeasure.training.diagnostics import leaks
from remeasure.training.engines.base import engine_of
from remeasure.training.seeding import derive


@dataclass(frozen=True)
class Splits:
    """The images of one spec, as engines read them (engines.base.Data)."""

    spec: RunSpec
    place: Place = field(kw_only=True)

    def to_train(self, *, seed: int) -> tuple[Tensor, Tensor]:
        return trained_on(self.spec, seed=seed, place=self.place)

    def to_validate(self) -> tuple[Tensor, Tensor] | None:
        return held_back(self.spec, place=self.place) if self.place.curve and self.spec.data.num_validation else None

    def to_score(self) -> tuple[Tensor, Tensor]:
        images, labels = scored_on(self.spec, place=self.place)
        refuse_changed_files(self.spec, place=self.place)
        leaks.refuse_shared_images(kept_to_train(self.spec, place=self.place)[0], images, spec=self.spec)
        return images, labels

    def listing(self, split: Literal["train", "test"]) -> Listing:
        return catalog.load_listing(self.spec.data, split, root=self.place.data_root)

    def official(self) -> str:
        """Whether they are the official data. InputError: photographs have changed since the run was planned."""
        spec, root = self.spec, self.place.data_root
        if catalog.streamed(spec.data):
            source = fingerprint.fingerprint(spec.data, root=root, trains=engine_of(spec).trains)
            if source.data_sha256 != spec.data_sha256:
                raise _changed(spec)
            return source.data_official
        verified = _load(spec, "train", place=self.place).verified
        return fingerprint.official(spec.data, spec.data_sha256, verified=verified).data_official


def refuse_changed_files(spec: RunSpec, *, place: Place) -> None:
    """Raise InputError if the data differ from the planned fingerprint; those with a checksum were checked as read."""
    splits = [_load(spec, name, place=place) for name in fingerprint.fingerprinted(spec.data)]
    if all(split.verified for split in splits):
        return
    digest = hashlib.sha256()
    for split in splits:
        fingerprint.add_split(digest, images=split.images.numpy(), labels=split.labels.numpy())
    if digest.hexdigest() != spec.data_sha256:
        raise _changed(spec)


def _changed(spec: RunSpec) -> InputError:
    return InputError(f"data {spec.data.name}: its files have changed since the run was planned; start again")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A whole official split: `images` (N, C, H, W) uint8, `labels` (N,) int64; `verified` as in files.Split."""

    images: Tensor
    labels: Tensor
    verified: bool


_LOADED: dict[tuple[str, str], Loaded] = {}  # a worker process trains many seeds on the same images


def _load(spec: RunSpec, split: Literal["train", "test"], *, place: Place) -> Loaded:
    """The split, read once a process."""
    key = (spec.data_sha256, split)
    if key not in _LOADED:
        read = catalog.load_split(spec.data, split, root=place.data_root)
        _LOADED[key] = Loaded(
            images=torch.from_numpy(read.images), labels=torch.from_numpy(read.labels), verified=read.verified
        )
    return _LOADED[key]


def trained_on(spec: RunSpec, *, seed: int, place: Place) -> tuple[Tensor, Tensor]:
    """Training images and labels of a seed: `kept_to_train`, altered by the fault if the run is a negative control."""
    images, labels = kept_to_train(spec, place=place)
    if spec.control == "none":
        return images, labels
    return negative_controls.applied(images, labels, control=spec.control, seed=derive(seed, purpose="control", step=0))


def kept_to_train(spec: RunSpec, *, place: Place) -> tuple[Tensor, Tensor]:
    """The official training split; when tuning, without the validation images at its end."""
    loaded = _load(spec, "train", place=place)
    num = len(loaded.images) - spec.data.num_validation
    return loaded.images[:num], loaded.labels[:num]


def scored_on(spec: RunSpec, *, place: Place) -> tuple[Tensor, Tensor]:
    """The official test split; when tuning, the validation images; the test split is then not read."""
    if spec.data.split == "test":
        loaded = _load(spec, "test", place=place)
        return loaded.images, loaded.labels
    return held_back(spec, place=place)


def held_back(spec: RunSpec, *, place: Place) -> tuple[Tensor, Tensor]:
    """The validation images and labels: the last ones of the official training split."""
    loaded = _load(spec, "train", place=place)
    return loaded.images[-spec.data.num_validation :], loaded.labels[-spec.data.num_validation :]
