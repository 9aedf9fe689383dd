"""The images of a run: training images, scored images, and the check that the files match the planned fingerprint."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from remeasure.data import catalog, fingerprint
from remeasure.data.files import Split
from remeasure.data.listing import Listing
from remeasure.runs.folder import Place
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.training import negative_controls
from remeasure.training.diagnostics import leaks
from remeasure.training.engines.base import engine_of
from remeasure.training.seeding import derive

_LOADED: dict[tuple[str, str], Split] = {}  # a worker process trains many seeds on the same images


@dataclass(frozen=True)
class Splits:
    """The images of one spec, as engines read them (engines.base.Data)."""

    spec: RunSpec
    place: Place = field(kw_only=True)

    def to_train(self, *, seed: int) -> tuple[Tensor, Tensor]:
        """The images that are not held back, altered by the fault if the run is a negative control."""
        images, labels = self._kept()
        control = self.spec.control
        if control == "none":
            return images, labels
        return negative_controls.applied(images, labels, control=control, seed=derive(seed, purpose="control", step=0))

    def to_validate(self) -> tuple[Tensor, Tensor] | None:
        return self._held_back() if self.place.curve and self.spec.data.num_validation else None

    def to_score(self) -> tuple[Tensor, Tensor]:
        """The official test split; when tuning, the validation images; the test split is then not read."""
        images, labels = _tensors(self._load("test")) if self.spec.data.split == "test" else self._held_back()
        self._refuse_changed_files()
        leaks.refuse_shared_images(self._kept()[0], images, spec=self.spec)
        return images, labels

    def listing(self, split: Literal["train", "test"]) -> Listing:
        return catalog.load_listing(self.spec.data, split, root=self.place.data_root)

    def official(self) -> str:
        """Whether they are the official data. InputError: photographs have changed since the run was planned."""
        spec, root = self.spec, self.place.data_root
        if catalog.streamed(spec.data):
            source = fingerprint.fingerprint(spec.data, root=root, trains=engine_of(spec).trains)
            if source.data_sha256 != spec.data_sha256:
                raise self._changed()
            return source.data_official
        return fingerprint.official(spec.data, spec.data_sha256, verified=self._load("train").verified).data_official

    def _kept(self) -> tuple[Tensor, Tensor]:
        """The official training split; when tuning, without the validation images at its end."""
        images, labels = _tensors(self._load("train"))
        num = len(images) - self.spec.data.num_validation
        return images[:num], labels[:num]

    def _held_back(self) -> tuple[Tensor, Tensor]:
        """The validation images and labels: the last ones of the official training split."""
        images, labels = _tensors(self._load("train"))
        return images[-self.spec.data.num_validation :], labels[-self.spec.data.num_validation :]

    def _load(self, split: Literal["train", "test"]) -> Split:
        """The split, read once a process."""
        key = (self.spec.data_sha256, split)
        if key not in _LOADED:
            _LOADED[key] = catalog.load_split(self.spec.data, split, root=self.place.data_root)
        return _LOADED[key]

    def _refuse_changed_files(self) -> None:
        """InputError: the data differ from the planned fingerprint. Those with a checksum were checked as read."""
        splits = [self._load(name) for name in fingerprint.fingerprinted(self.spec.data)]
        if all(split.verified for split in splits):
            return
        digest = hashlib.sha256()
        for split in splits:
            fingerprint.add_split(digest, images=split.images, labels=split.labels)
        if digest.hexdigest() != self.spec.data_sha256:
            raise self._changed()

    def _changed(self) -> InputError:
        data = self.spec.data
        if ":" in data.source:
            return InputError(
                f"data {data.name}: {data.source} returns other images or labels than when the run was planned; it "
                "must return the same each time (if its files have changed, start again)"
            )
        return InputError(f"data {data.name}: its files have changed since the run was planned; start again")


def _tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) int64, which share the split's memory."""
    return torch.from_numpy(split.images), torch.from_numpy(split.labels)
