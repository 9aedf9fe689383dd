"""The data sets and their official splits, without importing torch.

Two kinds: small images are loaded whole, as uint8 arrays (`load_split`); photographs are listed, and read from their
files on demand (`load_listing`). The data root has torchvision's layout. Official test splits are never mixed with
training data.

`source` in conf/data is one of READERS or FINDERS, "folder/PATH" (folder/), or "package.module:function", a reader of
arrays (`Reader`) from outside.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from remeasure.data import cifar10, digits, imagenet, mnist, shifted
from remeasure.data.files import Split, SplitName
from remeasure.data.folder import layouts
from remeasure.data.listing import Listing
from remeasure.spec.base import InputError
from remeasure.spec.plugin import imported, raised
from remeasure.spec.run import DataSpec
from remeasure.system.atomic import read_bytes
from remeasure.system.formats import decode_yaml
from remeasure.system.paths import conf_file, refuse_no_file
from remeasure.system.validation import convert, did_you_mean

SPLITS: tuple[SplitName, ...] = ("train", "test")


class Reader(Protocol):
    """Returns one official split in a fixed order, from files below the data root, whose MD5 the config may name.

    Where files are missing and it may not fetch them, it raises DataMissingError.
    """

    def __call__(self, split: SplitName, root: Path, files_md5: dict[str, str], fetch: bool, /) -> Split: ...


_EXPECTED = (
    "expected read(split, root, files_md5, fetch) -> remeasure.data.files.Split with images (N, C, H, W) uint8 and "
    "labels (N,) int64"
)
READERS: dict[str, Reader] = {"mnist": mnist.read, "digits": digits.read, "cifar10": cifar10.read}
CLASS_NAMES: dict[str, tuple[str, ...]] = {"cifar10": cifar10.CLASS_NAMES}  # by reader; others have numbers
Finder = Callable[[SplitName, Path, dict[str, str]], Listing]
FINDERS: dict[str, Finder] = {"imagenet": imagenet.find, "imagenet_sample": imagenet.find_sample, **shifted.FINDERS}


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """A name for each class: its number, where the data set has no names."""
    if names := own_class_names(spec):
        return names
    if spec.source in FINDERS:
        from timm.data import ImageNetInfo  # torch: seconds to import

        described: list[str] = ImageNetInfo().label_descriptions()
        if len(described) == spec.num_classes:
            return tuple(described)
    return tuple(map(str, range(spec.num_classes)))


def own_class_names(spec: DataSpec) -> tuple[str, ...]:
    """The names that the data set itself has, a class each; () where it has none."""
    return spec.class_names or CLASS_NAMES.get(spec.source, ())


def read_config(name: str, *, conf_dirs: Sequence[Path]) -> DataSpec:
    """data/<name>.yaml of the first of the folders that has it, read without Hydra.

    Raises InputError: no such data set, or a fault in its file.
    """
    path = refuse_no_file(conf_file(f"data/{name}.yaml", folders=conf_dirs))
    if not path.is_file():
        valid = sorted(
            {entry.stem for conf in conf_dirs for entry in (conf / "data").glob("*.yaml") if entry.is_file()}
        )
        raise InputError(f"data: no such data set {name!r}{did_you_mean(name, valid)}; valid: {', '.join(valid)}")
    return convert(DataSpec, decode_yaml(read_bytes(path), name=str(path)), where=f"conf/data/{name}.yaml: data")


def streamed(spec: DataSpec) -> bool:
    """Whether the data set is listed photographs (`load_listing`) and not arrays in memory (`load_split`)."""
    check_source(spec.source)
    return spec.source in FINDERS


def check_source(source: str) -> None:
    """Raise InputError if no reader has this name."""
    if source not in FINDERS and not source.startswith(layouts.PREFIX):
        _reader(source)


def _reader(source: str) -> Reader:
    if source in READERS:
        return READERS[source]
    if ":" not in source:
        valid = ", ".join((*READERS, *FINDERS))
        raise InputError(f"data.source: no such reader {source!r}; valid: {valid}, folder/PATH and module:function")
    reader: Reader = imported(source, where="data.source")
    return reader


def load_listing(spec: DataSpec, split: SplitName, *, root: Path) -> Listing:
    """The photographs of one official split, in order; no file is opened.

    Raises DataMissingError (which files are missing and where to put them) or InputError (a data set of arrays, or
    wrong files).
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
    """One official split as arrays; if it is missing, it is downloaded first, unless `fetch` is false.

    Raises DataMissingError (which files are missing and where to put them) or InputError (a data set of photographs,
    or a wrong file).
    """
    if streamed(spec):
        raise InputError(f"data {spec.name}: photographs are not read whole; valid: {', '.join(READERS)}")
    loaded = _read(spec, split, root=root, fetch=fetch)
    expected = (spec.num_train if split == "train" else spec.num_test, *spec.image_shape)
    if loaded.images.shape != expected:
        got = f"{loaded.images.shape}{if_meant(spec)}"
        raise InputError(f"data {spec.name}: expected {split} images {expected}, got {got}")
    if len(loaded.labels) != len(loaded.images):
        raise InputError(f"data {spec.name}: {len(loaded.images)} {split} images, but {len(loaded.labels)} labels")
    least, most = (int(end) for end in (loaded.labels.min(), loaded.labels.max()))
    if least < 0:
        raise InputError(f"data {spec.name}: expected {split} labels from 0 up, got {least}")
    if most >= spec.num_classes:
        remedy = f"; subtract {least}" if least else ""
        raise InputError(
            f"data {spec.name}: expected {split} labels 0 to {spec.num_classes - 1}, as data.num_classes is "
            f"{spec.num_classes}, got {least} to {most}{remedy}"
        )
    return loaded


def if_meant(spec: DataSpec) -> str:
    """What to do about files that have changed since `add-data` has read them."""
    if not spec.source.startswith(layouts.PREFIX):
        return ""
    return f"; if the new files are meant, remove conf/data/{spec.name}.yaml and add the data again"


def _read(spec: DataSpec, split: SplitName, *, root: Path, fetch: bool) -> Split:
    """What the reader returns. InputError: it is no Split of arrays, or a reader from outside raises."""
    if spec.source.startswith(layouts.PREFIX):
        return layouts.read(layouts.place(spec.source, root=root), split, image_shape=spec.image_shape)
    reader = _reader(spec.source)
    try:
        loaded: object = reader(split, root, spec.files_md5, fetch)
    except Exception as error:
        if isinstance(error, InputError) or spec.source in READERS:
            raise
        raise InputError(f"data.source: {spec.source}: {raised(error)}; {_EXPECTED}") from error
    if not isinstance(loaded, Split):
        raise InputError(f"data.source: {spec.source} returns {type(loaded).__name__}; {_EXPECTED}")
    for name, num_axes, dtype in (("images", 4, np.uint8), ("labels", 1, np.int64)):
        array = getattr(loaded, name)
        if not isinstance(array, np.ndarray) or array.ndim != num_axes or array.dtype != dtype:
            got = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"data.source: {spec.source} returns {name} {got}; {_EXPECTED}")
    return loaded


def test_labels(spec: DataSpec, *, root: Path) -> np.ndarray:
    """Labels of the official test split, shape (N,) int64. Raises DataMissingError; downloads nothing."""
    return test_split(spec, root=root)[0]


def test_split(spec: DataSpec, *, root: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels (N,) int64 of the official test split and its images (N, C, H, W) uint8, None for photographs.

    Raises DataMissingError; downloads nothing.
    """
    if streamed(spec):
        return load_listing(spec, "test", root=root).labels, None
    split = load_split(spec, "test", root=root, fetch=False)
    return split.labels, split.images
