"""Photographs, or labels of photographs, for evaluating nets of ImageNet's 1,000 classes beside its validation set.

ImageNet-A and -R show 200 of the classes, and a net chooses among these, as their authors evaluate it. ReaL (Beyer et
al. 2020, "Are we done with ImageNet?") gives most of the validation photographs one or more labels, and is not defined
for the others: a net is right where it names one of them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from remeasure.data import imagenet
from remeasure.data.files import SplitName
from remeasure.data.imagenet import from_folder, shipped, synsets
from remeasure.data.listing import Listing
from remeasure.spec.base import InputError


def _find(
    split: SplitName,
    root: Path,
    files_md5: dict[str, str],  # noqa: ARG001
    *,
    folder: str,
    origin: str,
    classes: Callable[[], dict[str, int]] = synsets,
) -> Listing:
    """The photographs in `folder`. `origin`: the archive that has them. `classes`: the index of each subfolder."""
    _refuse_training(folder, split=split)
    found = classes()
    among = tuple(found.values()) if len(found) < len(synsets()) else None
    return from_folder(root / folder, root=root, wanted=(f"  from {origin}",), classes=found, among=among)


def _refuse_training(name: str, *, split: str) -> None:
    if split == "train":
        raise InputError(f"{name}: has no training images; it is for the evaluation of published weights")


def _find_real(split: SplitName, root: Path, files_md5: dict[str, str]) -> Listing:
    """The validation photographs that ReaL labels. `labels`: the official one where that is among them, else the first.

    InputError: as `imagenet.find`, or a photograph whose name has not its official number.
    """
    _refuse_training("imagenet_real", split=split)
    listing = imagenet.find("test", root, files_md5)
    right: list[list[int]] = json.loads(shipped("imagenet_real_labels.json").read_text())
    numbers = [_number(name, most=len(right)) for name in listing.names]
    if unnumbered := [name for name, number in zip(listing.names, numbers, strict=True) if number is None]:
        raise InputError(
            f"{listing.place}: ReaL goes by the photographs' official names, such as ILSVRC2012_val_00000001.JPEG; "
            f"{len(unnumbered):,} have none, such as {unnumbered[0]}"
        )
    found = [(index, right[number - 1]) for index, number in enumerate(numbers) if number and right[number - 1]]
    kept = [index for index, _ in found]
    labels = [int(listing.labels[index]) if listing.labels[index] in each else each[0] for index, each in found]
    most = max((len(each) for _, each in found), default=1)
    padded = [each + [label] * (most - len(each)) for (_, each), label in zip(found, labels, strict=True)]
    return replace(
        listing,
        names=tuple(listing.names[index] for index in kept),
        labels=np.array(labels, np.int64),
        spans=None if listing.spans is None else listing.spans[kept],
        also=np.array(padded, np.int64).reshape(len(kept), most),
    )


def _number(name: str, *, most: int) -> int | None:
    """The official number of a validation photograph, from 1 to `most`, by its file's name."""
    found = re.search(r"ILSVRC2012_val_(\d{8})\.", name)
    return int(found[1]) if found and 1 <= int(found[1]) <= most else None


def _numbers() -> dict[str, int]:
    return {str(number): number for number in range(len(synsets()))}


def _listed(name: str) -> dict[str, int]:
    """The synsets of a list that timm ships, with their index among the 1,000."""
    indices = synsets()
    return {synset: indices[synset] for synset in synsets(name)}


FINDERS: dict[str, Callable[[SplitName, Path, dict[str, str]], Listing]] = {
    "imagenet_real": _find_real,
    "imagenet_v2": partial(
        _find,
        folder="imagenetv2-matched-frequency-format-val",
        origin="imagenetv2-matched-frequency.tar.gz of github.com/modestyachts/ImageNetV2",
        classes=_numbers,
    ),
    "imagenet_sketch": partial(
        _find,
        folder="imagenet-sketch",
        origin="ImageNet-Sketch.zip of github.com/HaohanWang/ImageNet-Sketch, its folder `sketch` under this name",
    ),
    "imagenet_a": partial(
        _find,
        folder="imagenet-a",
        origin="imagenet-a.tar of github.com/hendrycks/natural-adv-examples",
        classes=partial(_listed, "imagenet_a_synsets.txt"),
    ),
    "imagenet_r": partial(
        _find,
        folder="imagenet-r",
        origin="imagenet-r.tar of github.com/hendrycks/imagenet-r",
        classes=partial(_listed, "imagenet_r_synsets.txt"),
    ),
}
