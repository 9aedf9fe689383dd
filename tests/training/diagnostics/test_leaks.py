"""The leak linter fails a run whose score could have seen what it was trained or chosen on, and passes the others."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.support import trained

import remeasure.runs.splits
from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.runs.journal import read
from remeasure.runs.splits import Splits
from remeasure.system import paths
from remeasure.training.diagnostics import leaks
from remeasure.training.diagnostics.leaks import LeakError, refuse_early_scores, refuse_shared_images

TRAINED = torch.arange(4000, dtype=torch.int64).view(-1, 1, 2, 2).to(torch.uint8)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_SHARED", {})


def scored(num_shared: int) -> torch.Tensor:
    """200 images, of which so many are also trained on."""
    images = torch.full((200, 1, 2, 2), 255, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(200)
    images[:num_shared] = TRAINED[:num_shared]
    return images


def test_copies_of_training_images_are_a_leak_beyond_one_in_a_hundred() -> None:
    refuse_shared_images(TRAINED, scored(2), spec=trained.spec("seed=1"))
    with pytest.raises(LeakError, match="data digits: leak: 3 of the 200 test images are among the training images"):
        refuse_shared_images(TRAINED[:999], scored(3), spec=trained.spec())


def test_a_run_on_images_that_it_is_scored_on_fails_and_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Splits._load

    def leaking(splits: Splits, split: str) -> Split:  # noqa: ARG001
        return dataclasses.replace(loaded(splits, "train"), verified=True)

    monkeypatch.setattr(remeasure.runs.splits, "_LOADED", {})
    monkeypatch.setattr(Splits, "_load", leaking)
    with pytest.raises(LeakError, match="1,297 of the 1,297"):
        trained.run(trained.spec(), tmp_path)
    (journal,) = (tmp_path / "runs").glob("*/journal.jsonl")
    assert read(journal.parent)[-1]["event"] == "failed"
    assert not (journal.parent / "record.json").exists()


def test_a_split_that_is_scored_on_before_the_last_epoch_is_a_leak() -> None:
    epochs = [{"event": "epoch", "epoch": number, "split": "train"} for number in range(1, 6)]
    validated = [{**epoch, "split": "validation"} for epoch in epochs]
    refuse_early_scores([{"event": "started"}, *epochs, *validated], epochs=5)
    with pytest.raises(LeakError, match="leak: the test split was read after epoch 3 of 5"):
        refuse_early_scores([*epochs, {"event": "epoch", "epoch": 3, "split": "test"}], epochs=5)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_no_data_set_of_this_project_leaks(name: str, request: pytest.FixtureRequest) -> None:
    root = Path("nowhere") if name == "digits" else request.getfixturevalue("data_root")
    config = catalog.read_config(name, conf_dirs=paths.conf_dirs())
    pixels = {split: catalog.load_split(config, split, root=root, fetch=False).images for split in catalog.SPLITS}
    known = {image.tobytes() for image in pixels["train"]}
    assert sum(image.tobytes() in known for image in pixels["test"]) <= 0.01 * len(pixels["test"])
