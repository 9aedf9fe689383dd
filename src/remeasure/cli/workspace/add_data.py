"""`remeasure add-data`: conf/data/NAME.yaml for a data set in a folder, with its sizes, statistics and fingerprint."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from remeasure.cli.options import Parser
from remeasure.data import fingerprint
from remeasure.data.catalog import SPLITS
from remeasure.data.files import MOST_SHARED, Split, shared_images
from remeasure.data.folder import layouts
from remeasure.spec.base import CONFIG_NAME, ROW_NAME, InputError
from remeasure.spec.run import DataSpec
from remeasure.system import paths
from remeasure.system.atomic import write_atomic

_HEAD = """\
# {title}: {num_train:,} training and {num_test:,} test images. Written by `remeasure add-data`. Plain values only.
# The fingerprint is of the pixels and labels as they were added: other data under this name are told by it.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the file; returns the exit status. InputError: the data are faulty, or the file is there already."""
    given = _parser().parse_args(arguments)
    if not (CONFIG_NAME.fullmatch(given.name) and ROW_NAME.fullmatch(given.name)):
        expected = "up to 100 of A-Z, a-z, 0-9, '_' and '.', parted by single '-'"
        raise InputError(f"NAME: expected {expected}, as rows of the ledger have it in their names, got {given.name!r}")
    path = paths.project_conf_dir() / "data" / f"{given.name}.yaml"
    if path.exists():
        raise InputError(f"{path}: is there already; remove it, or choose another name")
    root = paths.data_root()
    place = layouts.place(f"{layouts.PREFIX}{given.path or given.name}", root=root)
    shape = layouts.shape(place, pixels=given.pixels)
    train, test = (layouts.read(place, split, image_shape=shape) for split in SPLITS)
    if test.images.shape[1:] != train.images.shape[1:]:
        got = f"{train.images.shape} and {test.images.shape}"
        raise InputError(f"{place}: expected training and test images (N, C, H, W) of one size, got {got}")
    num_classes = _num_classes(train, test=test, where=place)
    shared = shared_images(train.images, test.images)
    if shared and not given.accept_duplicates:
        first, trained = next(iter(shared.items()))
        raise InputError(
            f"{place}: {len(shared):,} of the {len(test.images):,} test images are among the training images, such as "
            f"test image {first}, which is training image {trained}; --accept-duplicates adds it all the same"
        )
    spec = DataSpec(
        name=given.name,
        source=f"{layouts.PREFIX}{place.relative_to(root)}",
        title=given.title or given.name,
        num_classes=num_classes,
        image_shape=shape,
        num_train=len(train.images),
        num_test=len(test.images),
        **statistics(train.images),
        num_validation=0,
        split="test",
        files_md5={},
        official_sha256=_fingerprint(train, test),
        known_copies={},
        class_names=layouts.class_names(place),
    )
    content = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
    if not spec.class_names:
        del content["class_names"]
    path.parent.mkdir(exist_ok=True)
    text = _HEAD.format(title=spec.title, num_train=spec.num_train, num_test=spec.num_test)
    write_atomic(path, (text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode())
    sizes = f"{spec.num_train:,} training and {spec.num_test:,} test images {shape}, {num_classes} classes"
    use = f"`{paths.command('train')} model=mlp2 data={given.name} recipe=article` trains on it"
    if len(shared) > MOST_SHARED * len(test.images):
        use = f"{len(shared):,} of the test images are among the training images: trained networks are not scored on it"
    print(f"{path}: {sizes}; {use}")
    if num_grey := int((train.images == train.images[:, :1]).all(axis=(1, 2, 3)).sum()) * (shape[0] > 1):
        print(f"{num_grey:,} of the training images are grey; all are read with {shape[0]} channels")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="remeasure add-data", description=__doc__, epilog=f"A folder holds {layouts.LAYOUTS}.")
    parser.add_argument("name", help="what it is called: data=NAME")
    path_help = "its folder below the data root, which is REMEASURE_DATA or data/ (default: NAME)"
    parser.add_argument("path", nargs="?", help=path_help)
    parser.add_argument("--title", help="in words, for the report (default: NAME)")
    parser.add_argument("--pixels", type=_pixels, help="height and width of pictures that have several sizes")
    duplicates_help = "also where test images are among the training images; above 1 %%, no training is scored"
    parser.add_argument("--accept-duplicates", action="store_true", help=duplicates_help)
    return parser


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of pixels such as 64, got {text!r}")
    return int(text)


def statistics(images: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation, channel by channel, of images (N, C, H, W) uint8 as values in [0, 1]."""
    counts = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])]
    values, mean, std = np.arange(256) / 255, list[float](), list[float]()
    for count in counts:
        mean.append(float(values @ count / count.sum()))
        std.append(float(np.sqrt((values - mean[-1]) ** 2 @ count / count.sum())))
    if 0.0 in std:
        raise InputError(f"the training images have a single value in channel {std.index(0.0)}")
    return {"pixel_mean": tuple(mean), "pixel_std": tuple(std)}


def _num_classes(train: Split, *, test: Split, where: Path) -> int:
    """InputError: a single class or one without training images, or labels that do not begin at 0."""
    present: set[int] = set(train.labels.tolist())
    least, num = min(present), max(present) + 1
    if least:
        remedy = f"; subtract {least}" if least > 0 else ""
        raise InputError(f"{where}: expected training labels from 0, got {least} to {num - 1}{remedy}")
    if lacking := sorted(set(range(num)) - present)[:5]:
        raise InputError(f"{where}: expected training labels 0, 1, 2, …, each with images; none has {lacking}")
    if num == 1:
        raise InputError(f"{where}: expected 2 classes or more; all training labels are 0")
    if unknown := sorted(set(test.labels.tolist()) - present):
        raise InputError(f"{where}: test labels without training images: {', '.join(map(str, unknown))}")
    return num


def _fingerprint(train: Split, test: Split) -> str:
    digest = hashlib.sha256()
    for split in (train, test):
        fingerprint.add_split(digest, images=split.images, labels=split.labels)
    return digest.hexdigest()
