"""`source: folder/PATH`: each layout gives the same arrays, and whatever is wrong in it is named."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.folders import (
    CLASSES,
    GREY,
    IMAGES,
    LABELS,
    SHAPE,
    picture,
    png,
    write_class_shards,
    write_classes,
    write_idx,
    write_keras,
    write_lists,
    write_npz,
    write_packed_idx,
    write_saved,
    write_shards,
    write_tar,
)

from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.data.folder import layouts as folder
from remeasure.spec.base import DataMissingError, InputError
from remeasure.system import paths


def read(place: Path, split: catalog.SplitName) -> Split:
    return folder.read(place, split, image_shape=folder.shape(place, pixels=None))


def read_both(place: Path) -> list[Split]:
    return [read(place, split) for split in catalog.SPLITS]


PICTURES = (write_classes, write_lists, write_shards, write_class_shards, write_saved)
NAMED = (write_classes, write_class_shards, write_saved)


@pytest.mark.parametrize("write", [write_npz, write_keras, *PICTURES])
def test_each_layout_gives_the_images_in_their_order(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    for split in catalog.SPLITS:
        found = read(tmp_path, split)
        assert np.array_equal(found.images, IMAGES[split])
        assert np.array_equal(found.labels, LABELS[split])
        assert (found.images.dtype, found.labels.dtype, found.verified) == (np.uint8, np.int64, False)


@pytest.mark.parametrize("write", [write_idx, write_packed_idx])
def test_idx_files_are_grey_images(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    for split in catalog.SPLITS:
        found = read(tmp_path, split)
        assert np.array_equal(found.images, GREY[split][:, None])
        assert np.array_equal(found.labels, LABELS[split])


@pytest.mark.parametrize("write", [write_npz, *PICTURES])
def test_classes_keep_the_names_that_the_layout_gives_them(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    assert folder.class_names(tmp_path) == (CLASSES if write in NAMED else ())


def test_pictures_of_several_sizes_are_scaled_and_cut_out_of_the_centre(tmp_path: Path) -> None:
    """A picture of 40 x 20 whose middle half is white: the square of its centre is white."""
    write_classes(tmp_path)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    Image.fromarray(wide).save(tmp_path / "train/ant/99.png")
    with pytest.raises(InputError, match=r"its pictures have 2 sizes, from 5 x 6 to 40 x 20; say --pixels 64"):
        folder.shape(tmp_path, pixels=None)
    shape = folder.shape(tmp_path, pixels=10)
    assert shape == (3, 10, 10)
    found = folder.read(tmp_path, "train", image_shape=shape).images
    assert found.shape == (7, *shape)
    assert found[2, :, :, 1:-1].min() > 250


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    for split, number in (("train", 0), ("test", 1)):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(GREY["train"][number]).save(tmp_path / split / "a/0.png")
    assert folder.shape(tmp_path, pixels=None) == (1, 6, 5)
    assert np.array_equal(read(tmp_path, "test").images[0, 0], GREY["train"][1])


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
def test_16_bit_grey_pictures_are_scaled_to_8_bits(name: str, tmp_path: Path) -> None:
    """0 and 65535 are black and white; 257 times an 8-bit value is that value."""
    values = np.linspace(0, 255, 30).astype(np.uint8).reshape(6, 5)
    for split in catalog.SPLITS:
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / split / "a" / name)
    assert folder.shape(tmp_path, pixels=None) == (1, 6, 5)
    assert np.array_equal(read(tmp_path, "test").images[0, 0], values)


DIGITS = catalog.read_config("digits", conf_dirs=paths.conf_dirs())
SPEC = dataclasses.replace(
    DIGITS, source="folder/mine/set", num_classes=3, image_shape=SHAPE, num_train=6, num_test=4, known_copies={}
)


def test_the_catalog_reads_it_below_the_data_root(tmp_path: Path) -> None:
    place = tmp_path / "mine/set"
    place.mkdir(parents=True)
    write_lists(place)
    assert not catalog.streamed(SPEC)
    assert np.array_equal(catalog.load_split(SPEC, "test", root=tmp_path).images, IMAGES["test"])
    labels, images = catalog.test_split(SPEC, root=tmp_path)
    assert images is not None
    assert np.array_equal(labels, LABELS["test"])
    with pytest.raises(InputError, match=r"expected train images \(5, 3, 6, 5\), got \(6, 3, 6, 5\)"):
        catalog.load_split(dataclasses.replace(SPEC, num_train=5), "train", root=tmp_path)


def test_a_folder_that_is_not_there_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as error:
        catalog.load_split(SPEC, "train", root=tmp_path)
    assert f"{tmp_path}/mine/set is missing" in error.value.faults[0]
    assert "train/CLASS/IMAGE" in error.value.faults[1]


def lose_labels(place: Path) -> None:
    write_idx(place)
    (place / "train-labels-idx1-ubyte").unlink()


def name_no_label(place: Path) -> None:
    write_lists(place)
    (place / "train.csv").write_text("path,label\nall/train0.png,ant\n")


def name_no_column(place: Path) -> None:
    write_lists(place)
    (place / "train.csv").write_text("file,class\nall/train0.png,1\n")


def name_no_file(place: Path) -> None:
    write_lists(place)
    (place / "train.csv").write_text("path,label\nall/nothing.png,1\n")


def cut_a_picture(place: Path) -> None:
    write_classes(place)
    (place / "train/bee/02.png").write_bytes((place / "train/bee/02.png").read_bytes()[:60])


def add_a_class(place: Path) -> None:
    write_classes(place)
    (place / "test/dog").mkdir()
    picture(IMAGES["test"][0]).save(place / "test/dog/0.png")


def save_floats(place: Path) -> None:
    write_classes(place)
    Image.fromarray(np.full((6, 5), 0.5, np.float32)).save(place / "train/bee/03.tif")


def use_floats(place: Path) -> None:
    for split in IMAGES:
        np.savez(place / f"{split}.npz", images=IMAGES[split] / 255, labels=LABELS[split])


def use_one_hot(place: Path) -> None:
    for split in IMAGES:
        np.savez(place / f"{split}.npz", images=IMAGES[split], labels=np.eye(3, dtype=int)[LABELS[split]])


def use_objects(place: Path) -> None:
    for split in IMAGES:
        np.savez(place / f"{split}.npz", images=np.array([{}], dtype=object), labels=LABELS[split])


def leave_empty(place: Path) -> None:
    (place / "train").mkdir()


def mix_labels(place: Path) -> None:
    write_class_shards(place)
    write_tar(place / "train-2.tar", {"a.png": png(IMAGES["train"][0]), "a.cls": b"1"})


def label_by_name(place: Path) -> None:
    write_shards(place)
    write_tar(place / "train-3.tar", {"a.png": png(IMAGES["train"][0]), "a.cls": b"ant"})


def label_nothing(place: Path) -> None:
    write_shards(place)
    write_tar(place / "train-3.tar", {"a.png": png(IMAGES["train"][0])})


def compress_a_shard(place: Path) -> None:
    write_shards(place)
    (place / "train-000000.tar").write_bytes(gzip.compress((place / "train-000000.tar").read_bytes()))


def cut_a_saved_file(place: Path) -> None:
    write_saved(place)
    (place / "train/data-00000-of-00002.arrow").write_bytes(b"ARROW1")


def save_no_names(place: Path) -> None:
    write_saved(place)
    info = place / "train/dataset_info.json"
    info.write_text(info.read_text().replace("ClassLabel", "Value"))


FAULTS = {
    mix_labels: "some pictures have a label of their own (.cls), and others only the folder's name",
    label_by_name: "train-3.tar, a.png: expected a label in a.cls, or a folder as its class; got 'ant'",
    label_nothing: "train-3.tar, a.png: expected a label in a.cls, or a folder as its class; there is none",
    compress_a_shard: "train-000000.tar: no tar archive that can be read, without compression",
    cut_a_saved_file: "train: no data set that `datasets` has saved (",
    save_no_names: "train: expected one feature ClassLabel, got none",
    lose_labels: "train-labels-idx1-ubyte is missing, or train-labels-idx1-ubyte.gz",
    name_no_label: "train.csv, line 2: expected a label such as 3, got 'ant'",
    name_no_column: "train.csv: expected the columns path and label, got file, class",
    name_no_file: "nothing.png: no picture that can be read",
    cut_a_picture: "02.png: no picture that can be read",
    save_floats: "03.tif: no picture that can be read (its pixels are 32-bit floats, mode F, of unknown range; save it",
    add_a_class: "test: classes without training images: dog",
    use_floats: "expected images (N, H, W) uint8, or with 1 or 3 channels besides; got (6, 3, 6, 5) float64",
    use_one_hot: "expected labels (N,) of whole numbers, got (6, 3) int64",
    use_objects: "train.npz: expected arrays images and labels without objects",
    leave_empty: "no train images; expected train-images-idx3-ubyte and its three companions",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: str(spoil.__name__))
def test_what_is_wrong_is_named(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(InputError) as error:
        read_both(tmp_path)
    assert FAULTS[spoil] in str(error.value)


@pytest.mark.parametrize("source", ["folder/", "folder/.", "folder/../outside", "folder//etc"])
def test_only_what_lies_below_the_data_root_is_read(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected folder/PATH with a path below the data root"):
        folder.place(source, root=tmp_path)
