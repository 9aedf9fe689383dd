"""Training on photographs that are decoded on demand: DeiT's recipe, from timm's parts, on one device or many.

Touvron, Cord, Douze, Massa, Sablayrolles and Jégou 2021, "Training data-efficient image transformers & distillation
through attention", Table 9; where that is silent, their code (github.com/facebookresearch/deit, main.py). Every draw
is a function of (seed, purpose, step, device's rank), so that a resumed run repeats an uninterrupted one.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from remeasure.spec.base import DivergenceError, InputError
from remeasure.spec.run import RunSpec
from remeasure.training.engines import loop
from remeasure.training.engines.steps import TrainingModule
from remeasure.training.inference import memory_format
from remeasure.training.losses import CrossEntropy, training_loss
from remeasure.training.optimizers import build_optimizer
from remeasure.training.photographs.augment import Photographs, augmentation, epoch_order
from remeasure.training.photographs.loading import Loaded, Loader
from remeasure.training.photographs.world import ALONE, World, refuse_uneven
from remeasure.training.seeding import derive, seed_everything

TOTALS = ("loss_total", "num_correct")
Batch = list[Tensor]  # images (B, 3, H, W) float32, normalised, and labels (B,) int64, on one device


class Batches:
    """The batches of an epoch, from the next step on. The length is the whole epoch's, since Lightning counts the
    batches of a resumed epoch from where it stopped.
    """

    def __init__(self, training: "StreamTraining") -> None:
        self.training = training

    def __iter__(self) -> Iterator[Loaded]:
        """A generator, so that the position is read at the first batch: Lightning restores it after this call."""
        training = self.training
        epoch, start = divmod(training.global_step, training.steps_per_epoch)
        items = training.items(epoch, steps=range(start, training.steps_per_epoch))
        yield from training.loader.batches(iter(lambda: list(itertools.islice(items, training.images_per_device)), []))

    def __len__(self) -> int:
        return self.training.steps_per_epoch


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


class StreamTraining(TrainingModule):
    """One seed's training of `network` on files with labels (N,) in 0..C-1, as `spec.recipe.streaming` says.

    `recipe.batch_size` counts the images of all devices together. A step uses the same images on any number of devices;
    each device draws its own mixup, cutmix and drop path, as in DeiT.
    """

    ema: ModelEmaV3 | None

    def __init__(
        self,
        network: nn.Module,
        *,
        spec: RunSpec,
        seed: int,
        paths: Sequence[Path | str],
        labels: npt.NDArray[np.int64],
        num_workers: int,
        pinned: bool = False,
    ) -> None:
        super().__init__(spec=spec, seeds=[seed])
        assert self.recipe.streaming is not None
        self.streaming, self.seed, self.memory_format = self.recipe.streaming, seed, memory_format(spec)
        self.steps_per_batch = 1
        self.loss, self.label_smoothing = self.recipe.loss, 0.0
        if isinstance(self.loss, CrossEntropy):  # the targets are smoothed instead
            self.loss, self.label_smoothing = replace(self.loss, label_smoothing=0.0), self.loss.label_smoothing
        self.num_classes, self.num_images = spec.data.num_classes, len(paths)
        self.steps_per_epoch = len(paths) // self.recipe.batch_size  # an epoch leaves out the rest of its order
        if not self.steps_per_epoch:
            raise InputError(
                f"recipe.batch_size: expected at most the {len(paths)} images, got {self.recipe.batch_size}"
            )
        self.loader = Loader(
            Photographs(
                files=np.array([os.fsencode(path) for path in paths]),
                labels=labels,
                seed=seed,
                transform=augmentation(self.streaming, normalisation=self.recipe.normalisation),
            ),
            collate=default_collate,
            num_workers=num_workers,
            pinned=pinned,
        )
        set_drop_path(network, drop_path=self.streaming.drop_path)
        self.network = network.to(memory_format=self.memory_format)
        self.ema = None
        if self.streaming.ema_decay is not None:
            self.ema = ModelEmaV3(network, decay=self.streaming.ema_decay).requires_grad_(False).train()
        self.register_buffer("loss_total", torch.zeros(()))  # over this device's images in this epoch so far
        self.register_buffer("num_correct", torch.zeros((), dtype=torch.int64))
        # Else each forward pass would replace them by the first device's, as it does with running statistics.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, TOTALS)  # type: ignore[no-untyped-call]

    # ------------------------------------------------ images

    @property
    def images_per_device(self) -> int:
        """Images of each device per step."""
        return self.recipe.batch_size // self.trainer.world_size

    def items(self, epoch: int, *, steps: range) -> Iterator[tuple[int, int]]:
        """Yields (index of the photograph, number of its draw) for this device in these steps of an epoch."""
        world_size, rank, num = self.trainer.world_size, self.global_rank, self.images_per_device
        order = epoch_order(
            epoch,
            num_images=self.num_images,
            num_repeats=self.streaming.num_repeats,
            seed=self.seed,
            world_size=world_size,
            rank=rank,
        )
        first = epoch * self.steps_per_epoch * num
        places = range(steps.start * num, steps.stop * num)
        return ((order[place], world_size * (first + place) + rank) for place in places)

    def train_dataloader(self) -> Batches:
        return Batches(self)

    # ------------------------------------------------ steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: Any = parameter_groups(
            self.network, weight_decay=self.recipe.optimizer.arguments().get("weight_decay", 0.0)
        )
        return build_optimizer(groups, optimizer=self.recipe.optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The totals of all devices, as the first one alone writes it."""
        checkpoint["state_dict"] |= {name: self._of_all(getattr(self, name)) for name in TOTALS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.num_steps = checkpoint["global_step"]
        if self.global_rank:  # the first device goes on from them
            for name in TOTALS:
                checkpoint["state_dict"][name].zero_()

    def _of_all(self, total: Tensor) -> Tensor:
        """The sum over all devices, each of which calls this."""
        summed = self.trainer.strategy.reduce(total.clone(), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002 - global_step gives the position
        seed_everything(derive(self.seed, purpose=f"step on device {self.global_rank}", step=self.global_step))
        images, targets = self.mixed(*batch)
        logits = self.network(images.contiguous(memory_format=self.memory_format))
        loss = training_loss(logits, targets, loss=self.loss, parameters=self.network.parameters())
        self.loss_total += loss.detach() * len(images)
        self.num_correct += (logits.detach().argmax(dim=1) == targets.argmax(dim=1)).sum()
        if self.look:
            self.look("loss", "", loss.detach().isfinite())
        return loss

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets (B, num_classes) float32, smoothed, each sum 1; mixed if the recipe says so."""
        if not self.streaming.mixes:
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
        for callback in self.step_callbacks:
            callback.before_step(step)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        super().optimizer_step(*arguments, **more)  # calls training_step
        if self.ema is not None:
            self.ema.update(self.network)
        self.num_steps = step + 1
        for callback in self.step_callbacks:
            callback.after_step(step)
        # On all devices; once a block, its only synchronisation.
        if self.ends_block(step + 1) and not torch.isfinite(self._of_all(self.loss_total)):
            raise DivergenceError(epoch=step // self.steps_per_epoch, step=step)

    def totals(self) -> list[dict[str, float]]:
        """Over the mixed images of all devices; of a mixed image, the label with the greater share counts."""
        num = self.steps_per_epoch * self.recipe.batch_size
        loss_total, num_correct = self._of_all(self.loss_total).item(), self._of_all(self.num_correct).item()
        return [{"loss": loss_total / num, "accuracy_percent": 100 * num_correct / num}]

    def batch_of(self, step: int) -> list[list[int]]:
        epoch, start = divmod(step, self.steps_per_epoch)
        return [[index for index, _ in self.items(epoch, steps=range(start, start + 1))]]


def train(
    network: nn.Module,
    *,
    spec: RunSpec,
    seed: int,
    paths: Sequence[Path | str],
    labels: npt.NDArray[np.int64],
    device_kind: str,
    num_workers: int,
    world: World = ALONE,
    **more: Any,
) -> float:
    """Train to the last epoch, from the checkpoint if there is one; returns wall seconds. Raises DivergenceError,
    InputError for a photograph that cannot be decoded or a batch that cannot be split evenly, and what
    `Loader.batches` raises.

    Afterwards `network` has the weights to score. `labels` (N,) int64, one for each path. `world`: the connected
    processes, each of which calls this function. The first one reports and writes the checkpoint, which all must be
    able to read. `num_workers`: loader processes for each device. `more`: what `loop.train` takes besides.
    """
    pinned = device_kind == "cuda"
    module = StreamTraining(
        network, spec=spec, seed=seed, paths=paths, labels=labels, num_workers=num_workers, pinned=pinned
    )
    refuse_uneven(spec, world=world)
    with module.loader:
        wall_seconds = loop.train(
            module,
            spec=spec,
            device_kind=device_kind,
            between=600.0,  # a checkpoint of DeiT-B is 1.4 GB
            world=world,
            **more,
        )
    if module.streaming.scored == "ema":
        assert module.ema is not None
        network.load_state_dict(module.ema.module.state_dict())
    return wall_seconds
