"""Training on photographs that are decoded on demand: DeiT's recipe, from timm's parts, on one device or many.

Touvron, Cord, Douze, Massa, Sablayrolles and Jégou 2021, "Training data-efficient image transformers & distillation
through attention", Table 9; where that is silent, their code (github.com/facebookresearch/deit, main.py). Every draw
is a function of (seed, purpose, step, device's rank), so that a resumed run repeats an uninterrupted one.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.core.optimizer import LightningOptimizer
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from remeasure.spec.base import InputError
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.system.paths import checkpoint_seconds
from remeasure.training.checkpoints import keep_checkpoint
from remeasure.training.diagnostics.nonfinite import Watch
from remeasure.training.engines import loop
from remeasure.training.engines.loop import CheckpointCallback
from remeasure.training.engines.serial import DivergenceError, all_finite
from remeasure.training.inference import memory_format
from remeasure.training.losses import CrossEntropy, training_loss
from remeasure.training.optimizers import build_optimizer
from remeasure.training.photographs.augment import Photographs, augmentation, epoch_order, seed_everything
from remeasure.training.recipe import rate_of
from remeasure.training.seeding import derive

CHECKPOINT_SECONDS = checkpoint_seconds(600.0)  # a checkpoint of DeiT-B is 1.4 GB
HARMLESS_WARNINGS = (
    *loop.HARMLESS_WARNINGS,
    r"The 'train_dataloader' does not have many workers",  # the caller's choice
)
Batch = list[Tensor]  # images (B, 3, H, W) float32, normalised, and labels (B,) int64, on one device


class Draws(Sampler[tuple[int, int]]):
    """The items of an epoch, from the next step on. The length is the whole epoch's, since Lightning counts the batches
    of a resumed epoch from where it stopped.
    """

    def __init__(self, training: "StreamTraining") -> None:
        self.training = training

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = divmod(self.training.global_step, self.training.steps_per_epoch)
        return self.training.items(epoch, steps=range(start, self.training.steps_per_epoch))

    def __len__(self) -> int:
        return self.training.steps_per_epoch * self.training.images_per_device


def set_drop_path(network: nn.Module, *, drop_path: float) -> None:
    """Stochastic depth for a timm transformer: from 0 in its first block to `drop_path` in its last, as timm builds it.

    It has no weights and is off in evaluations. Raises InputError for a network without such blocks.
    """
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not all(hasattr(block, "drop_path1") for block in blocks):
        if drop_path:
            raise InputError(f"recipe.streaming.drop_path: {type(network).__name__} has no residual blocks of timm's")
        return
    for block, rate in zip(blocks, torch.linspace(0, drop_path, len(blocks)).tolist(), strict=True):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(rate) if rate else nn.Identity())


def parameter_groups(network: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """timm's groups: no decay for biases, norms and network.no_weight_decay (positions, class token)."""
    spared: set[str] = getattr(network, "no_weight_decay", set)()
    groups: list[dict[str, Any]] = param_groups_weight_decay(network, weight_decay, no_weight_decay_list=spared)
    return groups


class StreamTraining(LightningModule):
    """One seed's training of `network` on files with labels (N,) in 0..C-1, as `spec.recipe.streaming` says.

    `recipe.batch_size` counts the images of all devices together. A step uses the same images on any number of devices;
    each device draws its own mixup, cutmix and drop path, as in DeiT.
    """

    ema: ModelEmaV3 | None
    loss_total: Tensor
    num_correct: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        spec: RunSpec,
        seed: int,
        paths: Sequence[Path | str],
        labels: npt.NDArray[np.int64],
        num_workers: int,
    ) -> None:
        super().__init__()
        assert isinstance(spec.recipe, Recipe)
        assert spec.recipe.streaming is not None
        self.recipe, self.streaming, self.seed = spec.recipe, spec.recipe.streaming, seed
        self.steps_per_block, self.memory_format = spec.steps_per_block, memory_format(spec)
        self.loss, self.label_smoothing = self.recipe.loss, 0.0
        if isinstance(self.loss, CrossEntropy):  # the targets are smoothed instead
            self.loss, self.label_smoothing = replace(self.loss, label_smoothing=0.0), self.loss.label_smoothing
        self.num_classes, self.num_workers = spec.data.num_classes, num_workers
        self.files, self.labels = np.array([os.fsencode(path) for path in paths]), labels
        self.steps_per_epoch = len(paths) // self.recipe.batch_size  # an epoch leaves out the rest of its order
        if not self.steps_per_epoch:
            raise InputError(
                f"recipe.batch_size: expected at most the {len(paths)} images, got {self.recipe.batch_size}"
            )
        self.transform = augmentation(self.streaming, normalisation=self.recipe.normalisation)
        set_drop_path(network, drop_path=self.streaming.drop_path)
        self.network: nn.Module = network.to(memory_format=self.memory_format)
        self.ema = None
        if self.streaming.ema_decay is not None:
            self.ema = ModelEmaV3(network, decay=self.streaming.ema_decay).requires_grad_(False).train()
        self.register_buffer("loss_total", torch.zeros(()))  # over the first device's images in this epoch so far
        self.register_buffer("num_correct", torch.zeros((), dtype=torch.int64))

    # ------------------------------------------------ images

    @property
    def mixes(self) -> bool:
        return self.streaming.mixup_alpha > 0 or self.streaming.cutmix_alpha > 0

    @property
    def images_per_device(self) -> int:
        """Images of each device per step. Raises InputError if a batch cannot be split evenly."""
        num, rest = divmod(self.recipe.batch_size, self.trainer.world_size)
        if rest or (num % 2 and self.mixes):
            raise InputError(
                f"recipe.batch_size: expected an even number of images for each of {self.trainer.world_size} devices "
                f"(mixup pairs them), got {self.recipe.batch_size} for all"
            )
        return num

    def items(self, epoch: int, *, steps: range) -> Iterator[tuple[int, int]]:
        """Yields (index of the photograph, number of its draw) for this device in these steps of an epoch."""
        world_size, rank, num = self.trainer.world_size, self.global_rank, self.images_per_device
        order = epoch_order(
            epoch,
            num_images=len(self.files),
            num_repeats=self.streaming.num_repeats,
            seed=self.seed,
            world_size=world_size,
            rank=rank,
        )
        first = epoch * self.steps_per_epoch * num
        places = range(steps.start * num, steps.stop * num)
        return ((order[place], world_size * (first + place) + rank) for place in places)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        # A worker forked from this process could hang if torch has started threads; so a fork server starts it.
        context = multiprocessing.get_context("forkserver") if self.num_workers else None
        if context:
            context.set_forkserver_preload([__name__])
        return DataLoader(
            Photographs(files=self.files, labels=self.labels, seed=self.seed, transform=self.transform),
            batch_size=self.images_per_device,
            sampler=Draws(self),
            num_workers=self.num_workers,
            multiprocessing_context=context,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    # ------------------------------------------------ steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: Any = parameter_groups(
            self.network, weight_decay=self.recipe.optimizer.arguments().get("weight_decay", 0.0)
        )
        return build_optimizer(groups, optimizer=self.recipe.optimizer)

    def on_train_epoch_start(self) -> None:
        """Reset the totals; Lightning does not call this after a resume in mid-epoch."""
        self.loss_total.zero_()
        self.num_correct.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002 - global_step gives the position
        seed_everything(derive(self.seed, purpose=f"step on device {self.global_rank}", step=self.global_step))
        images, targets = self.mixed(*batch)
        logits = self.network(images.contiguous(memory_format=self.memory_format))
        loss = training_loss(logits, targets, loss=self.loss, parameters=self.network.parameters())
        self.loss_total += loss.detach() * len(images)
        self.num_correct += (logits.detach().argmax(dim=1) == targets.argmax(dim=1)).sum()
        return loss

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets (B, num_classes) float32, smoothed, each sum 1; mixed if the recipe says so."""
        if not self.mixes:
            return images, mixup_target(labels, self.num_classes, smoothing=self.label_smoothing)
        mixup = Mixup(
            mixup_alpha=self.streaming.mixup_alpha,
            cutmix_alpha=self.streaming.cutmix_alpha,
            label_smoothing=self.label_smoothing,
            num_classes=self.num_classes,
        )
        with torch.autocast(images.device.type, enabled=False):
            images, targets = mixup(images, labels)
        return images, targets

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Clip the gradients; Lightning itself refuses that with bfloat16 and a fused optimiser."""
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """One step at its learning rate, then the update of the moving average."""
        step = self.global_step
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        super().optimizer_step(*arguments, **more)
        if self.ema is not None:
            self.ema.update(self.network)
        self._check(step)

    def ends_block(self, num_steps: int) -> bool:
        """Whether a block of steps ends after `num_steps`; the last one of an epoch may be shorter."""
        return num_steps % self.steps_per_epoch % self.steps_per_block == 0

    def _check(self, step: int) -> None:
        """Raise DivergenceError on all devices if the loss is not finite: once a block, its only synchronisation."""
        if not self.ends_block(step + 1):
            return
        total = self.trainer.strategy.reduce(self.loss_total.clone(), reduce_op="sum")
        if not torch.isfinite(total):
            raise DivergenceError(epoch=step // self.steps_per_epoch, step=step)

    @property
    def is_finite(self) -> bool:
        return all_finite(self.network.parameters())

    def learning_rate(self, step: int) -> float:
        return rate_of(self.recipe, step=step, steps_per_epoch=self.steps_per_epoch)


class WatchedStreamTraining(StreamTraining):
    """StreamTraining, bit-identical up to step `until`, on one device, with the checks of WatchedTraining."""

    def __init__(self, network: nn.Module, *, until: int, **more: Any) -> None:
        super().__init__(network, **more)
        self._watch, self._loss = Watch(network, until=until), torch.zeros(())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._watch.begin()
        loss = super().training_step(batch, batch_idx)
        self._loss = loss.detach()
        return loss

    def _check(self, step: int) -> None:
        def batch() -> list[int]:
            epoch, start = divmod(step, self.steps_per_epoch)
            return [index for index, _ in self.items(epoch, steps=range(start, start + 1))]

        self._watch.end(self._loss, step=step, steps_per_epoch=self.steps_per_epoch, batch=batch)
        super()._check(step)


class StreamCheckpointCallback(CheckpointCallback):
    """Reports each epoch, and checkpoints at the end of a block when due, on all devices together.

    Loss and accuracy of an epoch are over the mixed images of the first device; of a mixed image, the label with the
    greater share counts.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, StreamTraining)
        self.has_trained = True
        if trainer.global_step % pl_module.steps_per_epoch and pl_module.ends_block(trainer.global_step):
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StreamTraining)
        num = pl_module.steps_per_epoch * pl_module.images_per_device
        point = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "split": "train",
            "loss": pl_module.loss_total.item() / num,
            "accuracy_percent": 100 * pl_module.num_correct.item() / num,
            "lr": pl_module.learning_rate(trainer.global_step - 1),
            "seconds": round(time.monotonic() - self.epoch_started, 3),
        }
        self.ended = trainer.current_epoch + 1, trainer.global_step  # on every device
        if trainer.is_global_zero:
            self.report(point)
        if trainer.current_epoch + 1 < pl_module.recipe.epochs_total:
            self._save_when_due(trainer)

    def _save_when_due(self, trainer: Trainer) -> None:
        """The first device's clock decides, as clocks differ. All devices take part in saving; the first one writes."""
        due = trainer.strategy.broadcast(time.monotonic() - self.saved >= CHECKPOINT_SECONDS)
        if not due or not trainer.lightning_module.is_finite:
            return
        partial = self.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            keep_checkpoint(partial, self.checkpoint)
        self.saved = time.monotonic()


def train(
    network: nn.Module,
    *,
    spec: RunSpec,
    seed: int,
    paths: Sequence[Path | str],
    labels: npt.NDArray[np.int64],
    device_kind: str,
    devices: int,
    num_workers: int,
    checkpoint: Path,
    report: Callable[[dict[str, Any]], None],
    doctor: Callback | None = None,
    watched_until: int | None = None,
) -> float:
    """Train to the last epoch, from the checkpoint if there is one; returns wall seconds. Raises DivergenceError,
    and InputError for a photograph that cannot be decoded or a batch that cannot be split evenly.

    Afterwards `network` has the weights to score. `labels` (N,) int64, one for each path. `devices`: per machine; each
    of several devices has its own process that calls this function, started by torchrun, SLURM or, on one machine, by
    Lightning. The first one reports and writes the checkpoint, which all must be able to read. `num_workers`: loader
    processes for each device. `watched_until`: raise FaultFoundError at the first value that is not finite, up to this
    step; on one device.
    """
    named: dict[str, Any] = {"spec": spec, "seed": seed, "paths": paths, "labels": labels, "num_workers": num_workers}
    if watched_until is None:
        module = StreamTraining(network, **named)
    else:
        module = WatchedStreamTraining(network, until=watched_until, **named)
    keeper = StreamCheckpointCallback(checkpoint, report=report)
    loop.fit(
        module,
        spec=spec,
        device_kind=device_kind,
        keeper=keeper,
        doctor=doctor,
        batches=None,
        harmless=HARMLESS_WARNINGS,
        devices=devices,
        num_nodes=num_nodes(),
        strategy="auto" if devices * num_nodes() == 1 else "ddp",
    )
    if module.streaming.scored == "ema":
        assert module.ema is not None
        network.load_state_dict(module.ema.module.state_dict())
    return keeper.wall_seconds


def num_nodes() -> int:
    """Machines in this job, by the variables of SLURM or torchrun; 1 without them."""
    if nodes := os.environ.get("SLURM_NNODES"):
        return int(nodes)
    return int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
