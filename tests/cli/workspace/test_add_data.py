"""`remeasure add-data`: the config of a data set in a folder, and that it trains; what is wrong with the data."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tests.support.folders import CLASSES, GREY, IMAGES, LABELS, SHAPE, idx, write_classes, write_idx
from tests.support.project import Command, Ended, Project, copy_project

from remeasure.data import catalog, fingerprint


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = copy_project(tmp_path / "project")
    monkeypatch.setenv("REMEASURE_DATA", str(project.root / "data"))
    (project.root / "data/mine").mkdir(parents=True)
    return project


def add_data(here: Command, project: Project, *arguments: str) -> Ended:
    return here(project, "remeasure", "--conf", str(project.root), "add-data", *arguments)


def test_sizes_statistics_and_fingerprint_are_those_of_the_files(here: Command, project: Project) -> None:
    write_classes(project.root / "data/mine")
    ended = add_data(here, project, "mine", "--title", "Ants, bees: and cats")
    assert (ended.status, ended.stderr) == (0, "")
    assert "6 training and 4 test images (3, 6, 5), 3 classes" in ended.stdout
    spec = catalog.read_config("mine", conf_dirs=[project.root / "conf"])
    assert (spec.source, spec.title, spec.num_classes, spec.image_shape) == (
        "folder/mine",
        "Ants, bees: and cats",
        3,
        SHAPE,
    )
    assert catalog.class_names(spec) == CLASSES
    pixels = IMAGES["train"] / 255
    assert spec.pixel_mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert spec.pixel_std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    found = fingerprint.fingerprint(spec, root=project.root / "data")
    assert (found.data_sha256, found.data_official) == (spec.official_sha256, "yes")


def test_a_run_trains_on_it(here: Command, project: Project) -> None:
    write_idx(project.root / "data/mine")
    assert add_data(here, project, "insects", "mine").status == 0
    ended = here(project, "train.py", "model=logreg", "data=insects", "recipe=article", "recipe.epochs_total=1")
    assert ended.status == 0, ended.stderr
    assert "test_accuracy_percent=" in ended.stdout
    changed = GREY["train"].copy()
    changed[0, 0, 0] ^= 1
    (project.root / "data/mine/train-images-idx3-ubyte").write_bytes(idx(changed))
    again = here(project, "train.py", "model=logreg", "data=insects", "recipe=article", "recipe.epochs_total=1")
    assert "finished before" not in again.stdout
    assert "data insects: its images or labels are not those of conf/data/insects.yaml" not in ended.stderr
    assert "data insects: its images or labels are not those of conf/data/insects.yaml" in again.stderr
    assert "if the new files are meant, remove conf/data/insects.yaml and add the data again" in again.stderr


def test_a_config_is_written_over_none_and_only_into_conf_data(here: Command, project: Project) -> None:
    write_idx(project.root / "data/mine")
    before = (project.root / "conf/data/digits.yaml").read_bytes()
    ended = add_data(here, project, "digits", "mine")
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert "digits.yaml: is there already" in ended.stderr
    for name in ("../x", "a--b", "_a", "é"):  # the ledger would refuse the names of its rows
        outside = add_data(here, project, name, "mine")
        assert (outside.status, outside.stderr.count("\n")) == (2, 1)
        assert outside.stderr.startswith("NAME: expected up to 100 of A-Z, a-z, 0-9, '_' and '.', parted by single '-'")
    assert not (project.root / "conf/x.yaml").exists()
    assert (project.root / "conf/data/digits.yaml").read_bytes() == before


def test_test_images_that_were_trained_on_are_told(here: Command, project: Project) -> None:
    place = project.root / "data/mine"
    test = np.concatenate([GREY["test"][:3], GREY["train"][4:5]])
    write_idx(place)
    (place / "t10k-images-idx3-ubyte").write_bytes(idx(test))
    ended = add_data(here, project, "mine")
    assert ended.status == 2
    assert (
        "1 of the 4 test images are among the training images, such as test image 3, which is training image 4"
        in ended.stderr
    )
    assert not (project.root / "conf/data/mine.yaml").exists()
    accepted = add_data(here, project, "mine", "--accept-duplicates")
    assert accepted.status == 0
    assert "among the training images: trained networks are not scored on it" in accepted.stdout
    assert yaml.safe_load((project.root / "conf/data/mine.yaml").read_text())["num_test"] == 4


@pytest.mark.parametrize(
    ("split", "labels", "said"),
    [
        ("train", [0, 0, 1, 1, 3, 3], "expected training labels 0, 1, 2, …, each with images; none has [2]"),
        ("train", [1, 1, 2, 2, 3, 3], "expected training labels from 0, got 1 to 3; subtract 1"),
        ("train", [0] * 6, "expected 2 classes or more; all training labels are 0"),
        ("t10k", [0, 1, 2, 7], "test labels without training images: 7"),
    ],
)
def test_labels_without_training_images_are_told(
    split: str, labels: list[int], said: str, here: Command, project: Project
) -> None:
    write_idx(project.root / "data/mine")
    (project.root / f"data/mine/{split}-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))
    ended = add_data(here, project, "mine")
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert said in ended.stderr


def test_training_and_test_images_of_different_channels_are_told(here: Command, project: Project) -> None:
    arrays = {"x_train": GREY["train"], "y_train": LABELS["train"], "x_test": IMAGES["test"], "y_test": LABELS["test"]}
    np.savez(project.root / "data/mine/data.npz", **arrays)
    ended = add_data(here, project, "mine")
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert "images (N, C, H, W) of one size, got (6, 1, 6, 5) and (4, 3, 6, 5)" in ended.stderr


@pytest.mark.parametrize("path", ["elsewhere", "data/mine"], ids=["outside", "absolute"])
def test_a_path_is_one_below_the_data_root(path: str, here: Command, project: Project) -> None:
    """An absolute path below it is taken as the relative one, so that the config serves other machines."""
    write_idx(project.root / "data/mine")
    ended = add_data(here, project, "mine", str(project.root / path))
    if path == "elsewhere":
        assert ended.status == 2
        assert "put the folder or a link to it there, or name another root: REMEASURE_DATA=…" in ended.stderr
    else:
        assert ended.status == 0, ended.stderr
        assert catalog.read_config("mine", conf_dirs=[project.root / "conf"]).source == "folder/mine"


@pytest.mark.parametrize("pixels", ["-5", "0"])
def test_pixels_are_one_or_more(pixels: str, here: Command, project: Project) -> None:
    write_classes(project.root / "data/mine")
    ended = add_data(here, project, "mine", "--pixels", pixels)
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert f"--pixels: expected a number of pixels such as 64, got '{pixels}'" in ended.stderr


def test_grey_pictures_among_coloured_ones_are_told(here: Command, project: Project) -> None:
    write_classes(project.root / "data/mine")
    Image.fromarray(GREY["train"][0]).save(project.root / "data/mine/train/ant/00.png")
    ended = add_data(here, project, "mine")
    assert ended.status == 0, ended.stderr
    assert "1 of the training images are grey; all are read with 3 channels" in ended.stdout


def test_images_of_a_single_value_are_told(here: Command, project: Project) -> None:
    write_idx(project.root / "data/mine")
    (project.root / "data/mine/train-images-idx3-ubyte").write_bytes(idx(np.zeros_like(GREY["train"])))
    ended = add_data(here, project, "mine")
    assert (ended.status, ended.stderr) == (2, "the training images have a single value in channel 0\n")


def test_a_folder_that_is_not_there_is_told_with_the_layouts(here: Command, project: Project) -> None:
    ended = add_data(here, project, "nothing")
    assert ended.status == 2
    assert "data/nothing is missing; put the data set there:" in ended.stderr
    assert "train/CLASS/IMAGE" in ended.stderr
