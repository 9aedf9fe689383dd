"""The validation curve: scored after each epoch as at the end, and without an effect on the training."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tests.support import trained

from remeasure.models import saved
from remeasure.runs.execute import execute
from remeasure.runs.folder import Outcome
from remeasure.runs.journal import curve, read
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.training.engines.steps import TrainingModule

HELD_BACK = "data.num_validation=297"
TUNING = (HELD_BACK, "data.split=validation", "seed=1000")
NUMBERS = ("loss", "accuracy_percent")
# Dropout, batch normalisation, distortions, Adam, an average of weights from epoch 2 on.
EVERYTHING = (
    *("model=mlp4", "model.options.hidden_sizes=[32,32]", "model.options.batch_norm=true", "recipe=lenet5"),
    *("recipe.epochs_total=3", "recipe.schedule.epochs_warmup=1"),
    *("recipe.averaging={from_epoch: 2, decay: 0.9}", "steps_per_block=4"),
)
STOPPING = ("+callback=early_stopping", "callback.early_stopping.options.monitor=validation_loss")
LOST = "callback.early_stopping.options={monitor: validation_loss, patience: 1, min_delta: 10.0}"


class CutError(Exception):
    """The run ends here, as if its process were killed."""


def own(name: str) -> str:
    """The override that adds a callback of this file."""
    return f"+callback.own={{builder: '{__name__}:{name}', options: {{}}}}"


def points(outcome: Outcome) -> list[dict[str, Any]]:
    """The curve without its times."""
    events = curve(read(outcome.directory))
    return [{key: value for key, value in event.items() if key not in ("time", "seconds")} for event in events]


def numbers(outcome: Outcome, *, split: str) -> list[tuple[float, float]]:
    """Loss and accuracy of each time that the split was scored or trained on, in this order."""
    events = [event for event in read(outcome.directory) if event["event"] == "epoch" and event["split"] == split]
    return [(event["loss"], event["accuracy_percent"]) for event in events]


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("engine", ["serial", "numpy", "batched"])
def test_each_epoch_is_scored_before_its_report_and_the_last_one_as_the_run_is(engine: str, tmp_path: Path) -> None:
    width = ("engine_width=2",) if engine == "batched" else ()
    outcomes = trained.run_together(trained.spec(*TUNING, f"engine={engine}", *width), tmp_path, seed=1000)
    for outcome in outcomes:
        events = [event for event in read(outcome.directory) if event["event"] == "epoch"]
        found = [(event["epoch"], event["split"], event["step"]) for event in events]
        each = [(epoch, split, 16 * epoch) for epoch in (1, 2) for split in ("validation", "train")]
        assert found == [*each, (2, "validation", None)]
        first, last, final = numbers(outcome, split="validation")
        assert first != last == final
    assert len({tuple(numbers(outcome, split="validation")) for outcome in outcomes}) == len(outcomes)


def test_a_run_that_is_scored_on_the_test_split_has_it_too_and_others_have_none(tmp_path: Path) -> None:
    splits = [
        [point["split"] for point in points(trained.run(trained.spec(*overrides), tmp_path))]
        for overrides in ((HELD_BACK,), ())
    ]
    assert splits == [["train", "validation", "test", "train", "validation"], ["train", "test", "train"]]


def test_an_average_is_scored_from_the_epoch_on_in_which_it_begins(tmp_path: Path) -> None:
    averaging = "recipe.averaging={from_epoch: 2, decay: 0.9}"
    plain, averaged = (trained.run(trained.spec(*TUNING, *more), tmp_path, seed=1000) for more in ((), (averaging,)))
    assert numbers(plain, split="train") == numbers(averaged, split="train")
    of_plain, of_averaged = (numbers(outcome, split="validation") for outcome in (plain, averaged))
    assert of_plain[0] == of_averaged[0]
    assert of_plain[1] != of_averaged[1] == of_averaged[2]


def test_an_average_that_has_not_begun_when_training_is_stopped_is_not_scored(tmp_path: Path) -> None:
    late = ("recipe.epochs_total=6", "recipe.averaging={from_epoch: 6, decay: 0.9}")
    outcome = trained.run(trained.spec(*TUNING, *late, *STOPPING, LOST), tmp_path, seed=1000)
    assert outcome.record.epochs == 2
    assert (outcome.record.loss, outcome.record.accuracy_percent) == numbers(outcome, split="validation")[1]
    assert numbers(outcome, split="validation")[1][1] > 80


# ---------------------------------------------------------------- what it leaves alone


def test_the_training_is_the_same_to_the_last_bit_without_it(tmp_path: Path) -> None:
    spec = trained.spec(*EVERYTHING, HELD_BACK)
    found = []
    for name in ("with", "without"):
        place = dataclasses.replace(trained.place(tmp_path / name), curve=name == "with")
        outcome = execute(spec, seed=0, row="", place=place, sink=trained.quiet, keeps=[0])
        kept = [point for point in points(outcome) if point["split"] != "validation"]
        findings = [event["name"] for event in read(outcome.directory) if event["event"] == "finding"]
        found.append((kept, findings, outcome.record.predicted_sha256))
        found.append(trained.weights(saved.load(outcome.directory).network))
        assert (len(points(outcome)) > len(kept)) == (name == "with")
    assert found[0] == found[2]
    assert trained.same(found[1], found[3])


@pytest.mark.parametrize("split", ["validation", "train"])
def test_a_run_that_was_cut_short_resumes_to_the_same_curve(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    spec = trained.spec(*EVERYTHING, HELD_BACK, *STOPPING)

    def cut(directory: Path, event: Event) -> None:  # noqa: ARG001
        if event.get("epoch") == 2 and event["split"] == split:
            raise CutError

    whole = trained.run(spec, tmp_path / "whole")
    with pytest.raises(CutError):
        trained.run(spec, tmp_path / "cut", sink=cut)
    resumed = trained.run(spec, tmp_path / "cut")
    assert "resumed" in [event["event"] for event in read(resumed.directory)]
    assert points(resumed) == points(whole)
    assert resumed.record.predicted_sha256 == whole.record.predicted_sha256


# ---------------------------------------------------------------- callbacks


class Remembers(Callback):
    """Keeps what callbacks can monitor, at the end of each epoch."""

    seen: list[dict[str, float]]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_callbacks_can_monitor_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No epoch lowers the validation loss by 10, so that the second one is the last."""
    monkeypatch.setattr(Remembers, "seen", [], raising=False)
    six = trained.spec(HELD_BACK, "recipe.epochs_total=6", *STOPPING, LOST, own("Remembers"))
    outcome = trained.run(six, tmp_path)
    assert outcome.record.epochs == 2
    for split in ("train", "validation"):
        found = [tuple(seen[f"{split}_{name}"] for name in NUMBERS) for seen in Remembers.seen]
        assert found == [pytest.approx(pair, rel=1e-6) for pair in numbers(outcome, split=split)]


class Breaks(Callback):
    """Makes the weights infinite at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.current_epoch == 1:
            with torch.no_grad():
                next(pl_module.network.parameters()).fill_(torch.inf)


def test_the_replay_of_a_run_that_diverged_has_it_for_callbacks_and_journals_nothing(tmp_path: Path) -> None:
    spec: RunSpec = trained.spec(HELD_BACK, own("Breaks"), *STOPPING)
    outcome = trained.run(spec, tmp_path)
    assert outcome.record.accuracy_percent is None
    events = read(outcome.directory)
    assert [(event["epoch"], event["split"]) for event in events if event["event"] == "epoch"] == [
        (1, "validation"),
        (1, "train"),
    ]
    assert " of " in next(event["reason"] for event in events if event["event"] == "diverged")  # a replay named it
