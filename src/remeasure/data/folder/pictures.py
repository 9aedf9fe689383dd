"""Layouts of pictures: lists, tar shards, data sets of Hugging Face's `datasets`, and class folders."""

import csv
import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remeasure.spec.base import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SAVED_SPLITS = {"train": ("train",), "test": ("test", "validation")}  # of `datasets`


@dataclass(frozen=True)
class Picture:
    """`place`: where it is, for messages. `open`: gives what PIL opens, its path or its bytes."""

    place: str
    open: Callable[[], Path | io.BytesIO]


@dataclass(frozen=True)
class Pictures:
    """A split's pictures with their labels, in a fixed order, and the names of the classes, () where they have none."""

    listed: list[tuple[Picture, int]]
    classes: tuple[str, ...] = ()


def pictures(folder: Path, split: str) -> Pictures:
    """What the first layout that is there holds; nothing where there is none. InputError: a file that is wrong."""
    if (path := folder / f"{split}.csv").is_file():
        training = _of_list(train) if (train := folder / "train.csv").is_file() else []
        return _in_classes(_of_list(path), training=training, where=path)
    if shards := sorted(folder.glob(f"{split}*.tar")):
        return _in_classes(_of_shards(shards), training=_of_shards(sorted(folder.glob("train*.tar"))), where=folder)
    if saved := [path for name in SAVED_SPLITS[split] if (path := folder / name / "state.json").is_file()]:
        return _saved(saved[0].parent)
    return _in_classes(_of_folders(folder / split), training=_of_folders(folder / "train"), where=folder / split)


def _at(path: Path) -> Picture:
    return Picture(str(path), lambda: path)


Named = list[tuple[Picture, str | int]]  # pictures with the names of their classes, or with their labels


def _in_classes(found: Named, *, training: Named, where: Path) -> Pictures:
    """A class is the number of its name among those of the training pictures. InputError: one that is not."""
    names = sorted({name for _, name in training if isinstance(name, str)})
    if unknown := sorted({name for _, name in found if isinstance(name, str)} - set(names)):
        raise InputError(f"{where}: classes without training images: {', '.join(unknown)}")
    labels = {name: label for label, name in enumerate(names)}
    listed = [(picture, labels[name] if isinstance(name, str) else name) for picture, name in found]
    if names and any(isinstance(name, int) for _, name in (*found, *training)):
        raise InputError(f"{where}: some pictures have a number as their label, and others the name of a class")
    return Pictures(listed, tuple(names))


def _of_folders(folder: Path) -> Named:
    classes = sorted(each for each in folder.glob("*") if each.is_dir())
    files = [(path, each.name) for each in classes for path in sorted(each.glob("*"))]
    return [(_at(path), name) for path, name in files if path.suffix.lower() in SUFFIXES]


def _of_list(path: Path) -> Named:
    """As train.csv or test.csv has them: labels where all are numbers, else names of classes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not in UTF-8 ({error}); save it as UTF-8") from None
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    lines = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    lines.fieldnames = columns = [name.strip() for name in lines.fieldnames or ()]
    if not {"path", "label"} <= set(columns):
        raise InputError(f"{path}: expected the columns path and label, got {', '.join(columns)}")
    found = [(line["path"], (line["label"] or "").strip()) for line in lines]
    if empty := [number for number, (_, label) in enumerate(found, start=2) if not label]:
        raise InputError(f"{path}, line {empty[0]}: expected a label such as 3 or cat, got none")
    numbers = all(label.isdecimal() for _, label in found)
    return [(_at(path.parent / name), int(label) if numbers else label) for name, label in found]


def _of_shards(shards: Sequence[Path]) -> Named:
    return [entry for shard in shards for entry in _of_shard(shard)]


def _of_shard(shard: Path) -> Iterator[tuple[Picture, str | int]]:
    """Its pictures in their order. A label of the file's own wins over the name of its folder."""
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [member for member in archive if member.isreg()]
            content = {member.name: archive.extractfile(member) for member in members if member.name.endswith(".cls")}
            labels = {name.removesuffix(".cls"): file.read() for name, file in content.items() if file}
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: no tar archive that can be read, without compression ({error})") from None
    for member in members:
        path = PurePosixPath(member.name)
        if path.suffix.lower() not in SUFFIXES:
            continue
        label = labels.get(member.name.removesuffix(path.suffix), b"").strip()
        if not label.isdigit() and (label or not path.parent.name):
            said = f"got {label.decode(errors='replace')!r}" if label else "there is none"
            raise InputError(f"{shard}, {path}: expected a label in {path.stem}.cls, or a folder as its class; {said}")
        opened = functools.partial(_bytes_of, shard, member.offset_data, member.size)
        yield Picture(f"{shard}, {path}", opened), int(label) if label else path.parent.name


def _bytes_of(shard: Path, offset: int, size: int) -> io.BytesIO:
    with shard.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def _saved(folder: Path) -> Pictures:
    """A split that `datasets` has saved: Arrow streams, named by state.json, with features by dataset_info.json."""
    try:
        import pyarrow  # of the training wing, with MLflow
    except ImportError:
        raise InputError(f"{folder}: is read by pyarrow, which is missing: pip install 'remeasure[train]'") from None

    try:
        files = [folder / file["filename"] for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        features = json.loads((folder / "dataset_info.json").read_bytes())["features"]
        image, label = (_feature(features, kind, where=folder) for kind in ("Image", "ClassLabel"))
        tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files]
        table = pyarrow.concat_tables(tables).select([image, label])
        labels = table[label].to_pylist()
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise InputError(f"{folder}: no data set that `datasets` has saved ({type(error).__name__}: {error})") from None
    if None in labels or min(labels, default=0) < 0:
        raise InputError(f"{folder}: {label}: expected a label for each image")
    places = ((f"{folder}, row {row}", functools.partial(_cell, table[image], row)) for row in range(len(labels)))
    found = [(Picture(place, opened), number) for (place, opened), number in zip(places, labels, strict=True)]
    return Pictures(found, tuple(features[label]["names"]))


def _feature(features: Mapping[str, Any], kind: str, *, where: Path) -> str:
    names = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]
    if len(names) != 1:
        raise InputError(f"{where}: expected one feature {kind}, got {', '.join(names) or 'none'}")
    return names[0]


def _cell(column: Any, row: int) -> io.BytesIO:
    content = column[row].as_py()["bytes"]
    if content is None:
        raise OSError("its bytes are not in the data set, only its path")
    return io.BytesIO(content)
