"""A small data set in each layout that `source: folder/PATH` reads."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
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


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture(array).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_shards(place: Path) -> None:
    """Two shards a split, a label beside each picture, as webdataset has them."""
    for split in IMAGES:
        for shard, part in enumerate((slice(0, 3), slice(3, None))):
            members = dict[str, bytes]()
            for number, (image, label) in enumerate(zip(IMAGES[split][part], LABELS[split][part], strict=True)):
                members |= {f"{number:04}.cls": str(label).encode(), f"{number:04}.png": png(image)}
            write_tar(place / f"{split}-{shard:06}.tar", members)


def write_class_shards(place: Path) -> None:
    """A shard a split, with a folder a class, as timm reads them."""
    for split in IMAGES:
        pairs = zip(IMAGES[split], LABELS[split], strict=True)
        members = {f"{CLASSES[label]}/{number}.png": png(image) for number, (image, label) in enumerate(pairs)}
        write_tar(place / f"{split}.tar", members)


def write_saved(place: Path, *, test: str = "validation") -> None:
    """As save_to_disk of `datasets` 5 writes a DatasetDict; two files a split."""
    features = {"image": {"_type": "Image"}, "label": {"names": [*CLASSES], "_type": "ClassLabel"}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split, name in (("train", "train"), ("test", test)):
        folder, files = place / name, list[dict[str, str]]()
        folder.mkdir()
        for number, part in enumerate((slice(0, 3), slice(3, None))):
            images = [{"bytes": png(image), "path": None} for image in IMAGES[split][part]]
            table = pa.table({"image": pa.array(images, kind), "label": pa.array(LABELS[split][part], pa.int64())})
            files.append({"filename": f"data-{number:05}-of-00002.arrow"})
            with pa.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as stream:
                stream.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": name}))
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (place / "dataset_dict.json").write_text(json.dumps({"splits": ["train", test]}))
