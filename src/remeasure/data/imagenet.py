"""ImageNet (Russakovsky et al. 2015, ILSVRC 2012) under the data root: `imagenet/val/<synset>/*.JPEG`, or in `imagenet`
the official archive of the validation photographs and its devkit. Nothing is unpacked to disk.

A class's index is the rank of its synset among the 1,000 in sorted order. ImageNet is not downloaded, since
image-net.org requires an account.
"""

import importlib.util
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from remeasure.data.files import SplitName, verified_members
from remeasure.data.listing import Listing
from remeasure.spec.base import DataMissingError, InputError
from remeasure.system.paths import refuse_no_file

ARCHIVE, DEVKIT = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
FOLDERS = {"train": "train", "test": "val"}
SUFFIXES = (".jpeg", ".jpg", ".png")  # of the files that both timm and torchvision read as photographs


def find(split: SplitName, root: Path, files_md5: dict[str, str]) -> Listing:
    """The photographs of a split; the test split is the official validation set."""
    home = root / "imagenet"
    folder = home / FOLDERS[split]
    # Path.exists() raises where the folder may not be read
    if split == "test" and not os.access(folder, os.F_OK) and os.access(home / ARCHIVE, os.F_OK):
        return _from_archive(home, files_md5=files_md5)
    return from_folder(folder, root=root, wanted=_wanted(home, files_md5=files_md5) if split == "test" else ())


def find_sample(split: SplitName, root: Path, files_md5: dict[str, str]) -> Listing:  # noqa: ARG001
    """The photographs in `imagenet-sample/val/<synset>/*.JPEG`."""
    return from_folder(root / "imagenet-sample" / FOLDERS[split], root=root)


def synsets(name: str = "imagenet_synsets.txt") -> dict[str, int]:
    """Synset to class index: the list of 1,000 that timm ships, which is sorted, or of another of its lists."""
    names = shipped(name).read_text().split()
    assert names == sorted(set(names)), f"{name} is not sorted"
    return {name: index for index, name in enumerate(names)}


def shipped(name: str) -> Path:
    """A file of classes or labels that timm ships. DataMissingError: timm is not installed."""
    package = importlib.util.find_spec("timm")  # not imported: that takes 5 s
    if package is None or not package.submodule_search_locations:
        raise DataMissingError("data: the list of ImageNet's classes comes with timm: pip install 'remeasure[train]'")
    return Path(package.submodule_search_locations[0]) / "data/_info" / name


def _wanted(home: Path, *, files_md5: Mapping[str, str]) -> tuple[str, ...]:
    archives = " and ".join(f"{home / name} (MD5 {files_md5[name]})" for name in (ARCHIVE, DEVKIT))
    return (f"  or {archives}, as they are", "  (ImageNet is not downloaded: image-net.org asks for an account)")


def from_folder(
    folder: Path,
    *,
    root: Path,
    wanted: tuple[str, ...] = (),
    classes: Mapping[str, int] | None = None,
    among: tuple[int, ...] | None = None,
) -> Listing:
    """The photographs in <folder>/<class>/, by class and then by name. `classes`: the class index of each subfolder
    that there may be (by default of the 1,000 synsets). `wanted`: lines that say what else would do. `among`: as in
    Listing.

    DataMissingError: no folder or photographs. InputError: a folder of no class.
    """
    classes = synsets() if classes is None else classes
    folders, names = list[str](), list[str]()
    try:
        folders = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        )
        for name in sorted(folders, key=lambda name: classes.get(name, -1)):
            names += sorted(f"{name}/{entry.name}" for entry in os.scandir(folder / name) if _is_photograph(entry))
    except FileNotFoundError:
        names.clear()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    if unknown := [name for name in folders if name not in classes]:
        raise InputError(f"{folder}: not among ImageNet's {len(classes):,} classes: {', '.join(unknown[:10])}")
    if not names:
        each = "<synset>" if "0" not in classes else "<0 to 999>"
        raise DataMissingError(
            "data: these photographs are missing; put them there, and start again:",
            f"  {folder}/{each}/*.JPEG",
            *wanted,
            f"  (the data root is {root}; the environment variable REMEASURE_DATA can name another one)",
        )
    labels = np.array([classes[name.partition("/")[0]] for name in names], np.int64)
    return Listing(names=tuple(names), labels=labels, place=folder, spans=None, md5=None, among=among)


def _is_photograph(entry: "os.DirEntry[str]") -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def _from_archive(home: Path, *, files_md5: Mapping[str, str]) -> Listing:
    """The archive's photographs, named and sorted as if unpacked into folders by the devkit's ground truth."""
    if unlisted := [name for name in (ARCHIVE, DEVKIT) if name not in files_md5]:
        raise InputError(f"data.files_md5: lacks {', '.join(unlisted)}")
    if not os.access(home / DEVKIT, os.F_OK):
        raise DataMissingError(
            f"data: {home / ARCHIVE} is there, but not its labels; put the file there, and start again:",
            f"  {home / DEVKIT} (MD5 {files_md5[DEVKIT]})",
        )
    refuse_no_file(home / ARCHIVE)
    classes, truth = synsets(), _ground_truth(home / DEVKIT, md5=files_md5[DEVKIT])
    try:
        with tarfile.open(home / ARCHIVE, mode="r:") as archive:
            files = [entry for entry in archive if entry.isreg() and not entry.issparse()]
            members = sorted((Path(entry.name).name, entry.offset_data, entry.size) for entry in files)
    except Exception as error:  # its checksum takes a minute and is verified later: its headers may hold anything
        raise InputError(f"{home / ARCHIVE}: not a whole tar archive ({error}); put the official one there") from None
    if len(members) != len(truth):
        raise InputError(f"{home / ARCHIVE}: expected {len(truth):,} photographs, got {len(members):,}")
    found = sorted((f"{synset}/{name}", span) for synset, (name, *span) in zip(truth, members, strict=True))
    return Listing(
        names=tuple(name for name, _ in found),
        labels=np.array([classes[name.partition("/")[0]] for name, _ in found], np.int64),
        place=home / ARCHIVE,
        spans=np.array([span for _, span in found], np.int64),
        md5=files_md5[ARCHIVE],
    )


def _ground_truth(devkit: Path, *, md5: str) -> list[str]:
    """The synset of each validation photograph, in the order of their names."""
    from scipy.io import loadmat

    contents = verified_members(devkit, (META, TRUTH), md5=md5)
    meta = loadmat(io.BytesIO(contents[META]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]  # a path or a file
    synset = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in meta if entry["num_children"] == 0}
    return [synset[int(number)] for number in contents[TRUTH].split()]
