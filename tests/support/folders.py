"""A small data set in each layout that `source: folder/PATH` reads."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
SHAPE = (3, 6, 5)
IMAGES = {
    "train": RNG.integers(256, size=(6, *SHAPE), dtype=np.uint8),
    "test": RNG.integers(256, size=(4, *SHAPE), dtype=np.uint8),
}
LABELS = {"train": np.array([0, 0, 1, 1, 2, 2]), "test": np.array([0, 1, 1, 2])}
GREY = {name: images[:, 0] for name, images in IMAGES.items()}
CLASSES = ("ant", "bee", "cat")


def idx(array: np.ndarray) -> bytes:
    """LeCun's format of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()


def write_idx(place: Path, *, end: str = "", test: str = "t10k") -> None:
    for split, stem in (("train", "train"), ("test", test)):
        for kind, rank, array in (("images", 3, GREY[split]), ("labels", 1, LABELS[split])):
            content = idx(array)
            path = place / f"{stem}-{kind}-idx{rank}-ubyte{end}"
            path.write_bytes(gzip.compress(content) if end else content)


def write_packed_idx(place: Path) -> None:
    write_idx(place, end=".gz", test="test")


def write_npz(place: Path) -> None:
    for split in ("train", "test"):
        np.savez(place / f"{split}.npz", images=IMAGES[split].transpose(0, 2, 3, 1), labels=LABELS[split][:, None])


def write_keras(place: Path) -> None:
    arrays = {f"x_{split}": IMAGES[split] for split in IMAGES} | {f"y_{split}": LABELS[split] for split in IMAGES}
    np.savez(place / "data.npz", **arrays)


def picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array.transpose(1, 2, 0))


def write_classes(place: Path) -> None:
    for split in IMAGES:
        for number, (image, label) in enumerate(zip(IMAGES[split], LABELS[split], strict=True)):
            path = place / split / CLASSES[label] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(image).save(path)
        (place / split / "ant/notes.txt").write_text("no picture")


def write_lists(place: Path) -> None:
    for split in IMAGES:
        lines = ["path,label"]
        for number, (image, label) in enumerate(zip(IMAGES[split], LABELS[split], strict=True)):
            (place / "all").mkdir(exist_ok=True)
            picture(image).save(place / f"all/{split}{number}.png")
            lines.append(f"all/{split}{number}.png,{label}")
        (place / f"{split}.csv").write_text("\n".join(lines) + "\n")
