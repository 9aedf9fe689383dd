"""A run that trains on photographs and is scored on others, from config to record: `model=vit_b16 recipe=deit_b`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.support import photographed, trained
from torch import Tensor

from remeasure.cli.models import open_run, score
from remeasure.config.compose import compose
from remeasure.data import fingerprint
from remeasure.runs.execute import execute
from remeasure.runs.folder import Place
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.training.photographs import train as photographs_train
from remeasure.training.photographs.train import StreamTraining

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
    return config.spec(data_sha256=fingerprint.fingerprint(config.data, root=root, trains=True).data_sha256)


def place(root: Path) -> Place:
    return Place(runs=root / "runs", project=root, data_root=root, device_kind="cpu")


@pytest.mark.parametrize("devices", [None, 2])
def test_it_trains_scores_the_test_photographs_and_leaves_a_record_and_a_network(
    devices: int | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(place(root), devices=devices)
    outcome = execute(spec(root), seed=0, row="", place=here, sink=trained.quiet, keeps=[0])
    record = outcome.record
    assert (record.epochs, record.num_test, record.data_official) == (2, 7, "unknown")
    with np.load(outcome.directory / "predictions.npz") as kept:
        labels = [photographed.LABELS[synset] for synset in sorted(photographed.TRUTH)]
        assert int((kept["predicted"] == labels).sum()) == record.num_correct
        monkeypatch.setenv("REMEASURE_DATA", str(root))
        again, _ = score(open_run(outcome.directory), device_kind="cpu")
        assert again.predicted.tolist() == kept["predicted"].tolist()
        assert again.loss == pytest.approx(record.loss)
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
    with pytest.raises(
        InputError, match=r"num_validation: training on photographs has 0, got 2; photographs are listed class by class"
    ):
        compose([*SMALL, "data.num_validation=2", "data.split=validation", "seed=1000"])


@pytest.mark.parametrize(("at", "checkpoints"), [(4, 0.0), (5, 1e9)], ids=["second of three", "the very last"])
def test_on_photographs_step_layer_batch_and_weights_are_those_of_the_fault(
    at: int, checkpoints: float, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch, in blocks of two, then one; the indices give the very images that the step saw."""
    overrides = ("recipe.batch_size=2", "steps_per_block=2", "precision=float32", "recipe.streaming.mixup_alpha=0")
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", str(checkpoints))
    train = photographs_train.train  # loader processes take seconds to start
    monkeypatch.setattr(photographs_train, "train", lambda *given, **named: train(*given, **named | {"num_workers": 0}))
    original, seen = StreamTraining.training_step, list[tuple[Any, Tensor, dict[str, Tensor]]]()

    def step_with_plant(self: Any, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step == at:
            seen.append((self, batch[0].clone(), trained.weights(self.network)))
            self.network.blocks[3].mlp.fc1.bias.register_hook(lambda gradient: gradient * torch.nan)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StreamTraining, "training_step", step_with_plant)
    outcome = execute(spec(root, (*SMALL, *overrides)), seed=5, row="", place=place(root), sink=trained.quiet)
    found, (module, images, weights) = json.loads((outcome.directory / "divergence.json").read_text()), seen[0]
    assert (found["what"], found["layer"]) == ("gradient", "blocks.3.mlp.fc1.bias")
    assert (found["step"], found["epoch"]) == (at, 1)
    photographs = module.loader.dataset
    for number, index in enumerate(found["batch"]):
        assert torch.equal(photographs[index, 2 * at + number][0], images[number])
    assert len(found["batch"]) == 2
    assert trained.same(safetensors.torch.load_file(outcome.directory / "divergence.safetensors"), weights)
    assert not list(outcome.directory.glob("checkpoint*"))
