"""A run that trains on photographs and is scored on others, from config to record: `model=vit_b16 recipe=deit_b`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests import photographed, trained

from remeasure import data
from remeasure.cli import compose
from remeasure.run import execute
from remeasure.rundir import Place
from remeasure.spec import InputError, RunSpec

PHOTOGRAPHS = (
    *("model=vit_b16", "model.options.architecture=vit_tiny_patch16_224", "precision=float32"),
    *("data.num_train=7", f"data.num_test={len(photographed.TRUTH)}"),
)
SMALL = (
    *PHOTOGRAPHS,
    *("recipe=deit_b", "recipe.streaming.transform.crop_pixels=32", "recipe.optimizer.lr_peak=1e-3"),
    *("recipe.epochs_total=2", "recipe.schedule.epochs_warmup=1", "recipe.batch_size=4"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven photographs to train on, and the same to be scored on."""
    photographed.make_folder(tmp_path)
    shutil.copytree(tmp_path / "imagenet/val", tmp_path / "imagenet/train")
    return tmp_path


def spec(root: Path, overrides: tuple[str, ...] = SMALL) -> RunSpec:
    config = compose(list(overrides))
    return config.spec(data_sha256=data.fingerprint(config.data, root=root, trains=True).data_sha256)


def place(root: Path) -> Place:
    return Place(runs=root / "runs", project=root, data_root=root, device_kind="cpu")


def test_it_trains_scores_the_test_photographs_and_leaves_a_record(root: Path) -> None:
    outcome = execute(spec(root), seed=0, row="", place=place(root), sink=trained.quiet)
    record = outcome.record
    assert (record.epochs, record.num_test, record.data_official) == (2, 7, "unknown")
    with np.load(outcome.directory / "predictions.npz") as kept:
        labels = [photographed.LABELS[synset] for synset in sorted(photographed.TRUTH)]
        assert int((kept["predicted"] == labels).sum()) == record.num_correct
    assert [path.name for path in outcome.directory.glob("checkpoint*")] == []


def test_training_photographs_are_part_of_the_identity(root: Path) -> None:
    before = spec(root)
    (root / "imagenet/train/n01443537/ILSVRC2012_val_00000005.JPEG").write_bytes(photographed.jpeg(99))
    assert spec(root).spec_sha256 != before.spec_sha256


def test_photographs_and_whole_arrays_are_not_mixed_up(root: Path) -> None:
    wrong = spec(root, (*PHOTOGRAPHS, "recipe=article"))
    with pytest.raises(InputError, match="photographs are not read whole"):
        execute(wrong, seed=0, row="", place=place(root), sink=trained.quiet)


def test_none_can_be_held_back() -> None:
    with pytest.raises(InputError, match=r"data.num_validation: photographs are listed class by class"):
        compose([*SMALL, "data.num_validation=2", "data.split=validation", "seed=1000"])
