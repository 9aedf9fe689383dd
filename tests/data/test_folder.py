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


def name_classes_in_lists(place: Path) -> None:
    """With a byte order mark, semicolons and blanks, as spreadsheets write them."""
    write_lists(place)
    for split in catalog.SPLITS:
        path = place / f"{split}.csv"
        lines = (line.split(",") for line in path.read_text().splitlines()[1:])
        named = [f"{image}; {CLASSES[int(label)]}\n" for image, label in lines]
        path.write_text("".join(["path; label\n", *named]), encoding="utf-8-sig")


def name_classes_in_arrays(place: Path) -> None:
    for split in catalog.SPLITS:
        np.savez(place / f"{split}.npz", images=IMAGES[split], labels=np.array(CLASSES)[LABELS[split]])


@pytest.mark.parametrize("write", [name_classes_in_lists, name_classes_in_arrays])
def test_labels_can_be_the_names_of_the_classes(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    assert folder.class_names(tmp_path) == CLASSES
    for split in catalog.SPLITS:
        found = read(tmp_path, split)
        assert np.array_equal(found.images, IMAGES[split])
        assert np.array_equal(found.labels, LABELS[split])


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
    (place / "train.csv").write_text("path,label\nall/train0.png, \n")


def name_another_class(place: Path) -> None:
    write_lists(place)
    (place / "test.csv").write_text("path,label\nall/test0.png,ant\n")


def use_another_encoding(place: Path) -> None:
    write_lists(place)
    (place / "train.csv").write_text("path,label\nall/train0.png,frelon géant\n", encoding="latin-1")


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


def use_16_bits(place: Path) -> None:
    for split in IMAGES:
        np.savez(place / f"{split}.npz", images=IMAGES[split].astype(np.uint16) * 257, labels=LABELS[split])


def use_no_number(place: Path) -> None:
    np.savez(place / "train.npz", images=np.where(IMAGES["train"] == 7, np.nan, 0.5), labels=LABELS["train"])


def use_other_names(place: Path) -> None:
    np.savez(place / "train.npz", x=IMAGES["train"], y=LABELS["train"])


def lose_a_label(place: Path) -> None:
    np.savez(place / "train.npz", images=IMAGES["train"], labels=LABELS["train"][1:])


def lose_all_test_images(place: Path) -> None:
    write_npz(place)
    np.savez(place / "test.npz", images=IMAGES["test"][:0], labels=LABELS["test"][:0])


def cut_arrays(place: Path) -> None:
    write_npz(place)
    (place / "train.npz").write_bytes((place / "train.npz").read_bytes()[:300])


def damage_arrays(place: Path) -> None:
    np.savez_compressed(place / "train.npz", images=IMAGES["train"], labels=LABELS["train"])
    content = bytearray((place / "train.npz").read_bytes())
    content[100:120] = bytes(20)
    (place / "train.npz").write_bytes(content)


def damage_idx(place: Path) -> None:
    write_packed_idx(place)
    (place / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip file")


def use_capitals(place: Path) -> None:
    write_classes(place)
    (place / "train").rename(place / "Train")


def nest(place: Path) -> None:
    (place / "inner").mkdir()
    write_classes(place / "inner")


def nest_in_classes(place: Path) -> None:
    write_classes(place)
    (place / "train").rename(place / "images")
    (place / "train/ant").mkdir(parents=True)
    (place / "images").rename(place / "train/ant/images")


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
    mix_labels: "some pictures have a number as their label, and others the name of a class",
    label_by_name: "train-3.tar, a.png: expected a label in a.cls, or a folder as its class; got 'ant'",
    label_nothing: "train-3.tar, a.png: expected a label in a.cls, or a folder as its class; there is none",
    compress_a_shard: "train-000000.tar: no tar archive that can be read, without compression",
    cut_a_saved_file: "train: no data set that `datasets` has saved (",
    save_no_names: "train: expected one feature ClassLabel, got none",
    lose_labels: "train-labels-idx1-ubyte is missing, or train-labels-idx1-ubyte.gz",
    name_no_label: "train.csv, line 2: expected a label such as 3 or cat, got none",
    name_another_class: "test.csv: classes without training images: ant",
    use_another_encoding: "train.csv: not in UTF-8",
    name_no_column: "train.csv: expected the columns path and label, got file, class",
    name_no_file: "nothing.png: no picture that can be read",
    cut_a_picture: "02.png: no picture that can be read",
    save_floats: "03.tif: no picture that can be read (its pixels are 32-bit floats, mode F, of unknown range; save it",
    add_a_class: "test: classes without training images: dog",
    use_floats: "expected images (N, H, W) uint8, or with 1 or 3 channels besides; got (6, 3, 6, 5) float64 "
    "from 0 to 1; store (255 * images).round().astype(np.uint8)",
    use_16_bits: "; store (images scaled to 0..255).round().astype(np.uint8)",
    use_no_number: "float64, some of them NaN or infinite",
    use_other_names: "train.npz: expected arrays images and labels, got x, y",
    lose_a_label: "expected a label for each train image, got 6 and 5",
    lose_all_test_images: "expected a label for each test image, got 0 and 0",
    cut_arrays: "train.npz: damaged or cut off (",
    damage_arrays: "train.npz: damaged or cut off (",
    damage_idx: "train-images-idx3-ubyte.gz: not a gzip file, or damaged",
    use_capitals: "no train images, but Train, test; expected",
    nest: "inner the data set? Then name that path)",
    nest_in_classes: "no train images, but test, train with train/ant/images/",
    use_one_hot: "expected labels (N,) of whole numbers, got (6, 3) int64",
    use_objects: "train.npz: expected arrays images and labels without objects",
    leave_empty: "no train images, but train; expected train-images-idx3-ubyte and its three companions",
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


def test_a_data_set_may_be_a_link_below_the_data_root(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine").symlink_to(tmp_path / "elsewhere")
    assert folder.place("folder/mine", root=tmp_path / "root").samefile(tmp_path / "elsewhere")
