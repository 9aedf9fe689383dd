"""ImageNet-V2, -Sketch, -A and -R, laid out as their archives are, and ReaL."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.photographed import imagenet, jpeg, make_archive, make_folder

from remeasure.data import catalog
from remeasure.data.imagenet import synsets
from remeasure.data.listing import Listing, fingerprint
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.run import DataSpec
from remeasure.system import paths

# Two classes of each, and their indices among the 1,000; of V2 in an order that is not that of the folders' names.
PLACES = {
    "imagenet_v2": ("imagenetv2-matched-frequency-format-val", {"2": 2, "10": 10}),
    "imagenet_sketch": ("imagenet-sketch", {"n01440764": 0, "n15075141": 999}),
    "imagenet_a": ("imagenet-a", {"n01498041": 6, "n12267677": 988}),
    "imagenet_r": ("imagenet-r", {"n01443537": 1, "n07920052": 967}),
}


def spec_of(name: str, *, num: int = 4) -> DataSpec:
    return replace(catalog.read_config(name, conf_dirs=paths.conf_dirs()), num_test=num)


def make(root: Path, name: str) -> Path:
    """Two photographs of each class."""
    folder, classes = PLACES[name]
    for number, each in enumerate([*classes, *classes]):
        path = root / folder / each / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (root / folder / "README.txt").write_text("as in the archive")
    return root


def listing_of(root: Path, name: str) -> Listing:
    return catalog.load_listing(spec_of(name), "test", root=make(root, name))


@pytest.mark.parametrize("name", PLACES)
def test_a_photograph_s_label_is_its_class_among_the_1000(name: str, tmp_path: Path) -> None:
    listing, classes = listing_of(tmp_path, name), PLACES[name][1]
    assert listing.names == tuple(
        f"{each}/{number}.jpg" for index, each in enumerate(classes) for number in (index, index + 2)
    )
    assert listing.labels.tolist() == [label for label in classes.values() for _ in range(2)]


def test_a_net_chooses_among_the_200_classes_of_a_and_of_r(tmp_path: Path) -> None:
    among = {name: listing_of(tmp_path, name).among for name in PLACES}
    assert among["imagenet_v2"] is among["imagenet_sketch"] is None
    for name, others in (("imagenet_a", 0), ("imagenet_r", 0)):
        chosen = among[name]
        assert chosen is not None
        assert len(set(chosen)) == 200
        assert set(PLACES[name][1].values()) <= set(chosen)
        assert others not in chosen


@pytest.mark.parametrize("name", PLACES)
def test_what_is_missing_is_named_with_its_origin(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as raised:
        catalog.load_listing(spec_of(name), "test", root=tmp_path)
    _, place, origin, _ = raised.value.faults
    assert place.startswith(f"  {tmp_path / PLACES[name][0]}/<")
    assert origin.startswith("  from imagenet" if name != "imagenet_sketch" else "  from ImageNet-Sketch.zip")


def test_a_class_that_is_none_of_the_200_and_too_few_photographs_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, "imagenet_a")
    with pytest.raises(InputError, match=r"data imagenet_a: expected 7,500 photographs in .*imagenet-a, got 4"):
        catalog.load_listing(catalog.read_config("imagenet_a", conf_dirs=paths.conf_dirs()), "test", root=root)
    first = next(iter(synsets()))
    (root / "imagenet-a" / first).mkdir()
    with pytest.raises(InputError, match=f"not among ImageNet's 200 classes: {first}$"):
        catalog.load_listing(spec_of("imagenet_a"), "test", root=root)


def test_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imagenet-r: has no training images"):
        catalog.load_listing(spec_of("imagenet_r"), "train", root=make(tmp_path, "imagenet_r"))
    with pytest.raises(InputError, match="imagenet_real: has no training images"):
        catalog.load_listing(spec_of("imagenet_real"), "train", root=tmp_path)


def validation(root: Path, *names: str) -> Path:
    """Validation photographs, of class 970 by the official labels."""
    folder = root / "imagenet/val" / next(synset for synset, index in synsets().items() if index == 970)
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(jpeg(number))
    return root


def test_real_has_all_right_labels_of_the_photographs_that_have_some(tmp_path: Path) -> None:
    # Of the first five photographs, the first has no label; the others: [970, 795], [230, 231], [809], [516, 850].
    root = validation(tmp_path, *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in (5, 1, 2, 3, 4)))
    listing = catalog.load_listing(spec_of("imagenet_real"), "test", root=root)
    assert [name[-13:] for name in listing.names] == [f"{number:08d}.JPEG" for number in (2, 3, 4, 5)]
    assert listing.labels.tolist() == [970, 230, 809, 516]
    assert listing.also is not None
    assert listing.also.tolist() == [[970, 795], [230, 231], [809, 809], [516, 850]]
    assert fingerprint(listing) != fingerprint(replace(listing, also=listing.also[:, ::-1]))
    assert fingerprint(listing) != fingerprint(replace(listing, also=None))


def test_real_from_the_archive_reads_the_same_photographs(tmp_path: Path) -> None:
    spec = replace(spec_of("imagenet_real"), files_md5=imagenet(make_archive(tmp_path / "packed")).files_md5)
    packed = catalog.load_listing(replace(spec, num_test=6), "test", root=tmp_path / "packed")
    folder = catalog.load_listing(replace(spec, num_test=6), "test", root=make_folder(tmp_path / "loose"))
    assert packed.names == folder.names
    assert not any("val_00000001" in name for name in packed.names), "it has no label"
    assert [packed.read(index) for index in range(6)] == [folder.read(index) for index in range(6)]
    assert fingerprint(packed)[0] == fingerprint(folder)[0]


def test_real_goes_by_the_official_names(tmp_path: Path) -> None:
    root = validation(tmp_path, "ILSVRC2012_val_00000002.JPEG", "n07615774_12.JPEG", "ILSVRC2012_val_00050001.JPEG")
    with pytest.raises(InputError, match=r"ReaL goes by the .* 2 have none, such as n\d+/ILSVRC2012_val_00050001.JPEG"):
        catalog.load_listing(spec_of("imagenet_real"), "test", root=root)
