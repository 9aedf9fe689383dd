"""Lightning's loop: train from the checkpoint to the last epoch, with reports and checkpoints."""

import math
import pickle
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.system.paths import checkpoint_seconds, naming
from remeasure.training.checkpoints import keep_checkpoint, unusable
from remeasure.training.engines.base import Report
from remeasure.training.engines.callbacks import Kept, SettingsStay, blamed, built
from remeasure.training.engines.steps import TrainingModule
from remeasure.training.photographs.connected import Connected
from remeasure.training.photographs.world import ALONE, World

HARMLESS_WARNINGS = (
    r".*treespec, LeafSpec.*is deprecated",  # Lightning 2.6 calls a torch function that torch has deprecated
    r"The number of training batches",  # few are intended: one is a block of steps
    r"You're resuming from a checkpoint that ended before the epoch",  # the position follows from num_steps
    r"The `srun` command is available",  # advice that is given wherever Slurm is installed
    r"It is recommended to use `self.log\('train_.*sync_dist=True",  # the totals are those of all devices already
)
# Errors that a checkpoint of another run can raise when it is restored, or in the first block after that.
MISFITS = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError),
    *(RuntimeError, MisconfigurationException),
)
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)  # RuntimeErrors that the checkpoint did not cause
TRAINER_PRECISION: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


Validate = Callable[[TrainingModule, int], Mapping[str, float]]  # gets a seed's position


class EpochReports(Callback):
    """Reports each epoch of each seed, before any other callback acts on it: the validation score, if `validate` gives
    one, then the training.

    It logs `train_loss`, `train_accuracy_percent`, `validation_loss` and `validation_accuracy_percent` of a seed that
    trains alone, for callbacks that monitor them. `ended`: the last epoch and step that were reported.
    """

    def __init__(self, reports: Sequence[Report], *, validate: Validate | None = None) -> None:
        self._reports, self._validate = reports, validate
        self.ended, self._started = (0, 0), time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.ended = trainer.current_epoch + 1, pl_module.num_steps  # on every device; the first one reports
        point = {"epoch": trainer.current_epoch + 1, "step": pl_module.num_steps}
        more = {
            "lr": pl_module.learning_rate(pl_module.num_steps - 1),
            "seconds": round(time.monotonic() - self._started, 3),
        }
        totals, scores = pl_module.totals(), dict[str, float]()
        for index, report in enumerate(self._reports) if trainer.is_global_zero else ():
            if index in pl_module.diverged:
                continue
            if self._validate:
                began = time.monotonic()
                scores = dict(self._validate(pl_module, index))
                seconds = round(time.monotonic() - began, 3)
                report(point | {"split": "validation", **scores, "lr": None, "seconds": seconds})
            report(point | {"split": "train", **totals[index], **more})
        if len(totals) == 1:
            logged = {f"train_{name}": value for name, value in totals[0].items()}
            logged |= {f"validation_{name}": value for name, value in scores.items()}
            pl_module.log_dict(logged, batch_size=1)


class CheckpointCallback(Checkpoint):
    """Checkpoints at the end of a block once `interval_seconds` have passed, on all devices together, after all other
    callbacks: Lightning calls those of type Checkpoint last, so that their states are those of the same step.
    `checkpoint` None: it writes none.

    `has_trained`: whether a block was trained in this process.
    """

    def __init__(self, checkpoint: Path | None, *, interval_seconds: float) -> None:
        self.checkpoint, self._interval_seconds = checkpoint, interval_seconds
        self.has_trained = False
        self.wall_seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.started

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

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.has_trained = True
        num_steps = pl_module.num_steps  # an epoch's last block is saved after its report
        if num_steps % pl_module.steps_per_epoch and pl_module.ends_block(num_steps):
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.current_epoch + 1 < pl_module.recipe.epochs_total and not trainer.should_stop:
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
    module: TrainingModule,
    *,
    spec: RunSpec,
    device_kind: str,
    checkpoint: Path | None,
    reports: Sequence[Report],
    callbacks: Sequence[Callback] = (),
    validate: Validate | None = None,
    between: float = 30.0,
    world: World = ALONE,
) -> float:
    """Run Lightning's loop to the last epoch, or to the end of the epoch in which a callback of the spec stops it, from
    the checkpoint if there is one; returns wall seconds.

    `reports`: for each seed, a function that gets its epochs. `validate`: scores a seed after each epoch. `between`:
    seconds between checkpoints, unless REMEASURE_CHECKPOINT_SECONDS says otherwise. `world`: the connected processes
    that train together. Raises DivergenceError once all seeds have diverged.
    """
    reporter = EpochReports(reports, validate=validate)
    keeper = CheckpointCallback(checkpoint, interval_seconds=checkpoint_seconds(between))
    plugins = built(spec.callbacks, in_blocks=not module.automatic_optimization)
    own = [kept := Kept(), *plugins, SettingsStay(kept, plugins=spec.callbacks)] if plugins else []
    alone = world.size == 1
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        trainer = Trainer(
            accelerator=device_kind,
            devices=world.devices,
            num_nodes=world.num_nodes,
            strategy="auto" if alone else "ddp",
            precision=TRAINER_PRECISION[spec.precision],
            max_epochs=spec.recipe.epochs_total,
            callbacks=[reporter, *own, *callbacks, keeper],
            deterministic="warn" if device_kind == "cuda" else None,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            # Lightning takes nothing from the variables of SLURM or torchrun, which a job script may have left.
            plugins=[LightningEnvironment() if alone else Connected(world)],
        )
        start = checkpoint if checkpoint and checkpoint.exists() else None
        try:
            trainer.fit(module, ckpt_path=start, weights_only=True)
        except Exception as error:
            if fault := blamed(error, callbacks=plugins):
                raise fault from error
            misfit = isinstance(error, MISFITS) and not isinstance(error, (InputError, *DEVICE_ERRORS))
            if misfit and start and not keeper.has_trained:
                raise unusable(start, f"{type(error).__name__}: {error}") from error
            raise
        epochs = reporter.ended[0] if trainer.should_stop else spec.recipe.epochs_total
        expected = epochs, epochs * module.steps_per_epoch
        if reporter.ended != expected and spec.callbacks:
            raise InputError(
                f"callback: training was stopped after step {module.num_steps}, within an epoch of "
                f"{module.steps_per_epoch} steps; a callback must stop it at the end of an epoch (on_train_epoch_end)"
            )
        if start and reporter.ended != expected:
            raise unusable(start, f"expected to end with epoch and step {expected}, ended with {reporter.ended}")
    return keeper.wall_seconds
