"""Photographs for evaluating nets of ImageNet's 1,000 classes, beside its validation set; none are for training.

ImageNet-A and -R show 200 of the classes, and a net chooses among these, as their authors evaluate it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from remeasure.data.imagenet import from_folder, synsets
from remeasure.data.listing import Listing
from remeasure.spec.base import InputError


def _find(
    split: Literal["train", "test"],
    root: Path,
    files_md5: dict[str, str],  # noqa: ARG001
    *,
    folder: str,
    origin: str,
    classes: Callable[[], dict[str, int]] = synsets,
) -> Listing:
    """The photographs in `folder`. `origin`: the archive that has them. `classes`: the index of each subfolder."""
    if split == "train":
        raise InputError(f"{folder}: has no training images; it is for the evaluation of published weights")
    found = classes()
    among = tuple(found.values()) if len(found) < len(synsets()) else None
    return from_folder(root / folder, root=root, wanted=(f"  from {origin}",), classes=found, among=among)


def _numbers() -> dict[str, int]:
    return {str(number): number for number in range(len(synsets()))}


def _listed(name: str) -> dict[str, int]:
    """The synsets of a list that timm ships, with their index among the 1,000."""
    indices = synsets()
    return {synset: indices[synset] for synset in synsets(name)}


FINDERS = {
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
