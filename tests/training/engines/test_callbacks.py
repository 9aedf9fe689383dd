"""Callbacks of a config: part of what is trained, resumed exactly, and refused by name where they cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tests.support import trained

from remeasure.runs.journal import read
from remeasure.spec.base import InputError
from remeasure.training.engines.base import refuse_callbacks

# Epoch 2 does not lower the loss by as much as 1: stopped after 2 of 6 epochs.
STOPPED = (
    *("+callback=early_stopping", "recipe.epochs_total=6"),
    *("callback.early_stopping.options.patience=1", "callback.early_stopping.options.min_delta=1.0"),
)
NEVER_BETTER = ("callback.early_stopping.options.patience=3", "callback.early_stopping.options.min_delta=10.0")


def own(name: str) -> str:
    """The override that adds a callback of this file."""
    return f"+callback.own={{builder: '{__name__}:{name}', options: {{}}}}"


def test_the_record_holds_the_epochs_that_were_trained(tmp_path: Path) -> None:
    outcome = trained.run(trained.spec(*STOPPED), tmp_path)
    assert outcome.record.epochs == 2
    epochs = [(event["epoch"], event["split"]) for event in read(outcome.directory) if event["event"] == "epoch"]
    assert epochs == [(1, "train"), (2, "train"), (2, "test")]


def test_a_callback_is_part_of_a_runs_identity_where_there_is_one() -> None:
    plain, other = trained.spec("recipe.epochs_total=6"), "callback.early_stopping.options.min_delta=0.5"
    hashes = {spec.spec_sha256 for spec in (plain, trained.spec(*STOPPED), trained.spec(*STOPPED, other))}
    assert len(hashes) == 3
    assert trained.spec("recipe.epochs_total=6", "callback=[]").spec_sha256 == plain.spec_sha256


class Interrupt(Callback):
    """Ends the process after the second epoch, as a signal does."""

    on = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self.on and trainer.current_epoch == 2:
            raise SystemExit(130)


def test_a_callback_with_a_state_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With patience 3 it stops after epoch 4; a state that is lost, or one epoch old, would stop it later."""
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    spec = trained.spec(*STOPPED, *NEVER_BETTER, own("Interrupt"))
    whole = trained.run(spec, tmp_path / "whole")
    monkeypatch.setattr(Interrupt, "on", True)
    with pytest.raises(SystemExit):
        trained.run(spec, tmp_path / "cut")
    monkeypatch.setattr(Interrupt, "on", False)
    resumed = trained.run(spec, tmp_path / "cut")
    assert (whole.record.epochs, resumed.record.epochs) == (4, 4)
    assert resumed.record.predicted_sha256 == whole.record.predicted_sha256
    assert "resumed" in [event["event"] for event in read(resumed.directory)]


class Faulty(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.broken(trainer, pl_module)

    def broken(self, *_: object) -> None:
        raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("+callback=early_stopping", "callback.early_stopping.options.monitor=val_los"), "EarlyStopping: .*`val_los`"),
        ((*STOPPED, "callback.early_stopping.options.patience=x"), "EarlyStopping: TypeError: "),
        ((own("Faulty"),), r"Faulty: KeyError: 'no such thing' \(test_callbacks.py, line \d+\)"),
    ],
)
def test_what_a_callback_raises_is_told_by_its_name(overrides: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^callback: {fault}"):
        trained.run(trained.spec(*overrides), tmp_path)


class LaterFaulty(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if trainer.current_epoch == 2:
            raise KeyError("no such thing")


def test_what_it_raises_right_after_a_resume_is_not_the_checkpoint_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    for _ in range(2):
        with pytest.raises(InputError, match=r"^callback: LaterFaulty: KeyError"):
            trained.run(trained.spec(own("LaterFaulty"), "recipe.epochs_total=4"), tmp_path)


def test_the_batched_engine_refuses_a_callback_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the batched engine takes none, got pytorch_lightning\.callbacks:EarlyStopping"
    ):
        trained.run_together(trained.spec(*STOPPED, "engine=batched", "engine_width=2"), tmp_path)


class Clips(Callback):
    """Would change gradients."""

    def on_after_backward(self, *_: Any) -> None:
        raise AssertionError


class StopsInMidEpoch(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True


class Halves(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.5


class Warms(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].param_groups[0]["lr"] = 1e-9


class DecaysMore(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.1


class EndsWithOtherBetas(Callback):
    """In the last block, after the check at its start."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.num_steps == 2 * 21:
            trainer.optimizers[0].param_groups[0]["betas"] = (0.5, 0.999)


class AddsAGroup(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("DecaysMore", r"DecaysMore changes the optimiser's weight_decay; .* recipe.optimizer: write it there"),
        ("EndsWithOtherBetas", "EndsWithOtherBetas changes the optimiser's betas"),
        ("AddsAGroup", "AddsAGroup changes the optimiser's parameter groups"),
        ("Halves", "Halves changes the learning rate, which recipe.schedule sets anew at each step"),
        ("Warms", "Warms changes the learning rate, which recipe.schedule sets anew at each step"),
        ("Clips", "Clips has on_after_backward, which is never called in blocks of steps"),
        ("StopsInMidEpoch", "stopped after step 5, within an epoch of 21 steps"),
    ],
)
def test_a_callback_that_would_not_do_what_it_says_is_refused(name: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=fault):
        trained.run(trained.spec(own(name), "steps_per_block=5"), tmp_path)


@pytest.mark.parametrize(
    ("name", "options"), [("EMAWeightAveraging", "{}"), ("StochasticWeightAveraging", "{swa_lrs: 0.1}")]
)
def test_an_average_that_would_never_move_is_refused(name: str, options: str) -> None:
    """Lightning's count of steps stands still in blocks, so that such a run would end with its initial weights."""
    callback = f"+callback.own={{builder: 'pytorch_lightning.callbacks:{name}', options: {options}}}"
    with pytest.raises(InputError, match=rf"callback: {name} .*averages by Lightning's count .* recipe.averaging="):
        refuse_callbacks(trained.spec(callback))
