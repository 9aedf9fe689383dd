"""Training and evaluation on one device: the Lightning module, its checkpoints, its predictions.

The images live on the device as uint8. One Lightning training step covers a block of optimiser steps of torch's own,
so that the framework's cost for each step vanishes: Lightning counts blocks, `Training.num_steps` the steps. All
randomness is a function of (seed, purpose, step), so that a resumed run repeats an unbroken one. On CUDA distortions
are drawn on the device, from the dropout masks' stream: a run's key has the device kind, so that streams may differ.
"""

import functools
import hashlib
import logging
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from remeasure import capture
from remeasure.controls import evaluated_with
from remeasure.paths import checkpoint_seconds, naming
from remeasure.recipe import CAPTURABLE, augment, build_optimizer, normalise, rate_of, resized, training_loss
from remeasure.rundir import keep_checkpoint, unusable
from remeasure.spec import InputError, Normalisation, Precision, Recipe, RunSpec

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no list of the accelerators it found
# Importing Lightning sets this to 1; without a GPU, torch's optimisers then search the disk for a driver at each step.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

CHECKPOINT_SECONDS = checkpoint_seconds(30.0)
EVALUATION_BATCH = 1000
HARMLESS_WARNINGS = (
    r".*treespec, LeafSpec.*is deprecated",  # Lightning 2.6 calls a torch function that torch has deprecated
    r"The number of training batches",  # few are the point: one holds a block of steps
    r"You're resuming from a checkpoint that ended before the epoch",  # where a step stands follows from num_steps
)
# What restoring a checkpoint, or the first block after it, makes of one that is none of this run.
MISFITS = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError),
    *(RuntimeError, MisconfigurationException),
)
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)  # which are RuntimeErrors, and not its doing
TRAINER_PRECISION: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class DivergenceError(ArithmeticError):
    """The loss is no longer finite. `epoch` and `step` (from 0) are where it was noticed, or by `reason` arose."""

    def __init__(self, *, epoch: int, step: int, reason: str = "") -> None:
        super().__init__(reason or f"the loss is not finite after step {step} (epoch {epoch + 1})")
        self.epoch, self.step = epoch, step


def derive(seed: int, *, purpose: str, step: int) -> int:
    """A 63-bit seed of its own for each (seed, purpose, step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()[:8], "big") >> 1


def permutation(num: int, *, seed: int, epoch: int) -> Tensor:
    """The order of `num` training images in an epoch, (num,) int64: a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive(seed, purpose="order", step=epoch))
    return torch.randperm(num, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What the batch of everything came to: the weights as one vector, their gradients, the loss (), the logits."""

    weights: Tensor
    gradients: list[Tensor | None]
    loss: Tensor
    logits: Tensor


class Training(LightningModule):
    """One seed's training of `network` on images (N, C, H, W) uint8 and labels (N,) int64, as the recipe says."""

    images: Tensor
    labels: Tensor
    loss_total: Tensor
    num_correct: Tensor

    def __init__(self, network: nn.Module, *, spec: RunSpec, seed: int, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        assert isinstance(spec.recipe, Recipe)
        self.automatic_optimization = False
        self.memory_format = memory_format(spec)
        self.network: nn.Module = network.to(memory_format=self.memory_format)
        self._trained = list(network.parameters())  # to walk through the modules at each step takes a while
        self.recipe, self.seed, self.steps_per_block = spec.recipe, seed, spec.steps_per_block
        self.precision_name = spec.precision
        self.average = AveragedModel(network, **_averaging(spec.recipe)) if spec.recipe.averaging else None
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("loss_total", torch.zeros(()))  # over this epoch's images so far; checkpoints keep both
        self.register_buffer("num_correct", torch.zeros((), dtype=torch.int64))
        self._mirrored_first = self._drawn_once(len(images)) if spec.recipe.augmentation.flips else None
        self.num_steps = 0  # optimiser steps done; checkpoints keep them
        self._whole: tuple[Tensor, Tensor] | None = None
        self._evaluated: Evaluated | None = None
        self._draws = any(isinstance(layer, nn.Dropout) for layer in network.modules())
        self._captured, self._compiled = capture.Captured(), spec.compile
        self._rate: Tensor | None = None  # the learning rate () where a graph reads it
        self.steps_per_epoch = math.ceil(len(images) / self.recipe.batch_size)
        self.blocks_per_epoch = math.ceil(self.steps_per_epoch / self.steps_per_block)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if capture.possible(self.device) and self.recipe.optimizer.name in CAPTURABLE:
            self._rate = torch.tensor(self.recipe.optimizer.lr_peak, device=self.device)
        return build_optimizer(
            self.network.parameters(),
            optimizer=self.recipe.optimizer,
            captured_rate=self._rate,
            precision=self.precision_name,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_steps"] = self.num_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.num_steps = checkpoint["num_steps"]
        if type(self.num_steps) is not int or not 0 <= self.num_steps < self.recipe.epochs_total * self.steps_per_epoch:
            raise ValueError(f"num_steps: {self.num_steps!r}")

    def on_train_epoch_start(self) -> None:
        """Begin the totals anew; Lightning does not call this after a resume in mid-epoch."""
        self.loss_total.zero_()
        self.num_correct.zero_()

    def training_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002 - a resumed loader restarts at 0
        """One block of optimiser steps; where it stands follows from `num_steps` alone. Its draws restart with it."""
        first = self.num_steps
        epoch, start = divmod(first, self.steps_per_epoch)
        torch.manual_seed(derive(self.seed, purpose="dropout", step=first))
        generator = self.generator(first)
        order = self.order(epoch).to(self.device)
        steps = []
        for index in range(start, min(start + self.steps_per_block, self.steps_per_epoch)):
            chosen = order[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size]
            steps.append(self._optimiser_step(chosen, step=epoch * self.steps_per_epoch + index, generator=generator))
        self.num_steps += len(steps)
        self._count(steps)
        self._check(epoch)

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of the training images, (N,) int64, a function of (seed, epoch).

        One batch of everything keeps their own order: sums then round alike in every epoch and after every resume.
        """
        if self.steps_per_epoch == 1:
            return torch.arange(len(self.images))
        return permutation(len(self.images), seed=self.seed, epoch=epoch)

    def generator(self, step: int) -> torch.Generator | None:
        """What distortions are drawn from in the block that begins with optimiser step `step`; None: as on CUDA, from
        the device's own stream, which the block has seeded and a graph can draw from.
        """
        if self.device.type == "cuda":
            return None
        return torch.Generator().manual_seed(derive(self.seed, purpose="augmentation", step=step))

    def _optimiser_step(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """One step at its rate, captured where that is possible; returns what `_step` does."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        rate = self.learning_rate(step)  # a checkpoint may have brought another tensor than the one that graphs read
        optimizer.param_groups[0]["lr"] = rate if self._rate is None else self._rate.fill_(rate)
        take = functools.partial(self._step, step=step, generator=generator, optimizer=optimizer)
        hooked = bool(optimizer._optimizer_step_post_hooks)  # the doctor looks at this step, which no replay calls
        if self._captures and len(chosen) == self.recipe.batch_size and not hooked:
            done = self._captured(take, chosen, key=self._graph_key(step))
        else:
            done = take(chosen)
        if self.average is not None and step >= (self._averaged_from - 1) * self.steps_per_epoch:
            self.average.update_parameters(self.network)
        return done

    @property
    def _averaged_from(self) -> int:
        assert self.recipe.averaging is not None
        return self.recipe.averaging.from_epoch

    @property
    def scored(self) -> nn.Module:
        """The network that is scored: the trained one, or the average of its weights."""
        return self.network if self.average is None else self.average.module

    @property
    def _captures(self) -> bool:
        return self._rate is not None and capture.wanted() and not self._compiled

    def _graph_key(self, step: int) -> Hashable:
        """All of step `step` that Python decides: its images' size, and which of them are mirrored."""
        resolution, epoch = self.recipe.resolution, step // self.steps_per_epoch
        odd = epoch % 2 if self.recipe.augmentation.flips else 0
        return resolution and resolution.pixels_at(epoch), odd

    def _drawn_once(self, num: int) -> Tensor:
        """Which images are mirrored in the first epoch, (num,) bool, a function of the seed."""
        generator = torch.Generator().manual_seed(derive(self.seed, purpose="flips", step=0))
        return torch.rand(num, generator=generator) < (self.recipe.augmentation.flip_probability or 0.0)

    def _mirrored(self, chosen: Tensor, *, epoch: int) -> Tensor | None:
        """Which of the images at these indices are mirrored in this epoch, (B,) bool; None: that is drawn anew."""
        if self._mirrored_first is None:
            return None
        self._mirrored_first = self._mirrored_first.to(self.device)
        return self._mirrored_first.index_select(0, chosen) ^ (epoch % 2 == 1)

    def _step(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """Returns the loss (), before the step, the logits (B, num_classes) and the labels (B,)."""
        recipe = self.recipe
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 pixel coordinates would be half a pixel off
            images, labels = self.batch(chosen, step=step, generator=generator)
        seen: list[tuple[Tensor, Tensor]] = []

        def closure() -> float:
            if again := self._evaluated_here():
                seen.append((again.loss, again.logits))
                return again.loss  # type: ignore[return-value]  # as below
            optimizer.zero_grad()
            logits = self.network(images)
            loss = training_loss(logits, labels, loss=recipe.loss, parameters=self._trained)
            torch.autograd.backward([loss])  # no loss is scaled; Lightning's manual_backward costs 3 % a step
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, recipe.clip_norm)
            seen.append((loss.detach(), logits.detach()))
            self._remember(*seen[-1])
            return loss  # type: ignore[return-value]  # torch's own annotation; its optimisers take tensors

        optimizer.step(closure)
        return *seen[0], labels  # L-BFGS evaluates more than once a step

    def _remember(self, loss: Tensor, logits: Tensor) -> None:
        """L-BFGS ends a step by evaluating where it goes, and begins the next one by evaluating there again."""
        if self.recipe.optimizer.name == "lbfgs" and self._whole is not None and not self._draws:
            weights = parameters_to_vector(self._trained).detach()
            gradients = [parameter.grad for parameter in self._trained]
            self._evaluated = Evaluated(weights=weights, gradients=gradients, loss=loss, logits=logits)

    def _evaluated_here(self) -> "Evaluated | None":
        """The last evaluation, its gradients back in place, if it was with these very weights on this very batch."""
        last = self._evaluated
        if last is None or not torch.equal(parameters_to_vector(self._trained), last.weights):
            return None
        for parameter, gradient in zip(self._trained, last.gradients, strict=True):
            parameter.grad = gradient
        return last

    def _count(self, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Add a block to the epoch's totals, in one go."""
        losses, logits, labels = zip(*steps, strict=True)
        sizes = torch.tensor([len(some) for some in labels])
        self.loss_total += (torch.stack(losses) * sizes.to(self.device)).sum()
        self.num_correct += (torch.cat(logits).argmax(dim=1) == torch.cat(labels)).sum()

    def _check(self, epoch: int) -> None:
        """Is the loss finite still? The block's one synchronisation."""
        if not torch.isfinite(self.loss_total):
            raise DivergenceError(epoch=epoch, step=self.num_steps - 1)

    @property
    def mean_loss(self) -> Tensor:
        """Of this epoch's images so far, ()."""
        num_batches = (self.num_steps - 1) % self.steps_per_epoch + 1
        return self.loss_total / min(num_batches * self.recipe.batch_size, len(self.images))

    def totals(self) -> dict[str, Any]:
        """The epoch's mean loss and accuracy on the batches as they were trained on."""
        num = len(self.images)
        return {"loss": self.loss_total.item() / num, "accuracy_percent": 100 * self.num_correct.item() / num}

    def batch(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Images as the network gets them in optimiser step `step`, and labels, at these indices.

        A batch of everything is made once.
        """
        if self._whole is not None:
            return self._whole
        images = self.images.index_select(0, chosen)  # ten times as fast as self.images[chosen] on a CPU
        recipe = self.recipe
        epoch = step // self.steps_per_epoch
        images = augment(
            images,
            augmentation=recipe.augmentation,
            normalisation=recipe.normalisation,
            generator=generator,
            mirrored=self._mirrored(chosen, epoch=epoch),
        )
        if recipe.resolution:
            images = resized(images, pixels=recipe.resolution.pixels_at(epoch))
        batch = images.contiguous(memory_format=self.memory_format), self.labels.index_select(0, chosen)
        if self.steps_per_epoch == 1 and recipe.augmentation.name == "none" and recipe.resolution is None:
            self._whole = batch
        return batch

    @property
    def is_finite(self) -> bool:
        """Whether the weights are: from a checkpoint of others, the step that made them so could not be found."""
        return all_finite(self._trained)

    def learning_rate(self, step: int) -> float:
        return rate_of(self.recipe, step=step, steps_per_epoch=self.steps_per_epoch)


def _averaging(recipe: Recipe) -> dict[str, Any]:
    assert recipe.averaging is not None
    average = get_ema_multi_avg_fn(recipe.averaging.decay)  # type: ignore[no-untyped-call]
    return {"multi_avg_fn": average, "use_buffers": True}  # of batch normalisation


def all_finite(weights: Iterable[Tensor]) -> bool:
    return all(weight.isfinite().all() for weight in weights)


def memory_format(spec: RunSpec) -> torch.memory_format:
    return torch.channels_last if spec.channels_last else torch.contiguous_format


class Keeper(Callback):
    """Reports each epoch, and checkpoints at the end of a block once `CHECKPOINT_SECONDS` have passed.

    `has_trained`: whether a block was trained in this process; `ended`: the last epoch and step that were reported.
    """

    def __init__(self, checkpoint: Path, *, report: Callable[[dict[str, Any]], None]) -> None:
        self.checkpoint, self._report = checkpoint, report
        self.has_trained, self.ended = False, (0, 0)
        self.wall_seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.epoch_started = self.started

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.wall_seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wall_seconds_before = state_dict["wall_seconds"]
        if not 0 <= self.wall_seconds_before < math.inf:
            raise ValueError(f"wall_seconds: {self.wall_seconds_before}")

    def report(self, point: dict[str, Any]) -> None:
        """An epoch has ended."""
        self.ended = point["epoch"], point["step"]
        self._report(point)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Raises ValueError: a checkpoint has brought the optimiser what its kernels would read, or write, beyond."""
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, torch.optim.LBFGS):  # no kernel of its own: it raises
                for parameter, state in optimizer.state.items():
                    _refuse_misshapen(state, parameter=parameter)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.epoch_started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, Training)
        self.has_trained = True
        if pl_module.num_steps % pl_module.steps_per_epoch:  # an epoch's last block is saved after its report
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        self.report(
            {
                "epoch": trainer.current_epoch + 1,
                "step": pl_module.num_steps,
                "split": "train",
                **pl_module.totals(),
                "lr": pl_module.learning_rate(pl_module.num_steps - 1),
                "seconds": round(time.monotonic() - self.epoch_started, 3),
            }
        )
        if trainer.current_epoch + 1 < pl_module.recipe.epochs_total:
            self._save_when_due(trainer)

    def _save_when_due(self, trainer: Trainer) -> None:
        if time.monotonic() - self.saved < CHECKPOINT_SECONDS or not trainer.lightning_module.is_finite:
            return
        partial = self.checkpoint.with_suffix(".partial")
        with naming(partial):
            trainer.save_checkpoint(partial)
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
    training: Training,
    *,
    spec: RunSpec,
    device_kind: str,
    checkpoint: Path,
    report: Callable[[dict[str, Any]], None],
    doctor: Callback | None = None,
) -> float:
    """Train to the last epoch, from the checkpoint where there is one; returns wall seconds. Raises DivergenceError."""
    keeper, blocks = Keeper(checkpoint, report=report), range(training.blocks_per_epoch)
    fit(training, spec=spec, device_kind=device_kind, keeper=keeper, doctor=doctor, batches=blocks, devices=1)
    return keeper.wall_seconds


def fit(
    module: LightningModule,
    *,
    spec: RunSpec,
    device_kind: str,
    keeper: Keeper,
    batches: range | None,
    doctor: Callback | None = None,
    harmless: Sequence[str] = HARMLESS_WARNINGS,
    **machines: Any,
) -> None:
    """Lightning's loop to the last epoch, from the keeper's checkpoint where there is one.

    `batches`: what it loops over, where the module has no loader of its own; `machines`: the Trainer's words for them.
    """
    with warnings.catch_warnings():
        for message in harmless:
            warnings.filterwarnings("ignore", message=message)
        trainer = Trainer(
            accelerator=device_kind,
            **machines,
            precision=TRAINER_PRECISION[spec.precision],
            max_epochs=spec.recipe.epochs_total,
            callbacks=[keeper, doctor] if doctor else [keeper],  # in this order: the epoch is on the chart by then
            deterministic="warn" if device_kind == "cuda" else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        checkpoint = keeper.checkpoint if keeper.checkpoint.exists() else None
        try:
            trainer.fit(module, train_dataloaders=batches, ckpt_path=checkpoint, weights_only=True)
        except MISFITS as error:
            if checkpoint is None or keeper.has_trained or isinstance(error, (InputError, *DEVICE_ERRORS)):
                raise
            raise unusable(checkpoint, f"{type(error).__name__}: {error}") from error
        epochs_total, steps_per_epoch = spec.recipe.epochs_total, module.steps_per_epoch
        assert isinstance(steps_per_epoch, int)
        expected = epochs_total, epochs_total * steps_per_epoch
        if checkpoint and keeper.ended != expected:
            raise unusable(checkpoint, f"expected to end with epoch and step {expected}, ended with {keeper.ended}")


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The network on its device, as the spec computes: uint8 batches in, logits (B, num_classes) float32 out."""

    network: nn.Module
    normalisation: Normalisation
    precision: Precision
    memory_format: torch.memory_format
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """From images (B, C, H, W) uint8 on any device. Does not wait for the device."""
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            batch = normalise(images, normalisation=self.normalisation).contiguous(memory_format=self.memory_format)
            logits: Tensor = self.network(batch)
        return logits.float()


def forward(network: nn.Module, *, spec: RunSpec, device: torch.device) -> Forward:
    """The network moved to `device`, in evaluation mode, with the spec's precision and memory format."""
    return Forward(
        network=network.to(device).to(memory_format=memory_format(spec)).eval(),
        normalisation=evaluated_with(spec),
        precision=spec.precision,
        memory_format=memory_format(spec),
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """`predicted` (N,) int64, `confidence` (N,) float32 top-1 probability, and the mean cross-entropy."""

    predicted: Tensor
    confidence: Tensor
    loss: float


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, *, labels: Tensor, spec: RunSpec, device: torch.device) -> Predictions:
    """Evaluate `network` on images (N, C, H, W) uint8 and labels (N,), in their order."""
    run = forward(network, spec=spec, device=device)
    predicted, confidence, loss_total = [], [], 0.0
    for start in range(0, len(images), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits = run(images[part])
        top = logits.softmax(dim=1).max(dim=1)
        predicted.append(top.indices.cpu())
        confidence.append(top.values.cpu())
        loss_total += functional.cross_entropy(logits, labels[part].to(device), reduction="sum").item()
    return Predictions(predicted=torch.cat(predicted), confidence=torch.cat(confidence), loss=loss_total / len(images))
