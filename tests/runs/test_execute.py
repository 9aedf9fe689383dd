"""Runs: resumed to the same bits, never measured on what they trained on, honest about how they ended."""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.support import trained
from tests.support.forking import client as forking
from tests.support.trained import STEPS_PER_EPOCH, quiet, run, same, weights
from torch import Tensor, nn

import remeasure.runs.splits
import remeasure.training.augment
import remeasure.training.engines.blocks
import remeasure.training.engines.loop
import remeasure.training.inference
from remeasure.data import catalog
from remeasure.data.files import Split
from remeasure.models import registry
from remeasure.runs.folder import Outcome
from remeasure.runs.journal import curve, read
from remeasure.spec.base import InputError
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.training import device
from remeasure.training.engines.loop import CheckpointCallback
from remeasure.training.engines.serial import Training
from remeasure.training.inference import Predictions

ROOT = Path(__file__).parents[2]
EPOCHS = 4
# Dropout, distortions, Adam, a rate that changes at each step.
EVERYTHING = (
    *("model=mlp4", "model.options.hidden_sizes=[32,32]"),
    *("recipe=lenet5", f"recipe.epochs_total={EPOCHS}", "recipe.schedule.epochs_warmup=1"),
)
LBFGS = ("model=logreg", "recipe=lbfgs", f"recipe.epochs_total={EPOCHS}")
TUNING = ("data.split=validation", "data.num_validation=297", "seed=1000")
WILD = ("recipe.optimizer={name: sgd, lr_peak: 1.0e+9}", "recipe.clip_norm=null")


Weights = dict[str, Tensor]
Unbroken = tuple[Outcome, Weights]


class CutError(Exception):
    """The lights go out."""


def spec(*overrides: str) -> RunSpec:
    """As in tests/support/trained.py, the 21 steps of an epoch in blocks of 4."""
    return trained.spec("steps_per_block=4", *overrides)


@pytest.fixture(autouse=True)
def fresh_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data are read anew, not taken from an earlier test."""
    monkeypatch.setattr(remeasure.runs.splits, "_LOADED", {})


@pytest.fixture(autouse=True)
def checkpoints_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each block."""
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")


@pytest.fixture
def final_weights(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The weights of each network that was evaluated, in order."""
    kept: list[Weights] = []
    monkeypatch.setattr(remeasure.training.engines.blocks, "predict", _keeping(kept))
    return kept


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A run of EVERYTHING that nothing cut short, and its final weights."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remeasure.training.engines.blocks, "predict", _keeping(kept))
        outcome = run(spec(*EVERYTHING), tmp_path_factory.mktemp("unbroken"))
    return outcome, kept[0]


def _keeping(kept: list[Weights]) -> Callable[..., Predictions]:
    """`predict`, with the weights of each network that it sees kept."""
    original = remeasure.training.inference.predict

    def spy(network: nn.Module, images: Tensor, **rest: Any) -> Predictions:
        kept.append(weights(network))
        return original(network, images, **rest)

    return spy


def without_times(record: Any) -> dict[str, Any]:
    return {
        key: value for key, value in dataclasses.asdict(record).items() if key not in ("wall_seconds", "finished_at")
    }


def points(outcome: Outcome) -> list[dict[str, Any]]:
    """The curve without its times."""
    events = curve(read(outcome.directory))
    return [{key: value for key, value in event.items() if key not in ("time", "seconds")} for event in events]


def names(directory: Path) -> list[str]:
    return [event["event"] for event in read(directory)]


def the_only(folder: Path) -> Path:
    """The one run directory under `folder`."""
    (directory,) = (folder / "runs").iterdir()
    return directory


# ---------------------------------------------------------------- cut short and resumed

Cut = Callable[[pytest.MonkeyPatch], Callable[[Path, Event], None]]


def at_an_epochs_report(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:  # noqa: ARG001
    """While the second epoch is reported, before its checkpoint."""

    def sink(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event.get("epoch") == 2 and event["split"] == "train":
            raise CutError

    return sink


def _after_the_checkpoint_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
    original = CheckpointCallback._save_when_due

    def save(self: CheckpointCallback, trainer: Any) -> None:
        original(self, trainer)
        if trainer.lightning_module.num_steps == step:
            raise CutError

    monkeypatch.setattr(CheckpointCallback, "_save_when_due", save)
    return quiet


def after_an_epochs_checkpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
    return _after_the_checkpoint_at(2 * STEPS_PER_EPOCH, monkeypatch)


def between_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
    """In the third epoch, after its second block."""
    return _after_the_checkpoint_at(2 * STEPS_PER_EPOCH + 8, monkeypatch)


def before_an_epochs_last_block(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
    return _after_the_checkpoint_at(2 * STEPS_PER_EPOCH + 20, monkeypatch)


def within_a_block(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
    """In the third epoch, at the third step of its second block."""
    original = Training.take

    def step_or_cut(self: Training, chosen: Tensor, *, step: int, **more: Any) -> tuple[Tensor, ...]:
        if step == 2 * STEPS_PER_EPOCH + 6:
            raise CutError
        return original(self, chosen, step=step, **more)

    monkeypatch.setattr(Training, "take", step_or_cut)
    return quiet


CUTS = [at_an_epochs_report, after_an_epochs_checkpoint, between_blocks, before_an_epochs_last_block, within_a_block]


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_cut_short_ends_as_an_unbroken_one_bit_for_bit(
    cut: Cut, tmp_path: Path, unbroken: Unbroken, final_weights: list[Weights]
) -> None:
    whole, whole_weights = unbroken
    resumed = _cut_and_resumed(spec(*EVERYTHING), cut=cut, folder=tmp_path)
    assert same(final_weights[-1], whole_weights)
    _assert_alike(resumed, whole)


@pytest.mark.parametrize(("steps_per_block", "saved_at"), [(1, 45), (10, 52), (100, 42)])
def test_a_run_cut_short_in_mid_epoch_ends_bit_for_bit_alike_at_any_block_length_image_size_and_crop(
    steps_per_block: int, saved_at: int, tmp_path: Path, final_weights: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the third of four epochs, the first that sees 6x6 images; the last checkpoint may lie in it, too."""
    build = registry.build
    monkeypatch.setattr(
        registry, "build", lambda *given, **named: nn.Sequential(nn.AdaptiveAvgPool2d(8), build(*given, **named))
    )
    augmentation = (
        "{name: crop, probability: null, translation_pixels: null, scaling: null, squeezing: null, shear: null"
    )
    augmentation += ", pad_pixels: 1, flip_probability: 0.5, cutout_pixels: 2, padding: reflect, flips: alternating}"
    in_blocks = spec(
        *(*EVERYTHING, f"steps_per_block={steps_per_block}", "channels_last=true"),
        *("recipe.resolution={pixels: [4, 6], until_epoch: [2, 3]}", f"recipe.augmentation={augmentation}"),
        "recipe.averaging={from_epoch: 2, decay: 0.9}",
    )
    with monkeypatch.context() as patch:
        patch.setenv("REMEASURE_CHECKPOINT_SECONDS", "1e9")
        whole = run(in_blocks, tmp_path / "whole")

    def cut(patch: pytest.MonkeyPatch) -> Callable[[Path, Event], None]:
        return _after_the_checkpoint_at(saved_at, patch)

    resumed = _cut_and_resumed(in_blocks, cut=cut, folder=tmp_path / "cut")
    assert same(*final_weights)
    _assert_alike(resumed, whole)
    begun = [event for event in read(resumed.directory) if event["event"] in ("started", "resumed")]
    assert [event["work_by_epoch"] for event in begun] == 2 * [[1 / 4, 1 / 4, 9 / 16, 1]]


def test_lbfgs_cut_short_ends_as_an_unbroken_one_bit_for_bit(
    tmp_path: Path, final_weights: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(spec(*LBFGS), tmp_path / "whole")
    monkeypatch.setitem(globals(), "STEPS_PER_EPOCH", 1)
    resumed = _cut_and_resumed(spec(*LBFGS), cut=after_an_epochs_checkpoint, folder=tmp_path / "cut")
    assert same(*final_weights)
    _assert_alike(resumed, whole)


class Draws(nn.Module):
    """From all global generators, without a layer that is known to draw."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        return nn.functional.dropout(images, p=0.1) * random.uniform(0.9, 1.1) * np.random.uniform(0.9, 1.1)


def drawing(*, image_shape: Any, num_classes: int, generator: Any) -> nn.Module:  # noqa: ARG001
    return nn.Sequential(nn.Flatten(), Draws(), nn.Linear(64, num_classes))


def counting(*, image_shape: Any, num_classes: int, generator: Any) -> nn.Module:  # noqa: ARG001
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))


@pytest.mark.parametrize("builder", [drawing, counting])
@pytest.mark.parametrize("recipe", [LBFGS, EVERYTHING], ids=["lbfgs", "sgd"])
def test_a_net_from_outside_that_draws_or_keeps_statistics_ends_bit_for_bit_alike(
    builder: Callable[..., nn.Module], recipe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BUILDERS, "from_outside", builder)
    usual = spec(*recipe)
    model = dataclasses.replace(usual.model, builder="from_outside", options={})
    whole = run(own := dataclasses.replace(usual, model=model), tmp_path / "whole")
    if recipe is LBFGS:
        monkeypatch.setitem(globals(), "STEPS_PER_EPOCH", 1)
    _assert_alike(_cut_and_resumed(own, cut=after_an_epochs_checkpoint, folder=tmp_path / "cut"), whole)


def _cut_and_resumed(spec: RunSpec, *, cut: Cut, folder: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
        run(spec, folder, sink=cut(patch))
    directory = the_only(folder)
    assert (directory / "checkpoint.ckpt").exists()
    num_before = len(read(directory))
    outcome = run(spec, folder)
    assert (outcome.directory, outcome.reused) == (directory, False)
    resumed, *after = read(directory)[num_before:]
    assert (resumed["event"], resumed["checkpoint"]) == ("resumed", "used")
    assert after[0]["epoch"] >= 2, "the first epoch is not trained again"
    return outcome


def _assert_alike(resumed: Outcome, whole: Outcome) -> None:
    assert without_times(resumed.record) == without_times(whole.record)
    predictions = [(outcome.directory / "predictions.npz").read_bytes() for outcome in (resumed, whole)]
    assert predictions[0] == predictions[1]
    assert points(resumed) == points(whole)
    kinds = [(point["epoch"], point["split"]) for point in points(resumed)]
    assert sorted(kinds) == [(1, "train"), (2, "train"), (3, "train"), (4, "test"), (4, "train")]


def test_a_run_may_be_cut_again_and_again(tmp_path: Path, unbroken: Unbroken, final_weights: list[Weights]) -> None:
    for step in (8, 29, 42, 50, 71):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
            run(spec(*EVERYTHING), tmp_path, sink=_after_the_checkpoint_at(step, patch))
    resumed = run(spec(*EVERYTHING), tmp_path)
    assert same(final_weights[-1], unbroken[1])
    _assert_alike(resumed, unbroken[0])
    assert names(resumed.directory).count("resumed") == 5


def test_wall_seconds_include_those_before_the_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("remeasure.training.engines.loop.time.monotonic", lambda: clock[0])

    def a_minute_each(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event["event"] == "epoch" and event["split"] == "train":
            clock[0] += 60

    with pytest.MonkeyPatch.context() as patch:
        _after_the_checkpoint_at(3 * STEPS_PER_EPOCH, patch)
        with pytest.raises(CutError):
            run(spec(*EVERYTHING), tmp_path, sink=a_minute_each)
    clock[0] = 1e6  # a pause does not count
    assert run(spec(*EVERYTHING), tmp_path, sink=a_minute_each).record.wall_seconds == 240.0


def _cut_after_two_epochs(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
        run(spec(*EVERYTHING), folder, sink=after_an_epochs_checkpoint(patch))
    return the_only(folder)


@pytest.mark.parametrize(("begun_by", "belongs_to"), [("a row", "a row"), ("", "another")])
def test_a_run_stays_the_row_s_that_began_it(tmp_path: Path, begun_by: str, belongs_to: str) -> None:
    """One that no row began is the one's that goes on with it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
        run(spec(*EVERYTHING), tmp_path, row=begun_by, sink=after_an_epochs_checkpoint(patch))
    assert run(spec(*EVERYTHING), tmp_path, row="another").record.row == belongs_to


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"\0" * len(content), lambda _: b"", _flipped],
    ids=["torn", "zeros", "empty", "flipped bit"],
)
def test_a_corrupt_checkpoint_is_not_trusted_and_the_run_begins_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, unbroken: Unbroken, final_weights: list[Weights]
) -> None:
    directory = _cut_after_two_epochs(tmp_path)
    checkpoint = directory / "checkpoint.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    run(spec(*EVERYTHING), tmp_path)
    (resumed,) = (event for event in read(directory) if event["event"] == "resumed")
    assert resumed["checkpoint"] == "corrupt"
    assert same(final_weights[-1], unbroken[1])
    assert [event.get("epoch") for event in read(directory)][-7:] == [None, 1, 2, 3, 4, 4, None]


def test_a_checkpoint_that_was_being_written_is_ignored(
    tmp_path: Path, unbroken: Unbroken, final_weights: list[Weights]
) -> None:
    directory = _cut_after_two_epochs(tmp_path)
    (directory / "checkpoint.partial").write_bytes(b"half of a later checkp")
    run(spec(*EVERYTHING), tmp_path)
    assert same(final_weights[-1], unbroken[1])
    assert sorted(path.name for path in directory.iterdir()) == [
        *("code.json", "config.yaml", "environment.json", "filters.npz", "journal.jsonl", "lock"),
        *("predictions.npz", "record.json"),
    ]


def test_a_run_without_a_checkpoint_begins_again(
    tmp_path: Path, unbroken: Unbroken, final_weights: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "1e9")
    directory = _cut_after_two_epochs(tmp_path)
    assert not (directory / "checkpoint.ckpt").exists()
    run(spec(*EVERYTHING), tmp_path)
    assert [event["checkpoint"] for event in read(directory) if event["event"] == "resumed"] == ["none"]
    assert same(final_weights[-1], unbroken[1])


# ---------------------------------------------------------------- what is trained on, and what is scored on


def _poison(monkeypatch: pytest.MonkeyPatch, name: str, *, part: slice) -> None:
    """From now on, that part of the split has other pixels and other labels."""
    original = catalog.load_split
    monkeypatch.setattr(remeasure.runs.splits, "_LOADED", {})

    def load(spec: Any, split: Any, **rest: Any) -> Split:
        loaded = original(spec, split, **rest)
        if split != name:
            return loaded
        images, labels = loaded.images.copy(), loaded.labels.copy()
        images[part], labels[part] = 255 - images[part], (labels[part] + 1) % 10
        return Split(images=images, labels=labels, verified=True)  # or its fingerprint would be missed

    monkeypatch.setattr(catalog, "load_split", load)


def _forbid_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    original = catalog.load_split

    def load(spec: Any, split: Any, **rest: Any) -> Split:
        assert split == "train"
        return original(spec, split, **rest)

    monkeypatch.setattr(catalog, "load_split", load)


def test_official_test_split_is_never_trained_on(
    tmp_path: Path, final_weights: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = run(spec(), tmp_path / "clean")
    _poison(monkeypatch, "test", part=slice(None))
    poisoned = run(trained.spec.__wrapped__("steps_per_block=4"), tmp_path / "poisoned")  # not the cached one
    assert same(*final_weights)
    assert poisoned.record.accuracy_percent < 50 < 80 < clean.record.accuracy_percent


def test_official_test_split_is_read_once_and_after_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    original = catalog.load_split

    def load(spec: Any, split: Any, **rest: Any) -> Split:
        happened.append(split)
        return original(spec, split, **rest)

    a_spec = spec()
    monkeypatch.setattr(catalog, "load_split", load)
    run(a_spec, tmp_path, sink=lambda _, event: happened.append(event["event"]))
    assert happened == ["train", "started", "epoch", "epoch", "test", "epoch", "finished"]


def test_tuning_never_reads_the_test_split_and_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_the_test_split(monkeypatch)
    outcome = run(spec(*TUNING), tmp_path, seed=1000)
    assert outcome.record.num_test == 297
    assert not (outcome.directory / "record.json").exists()
    assert points(outcome)[-1]["split"] == "validation"
    assert outcome.record.accuracy_percent == points(outcome)[-1]["accuracy_percent"]


def test_a_seed_that_diverges_does_not_read_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, tuning = spec(*WILD), spec(*WILD, *TUNING)
    _forbid_the_test_split(monkeypatch)
    assert run(final, tmp_path).record.num_test == 500
    assert run(tuning, tmp_path, seed=1000).record.num_test == 297


def test_images_held_back_for_validation_are_not_trained_on(
    tmp_path: Path, final_weights: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = run(spec(*TUNING), tmp_path / "clean", seed=1000)
    expected = final_weights[-1]  # those before are scored between epochs
    _poison(monkeypatch, "train", part=slice(1000, None))
    poisoned = run(spec(*TUNING), tmp_path / "poisoned", seed=1000)
    assert same(expected, final_weights[-1])
    assert poisoned.record.accuracy_percent < 50 < 80 < clean.record.accuracy_percent
    _poison(monkeypatch, "train", part=slice(999, None))
    run(spec(*TUNING), tmp_path / "one more", seed=1000)
    assert not same(expected, final_weights[-1])


# ---------------------------------------------------------------- how a run ends


def test_a_seed_that_diverges_has_a_record_without_an_accuracy(tmp_path: Path) -> None:
    outcome = run(spec(*WILD), tmp_path)
    record = outcome.record
    found = (record.accuracy_percent, record.num_correct, record.loss, record.predicted_sha256)
    assert found == (None, None, None, None)
    assert names(outcome.directory) == ["started", "finding", "diverged", "finished"]
    diverged = read(outcome.directory)[2]
    assert diverged["epoch"] == 0
    assert diverged["reason"].endswith(f"is not finite in step {diverged['step']} (epoch 1)")
    assert json.loads((outcome.directory / "record.json").read_text())["accuracy_percent"] is None
    assert run(spec(*WILD), tmp_path).reused


def test_images_that_are_not_numbers_diverge_in_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_is_nan(images: Tensor, **rest: Any) -> Tensor:
        normal = original(images, **rest)
        normal[0, 0, 0, 0] = torch.nan
        return normal

    original = remeasure.training.augment.normalise
    monkeypatch.setattr(remeasure.training.augment, "normalise", one_is_nan)
    outcome = run(spec(), tmp_path)
    assert outcome.record.accuracy_percent is None
    _, finding, diverged, _ = read(outcome.directory)
    assert finding["name"] == "not finite"
    assert (diverged["epoch"], diverged["step"]) == (0, 0)


def test_a_net_that_its_very_last_step_blew_up_has_diverged(tmp_path: Path) -> None:
    last_step = ("recipe.epochs_total=1", "recipe.batch_size=1297", "recipe.clip_norm=null")
    outcome = run(spec("recipe.optimizer={name: sgd, lr_peak: 3.0e+38}", *last_step), tmp_path)
    assert outcome.record.accuracy_percent is None
    assert names(outcome.directory) == ["started", "epoch", "finding", "diverged", "finished"]
    assert not (outcome.directory / "predictions.npz").exists()


@pytest.mark.parametrize(
    ("error", "event"),
    [(CutError("disk on fire"), "failed"), (SystemExit(143), "interrupted")],
    ids=["exception", "signal"],
)
def test_what_stops_a_run_is_journaled_and_raised(error: BaseException, event: str, tmp_path: Path) -> None:
    def sink(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event["event"] == "epoch":
            raise error

    with pytest.raises(type(error)) as raised:
        run(spec(), tmp_path, sink=sink)
    assert raised.value is error
    *_, last = read(the_only(tmp_path))
    assert (last["event"], last["reason"]) == (event, repr(error))
    assert not (the_only(tmp_path) / "record.json").exists()


def test_a_disk_that_fills_up_is_no_interruption(tmp_path: Path) -> None:
    """The journal cannot take it, so the sink alone gets why the run failed; the journal's last event stays."""
    events, (soft, hard) = list[Event](), resource.getrlimit(resource.RLIMIT_FSIZE)

    def sink(directory: Path, event: Event) -> None:  # noqa: ARG001
        events.append(event)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if event["event"] == "epoch" else soft, hard))

    with pytest.raises(OSError, match=r"File too large: .*/runs/"):
        run(spec(), tmp_path, sink=sink)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [event["event"] for event in events] == ["started", "epoch", "failed"]
    assert "File too large" in events[-1]["reason"]
    assert read(the_only(tmp_path))[-1]["event"] == "epoch"


def test_the_directory_tells_the_whole_run(tmp_path: Path) -> None:
    outcome = run(spec(), tmp_path, seed=7, row="mlp2-digits")
    record, directory = outcome.record, outcome.directory
    with np.load(directory / "predictions.npz", allow_pickle=False) as archive:
        predicted, confidence = archive["predicted"], archive["confidence"]
    labels = catalog.load_split(spec().data, "test", root=tmp_path).labels
    assert (predicted == labels).sum() == record.num_correct
    assert record.accuracy_percent == 100 * record.num_correct / 500
    assert confidence.dtype == np.float16
    config = yaml.safe_load((directory / "config.yaml").read_text())
    assert (config["row"], config["seed"]) == ("mlp2-digits", 7)
    assert config["recipe"]["optimizer"]["lr_peak"] == 0.001
    with np.load(directory / "filters.npz", allow_pickle=False) as archive:
        assert archive["weights"].shape == (256, 64)
    started, *_, last, finished = read(directory)
    assert (started["row"], started["seed"], started["epochs_total"]) == ("mlp2-digits", 7, 2)
    assert (last["epoch"], last["split"], last["accuracy_percent"]) == (2, "test", record.accuracy_percent)
    assert finished["record"] == dataclasses.asdict(record)
    assert (record.commit, record.dirty) == ("unknown", None)
    assert not (directory / "diff.patch").exists()


def test_another_seed_begins_with_other_weights(tmp_path: Path, final_weights: list[Weights]) -> None:
    """A rate of next to nothing leaves them where they began."""
    still = spec("recipe.optimizer={name: sgd, lr_peak: 1.0e-30}")
    for seed in (0, 1):
        run(still, tmp_path, seed=seed)
    first, second = final_weights
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_every_event_reaches_the_sink_after_the_journal(tmp_path: Path) -> None:
    lags = []
    run(spec(), tmp_path, sink=lambda directory, event: lags.append(read(directory)[-1] == event))
    assert lags == [True] * 5


def test_a_run_leaves_the_process_as_it_found_it(tmp_path: Path) -> None:
    tiny = torch.tensor(1e-40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    flushed = []
    run(spec(), tmp_path, sink=lambda *_: flushed.append((float(tiny * 1.0), torch.get_num_threads())))
    assert set(flushed) == {(0.0, 1)}
    assert float(tiny * 1.0) > 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


@pytest.mark.parametrize("compiled", [True, False])
def test_compile_compiles(compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that takes no C++ compiler, and none of the 20 s."""
    calls: list[nn.Module] = []
    original = nn.Module.compile

    def compile_eagerly(module: nn.Module) -> None:
        calls.append(module)
        original(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    record = run(spec(f"compile={compiled}".lower()), tmp_path).record
    assert len(calls) == compiled
    assert record.accuracy_percent > 80


# ---------------------------------------------------------------- attempts


def test_a_finished_run_is_returned_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(spec(), tmp_path)
    monkeypatch.setattr(remeasure.training.engines.loop, "train", lambda *_, **__: pytest.fail("trained again"))
    again = run(spec(), tmp_path)
    assert (again.reused, again.record, again.directory) == (True, first.record, first.directory)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run(spec(), tmp_path, seed=1)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run(spec("recipe.optimizer.lr_peak=0.002"), tmp_path)


def test_fresh_trains_a_new_attempt_and_the_newest_wins(tmp_path: Path) -> None:
    first = run(spec(), tmp_path)
    second = run(spec(), tmp_path, fresh=True)
    assert not second.reused
    assert [first.directory.name[-3:], second.directory.name[-3:]] == ["-a1", "-a2"]
    assert without_times(first.record) == without_times(second.record)
    assert run(spec(), tmp_path).directory == second.directory


# ---------------------------------------------------------------- two processes

WORKER = """
import json, os, sys
from pathlib import Path
from tests.support import trained
from remeasure.runs.journal import read

folder, a_spec = Path(sys.argv[1]), trained.spec("model=mlp4", "recipe.epochs_total=3")

def sink(directory, event):
    if event["event"] == "epoch" and event["split"] == "train":
        print("epoch", event["epoch"], flush=True)
        sys.stdin.readline()

print("ready", flush=True)
for seed in (0, 1):
    sys.stdin.readline()
    outcome = trained.run(a_spec, folder, seed=seed, sink=sink)
    print(json.dumps([outcome.reused, outcome.record.num_correct]), flush=True)
"""


TWO_PROCESSES_SECONDS = 180  # a deadlock would otherwise last for ever


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that trains seed 0, then seed 1, in step with lines on its stdin. All are killed afterwards."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "work").mkdir()

    def start_one() -> subprocess.Popen[str]:
        environment = forking.environment(PYTHONPATH=os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ["-c", WORKER, str(tmp_path)]
        started.append(forking.popen(command, env=environment, cwd=tmp_path / "work", text=True, bufsize=1, **pipes))
        return started[-1]

    watchdog = threading.Timer(TWO_PROCESSES_SECONDS, lambda: [process.kill() for process in started])
    watchdog.start()
    yield start_one
    watchdog.cancel()
    for process in started:
        process.kill()
        process.communicate()


def _tell(process: subprocess.Popen[str], *, lines: int = 1) -> None:
    process.stdin.write("\n" * lines)
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def test_two_processes_share_a_run_and_the_second_goes_on_when_the_first_is_killed(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    one, two = start(), start()
    assert [_hear(one), _hear(two)] == ["ready", "ready"]

    _tell(one)  # both at seed 0: one trains, two waits for it and takes what it found
    assert _hear(one) == "epoch 1"
    _tell(two)
    _tell(one, lines=3)
    assert [_hear(one), _hear(one)] == ["epoch 2", "epoch 3"]
    trained, waited = json.loads(_hear(one)), json.loads(_hear(two))
    assert [trained[0], waited[0]] == [False, True]
    assert trained[1] == waited[1] > 400

    _tell(one)  # seed 1: one is killed without a chance to say goodbye, and two takes over
    assert _hear(one) == "epoch 1"
    (directory,) = (tmp_path / "runs").glob("*-s1-a1")
    _tell(two)
    one.send_signal(signal.SIGKILL)
    one.wait()
    assert not (directory / "record.json").exists()
    _tell(two, lines=3)
    heard, errors = two.communicate()
    assert json.loads(heard.splitlines()[-1])[0] is False
    assert names(directory) == ["started", "epoch", "resumed", *["epoch"] * 4, "finished"]

    said = [
        line for line in errors.splitlines() if not line.startswith("waiting for another process")
    ]  # a slow machine
    assert said == [], "Lightning and torch print nothing"
    assert [line for line in heard.splitlines() if not line.startswith(("epoch", "["))] == []
    assert list((tmp_path / "work").iterdir()) == [], "nothing is left in the working directory"


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_best_device_and_a_named_one_must_be_there(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.resolve_device("auto") == best
    assert device.resolve_device("cpu") == "cpu"
    there = ", ".join([*["cuda"] * cuda, *["mps"] * mps, "cpu"])
    for name in ["tpu", *["cuda"] * (not cuda)]:
        with pytest.raises(InputError) as raised:
            device.resolve_device(name)
        assert str(raised.value) == f"device: this machine has no {name!r}; it has {there} (or say auto)"
