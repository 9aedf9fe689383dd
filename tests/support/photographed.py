"""Photographs made by Pillow, laid out as ImageNet is, for tests."""

import hashlib
import io
import multiprocessing
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from remeasure.data import catalog
from remeasure.spec.run import DataSpec
from remeasure.system import paths

SYNSETS = ("n01440764", "n01443537", "n02102040", "n15075141")  # classes 0, 1, 217 and 999 of the 1,000
LABELS = {"n01440764": 0, "n01443537": 1, "n02102040": 217, "n15075141": 999}
# The synset of each photograph by the order of names, as the official ground truth has it: in no order of its own.
TRUTH = ("n02102040", "n01440764", "n15075141", "n01440764", "n01443537", "n02102040", "n15075141")


def jpeg(seed: int, *, size: tuple[int, int] = (70, 50)) -> bytes:
    """A coloured JPEG of smooth random blots, `size` (width, height) pixels."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs() -> dict[str, bytes]:
    """The official names of seven photographs, and their bytes."""
    return {f"ILSVRC2012_val_{index + 1:08d}.JPEG": jpeg(index) for index in range(len(TRUTH))}


def make_folder(root: Path) -> Path:
    """imagenet/val/<synset>/*.JPEG under `root`."""
    for (name, content), synset in zip(photographs().items(), TRUTH, strict=True):
        path = root / "imagenet/val" / synset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def make_archive(root: Path) -> Path:
    """The two archives under `root`/imagenet, as the official ones are built."""
    home = root / "imagenet"
    home.mkdir(parents=True)
    with tarfile.open(home / "ILSVRC2012_img_val.tar", "w") as archive:
        for name, content in reversed(photographs().items()):  # the order in the archive must not matter
            add(archive, name=name, content=content)
    with tarfile.open(home / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, content in (("meta.mat", _meta()), ("ILSVRC2012_validation_ground_truth.txt", _truth())):
            add(archive, name=f"ILSVRC2012_devkit_t12/data/{name}", content=content)
    return root


def add(archive: tarfile.TarFile, *, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _meta() -> bytes:
    """The devkit's numbering, which is not that of the sorted synsets, with one synset above the others."""
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = [(number, synset, f"a, b{number}", "", 0) for number, synset in _NUMBERS.items()]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array([*rows, (1001, "n00001740", "entity", "", 2)], fields)[:, None]})
    return buffer.getvalue()


_NUMBERS = dict(enumerate(("n15075141", "n01443537", "n02102040", "n01440764"), start=1))


def _truth() -> bytes:
    numbers = {synset: number for number, synset in _NUMBERS.items()}
    return "".join(f"{numbers[synset]}\n" for synset in TRUTH).encode()


def imagenet(root: Path) -> DataSpec:
    """conf/data/imagenet.yaml with the seven photographs in place of 50,000, and the checksums of what is there."""
    spec = catalog.read_config("imagenet", conf_dirs=paths.conf_dirs())
    md5 = {
        name: hashlib.md5(path.read_bytes()).hexdigest() if (path := root / "imagenet" / name).exists() else known
        for name, known in spec.files_md5.items()
    }
    return replace(spec, num_test=len(TRUTH), files_md5=md5)


@contextmanager
def killed_loader() -> Iterator[None]:
    """During the block, one of the loader processes is killed soon after it has started."""

    others = set(multiprocessing.active_children())  # left by an earlier test of this process

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (loaders := set(multiprocessing.active_children()) - others) and time.monotonic() < deadline:
            time.sleep(0.02)
        loaders.pop().kill()

    killing = threading.Thread(target=kill)
    killing.start()
    yield
    killing.join()
