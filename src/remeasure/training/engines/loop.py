"""Lightning's loop: train from the checkpoint to the last epoch, with reports and checkpoints."""

import math
import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.system.paths import checkpoint_seconds, naming
from remeasure.training.checkpoints import keep_checkpoint, unusable
from remeasure.training.engines.base import Report
from remeasure.training.engines.steps import TrainingModule

CHECKPOINT_SECONDS = checkpoint_seconds(30.0)
HARMLESS_WARNINGS = (
    r".*treespec, LeafSpec.*is deprecated",  # Lightning 2.6 calls a torch function that torch has deprecated
    r"The number of training batches",  # few are intended: one is a block of steps
    r"You're resuming from a checkpoint that ended before the epoch",  # the position follows from num_steps
)
# Errors that a checkpoint of another run can raise when it is restored, or in the first block after that.
MISFITS = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError),
    *(RuntimeError, MisconfigurationException),
)
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)  # RuntimeErrors that the checkpoint did not cause
TRAINER_PRECISION: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class CheckpointCallback(Callback):
    """Reports each epoch of each seed, and checkpoints at the end of a block once `interval_seconds` have passed, on
    all devices together. `checkpoint` None: it writes none.

    `has_trained`: whether a block was trained in this process; `ended`: the last epoch and step that were reported.
    """

    def __init__(self, checkpoint: Path | None, *, reports: Sequence[Report], interval_seconds: float) -> None:
        self.checkpoint, self._reports, self._interval_seconds = checkpoint, reports, interval_seconds
        self.has_trained, self.ended = False, (0, 0)
        self.wall_seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.epoch_started = self.started

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, including those before an interruption."""
        return self.wall_seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wall_seconds_before = state_dict["wall_seconds"]
        if not 0 <= self.wall_seconds_before < math.inf:
            raise ValueError(f"wall_seconds: {self.wall_seconds_before}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Raises ValueError if kernels would read or write beyond the tensors of a restored optimiser state."""
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, torch.optim.LBFGS):  # has no kernel of its own and raises
                for parameter, state in optimizer.state.items():
                    _refuse_misshapen(state, parameter=parameter)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.epoch_started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.has_trained = True
        num_steps = pl_module.num_steps  # an epoch's last block is saved after its report
        if num_steps % pl_module.steps_per_epoch and pl_module.ends_block(num_steps):
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.ended = trainer.current_epoch + 1, pl_module.num_steps  # on every device; the first one reports
        point = {"epoch": trainer.current_epoch + 1, "step": pl_module.num_steps, "split": "train"}
        more = {
            "lr": pl_module.learning_rate(pl_module.num_steps - 1),
            "seconds": round(time.monotonic() - self.epoch_started, 3),
        }
        totals = pl_module.totals()
        for index, report in enumerate(self._reports) if trainer.is_global_zero else ():
            if index not in pl_module.diverged:
                report(point | totals[index] | more)
        if trainer.current_epoch + 1 < pl_module.recipe.epochs_total:
            self._save_when_due(trainer)

    def _save_when_due(self, trainer: Trainer) -> None:
        """The first device's clock decides, as clocks differ. All devices take part in saving; the first one writes."""
        if self.checkpoint is None:
            return
        due = trainer.strategy.broadcast(time.monotonic() - self.saved >= self._interval_seconds)
        if not due or not trainer.lightning_module.is_finite:
            return
        partial = self.checkpoint.with_suffix(".partial")
        with naming(partial):
            trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            keep_checkpoint(partial, self.checkpoint)
        self.saved = time.monotonic()


def _refuse_misshapen(state: Mapping[str, Any], *, parameter: Tensor) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        shape, dtype = (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
        whole = value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        if value.shape != shape or value.dtype != dtype or not whole:
            raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}")


def train(
    training: TrainingModule,
    *,
    spec: RunSpec,
    device_kind: str,
    checkpoint: Path | None,
    reports: Sequence[Report],
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train on blocks to the last epoch, from the checkpoint if there is one; returns wall seconds.

    `reports`: for each seed, a function that gets its epochs. Raises DivergenceError once all seeds have diverged.
    """
    keeper = CheckpointCallback(checkpoint, reports=reports, interval_seconds=CHECKPOINT_SECONDS)
    blocks = range(math.ceil(training.steps_per_epoch / training.steps_per_block))
    fit(training, spec=spec, device_kind=device_kind, keeper=keeper, callbacks=callbacks, batches=blocks, devices=1)
    return keeper.wall_seconds


def fit(
    module: TrainingModule,
    *,
    spec: RunSpec,
    device_kind: str,
    keeper: CheckpointCallback,
    batches: range | None,
    callbacks: Sequence[Callback] = (),
    harmless: Sequence[str] = HARMLESS_WARNINGS,
    **machines: Any,
) -> None:
    """Run Lightning's loop to the last epoch, from the keeper's checkpoint if there is one.

    `batches`: what it iterates over; None: the module's own loader. `machines`: the Trainer's arguments for devices.
    """
    with warnings.catch_warnings():
        for message in harmless:
            warnings.filterwarnings("ignore", message=message)
        trainer = Trainer(
            accelerator=device_kind,
            **machines,
            precision=TRAINER_PRECISION[spec.precision],
            max_epochs=spec.recipe.epochs_total,
            callbacks=[keeper, *callbacks],  # in this order: the keeper first reports the epoch
            deterministic="warn" if device_kind == "cuda" else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            # One device takes nothing from the variables of SLURM or torchrun, which a job script may have left.
            plugins=[LightningEnvironment()] if machines.get("strategy", "auto") == "auto" else None,
        )
        checkpoint = keeper.checkpoint if keeper.checkpoint and keeper.checkpoint.exists() else None
        try:
            trainer.fit(module, train_dataloaders=batches, ckpt_path=checkpoint, weights_only=True)
        except MISFITS as error:
            if checkpoint is None or keeper.has_trained or isinstance(error, (InputError, *DEVICE_ERRORS)):
                raise
            raise unusable(checkpoint, f"{type(error).__name__}: {error}") from error
        expected = spec.recipe.epochs_total, spec.recipe.epochs_total * module.steps_per_epoch
        if checkpoint and keeper.ended != expected:
            raise unusable(checkpoint, f"expected to end with epoch and step {expected}, ended with {keeper.ended}")
