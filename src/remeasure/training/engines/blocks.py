"""Training on images in memory: one Lightning step is a block of optimiser steps; and the job around it.

The images stay on the device as uint8. With blocks, Lightning's overhead per step is small: Lightning counts blocks,
`num_steps` the optimiser steps. All randomness is a function of (seed, purpose, step), so that a resumed run gives the
same numbers as an uninterrupted one.
"""

import contextlib
import functools
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from remeasure.models import registry
from remeasure.spec.base import DeviceKind, DivergenceError
from remeasure.spec.run import RunSpec
from remeasure.training import seeding
from remeasure.training.augment import resized
from remeasure.training.diagnostics.nonfinite import Found, Tracer
from remeasure.training.engines import capture, loop
from remeasure.training.engines.base import Data, Report, Scored
from remeasure.training.engines.steps import TrainingModule
from remeasure.training.inference import memory_format, predict, refuse_not_finite
from remeasure.training.optimizers import build_optimizer

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no list of the accelerators it found
# Importing Lightning sets this to 1; without a GPU, torch's optimisers then search the disk for a driver at each step.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


class BlockTraining(TrainingModule, ABC):
    """Training of `network` on images (N, C, H, W) uint8 and labels (N,) int64, as the recipe says."""

    images: Tensor
    labels: Tensor
    mirrored_first: Tensor | None  # which images are mirrored in the first epoch, (N,) bool
    clip: Callable[..., object] = staticmethod(nn.utils.clip_grad_norm_)  # gets parameters and max_norm

    def __init__(
        self, network: nn.Module, *, spec: RunSpec, seeds: Sequence[int], images: Tensor, labels: Tensor
    ) -> None:
        super().__init__(spec=spec, seeds=seeds)
        self.automatic_optimization = False
        self.steps_per_batch = spec.steps_per_block
        self.memory_format = memory_format(spec)
        self.network = network.to(memory_format=self.memory_format)
        self._trained = list(network.parameters())  # a list: walking through the modules at each step is slow
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        num = len(self.seeds)
        self.register_buffer("loss_total", torch.zeros(num))
        self.register_buffer("num_correct", torch.zeros(num, dtype=torch.int64))
        self.register_buffer("mirrored_first", None, persistent=False)
        limit = self.recipe.clip_norm
        self._clip = None if limit is None else functools.partial(self.clip, self._trained, max_norm=limit)
        self._whole: tuple[Tensor, Tensor] | None = None
        self.captured = capture.Captured()
        self._rate: Tensor | None = None  # the learning rate () that CUDA graphs read
        self.steps_per_epoch = math.ceil(len(images) / self.recipe.batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if capture.possible(self.device) and self.recipe.optimizer.capturable:
            self._rate = torch.tensor(self.recipe.optimizer.lr_peak, device=self.device)
        return build_optimizer(
            self.network.parameters(),
            optimizer=self.recipe.optimizer,
            captured_rate=self._rate,
            precision=self.spec.precision,
        )

    # ------------------------------------------------ what an engine decides

    @abstractmethod
    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation of the training images, (N,) int64; of S seeds (N, S)."""

    def order_of(self, seed: int, *, epoch: int) -> Tensor:
        """One seed's order, a function of (seed, epoch). A full batch keeps the images' own order, so that sums round
        alike in every epoch and after every resume.
        """
        num = len(self.images)
        return torch.arange(num) if self.steps_per_epoch == 1 else seeding.permutation(num, seed=seed, epoch=epoch)

    @abstractmethod
    def generator(self, step: int) -> torch.Generator | None:
        """The generator of distortions for the block that begins with optimiser step `step`; None: the device's global
        generator, which the block has seeded and which works in a CUDA graph.
        """

    @abstractmethod
    def take(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """One optimiser step on these images, which a CUDA graph may capture; returns what `count` needs of it."""

    def count(self, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Add a block to the epoch's totals, unless its steps have added to them. `steps`: what they returned."""

    # ------------------------------------------------ blocks

    def train_dataloader(self) -> range:
        """The blocks of an epoch."""
        return range(math.ceil(self.steps_per_epoch / self.steps_per_block))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_steps"] = self.num_steps
        checkpoint["diverged"] = {index: (error.epoch, error.step) for index, error in self.diverged.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.num_steps = checkpoint["num_steps"]
        if type(self.num_steps) is not int or not 0 <= self.num_steps < self.recipe.epochs_total * self.steps_per_epoch:
            raise ValueError(f"num_steps: {self.num_steps!r}")
        found = checkpoint["diverged"].items()
        self.diverged = {index: DivergenceError(epoch=epoch, step=step) for index, (epoch, step) in found}

    def training_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002 - a resumed loader restarts at 0
        """One block of optimiser steps; its position and its random seeds follow from `num_steps` alone."""
        first = self.num_steps
        epoch, start = divmod(first, self.steps_per_epoch)
        seeding.seed_everything(seeding.derive(self.seeds[0], purpose="dropout", step=first))
        generator = self.generator(first)
        order = self.order(epoch).to(self.device)
        steps = []
        for index in range(start, min(start + self.steps_per_block, self.steps_per_epoch)):
            chosen = order[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size]
            step = epoch * self.steps_per_epoch + index
            for callback in self.step_callbacks:
                callback.before_step(step)
            steps.append(self._launched(chosen, step=step, generator=generator))
            for callback in self.step_callbacks:
                callback.after_step(step)
        self.num_steps += len(steps)
        self.count(steps)
        self._check(epoch)

    def _launched(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """`take` at its learning rate, as a CUDA graph where possible."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        rate = self.learning_rate(step)  # set it anew: a checkpoint may have restored another tensor than graphs read
        optimizer.param_groups[0]["lr"] = rate if self._rate is None else self._rate.fill_(rate)
        take = functools.partial(self.take, step=step, generator=generator, optimizer=optimizer)
        hooked = bool(optimizer._optimizer_step_post_hooks)  # by the doctor; a graph's replay calls no hooks
        captures = self._rate is not None and capture.wanted() and not self.spec.compile and self.look is None
        if captures and len(chosen) == self.recipe.batch_size and not hooked:
            return self.captured(take, chosen, key=self._graph_key(step))
        return take(chosen)

    def _graph_key(self, step: int) -> Hashable:
        """All that Python decides in step `step`: the image size, and for alternating flips the epoch's parity."""
        resolution, epoch = self.recipe.resolution, step // self.steps_per_epoch
        odd = 0 if self.mirrored_first is None else epoch % 2
        return resolution and resolution.pixels_at(epoch), odd

    def batch(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Images as the network gets them in optimiser step `step`, and labels, at these indices.

        A full batch without augmentation or resizing is made once.
        """
        if self._whole is not None:
            return self._whole
        images = self.images.index_select(0, chosen)  # ten times as fast as self.images[chosen] on a CPU
        recipe = self.recipe
        epoch = step // self.steps_per_epoch
        more = {}
        if self.mirrored_first is not None:
            more["mirrored"] = self.mirrored_first.index_select(0, chosen) ^ (epoch % 2 == 1)
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 pixel coordinates would be half a pixel off
            images = recipe.augmentation.apply(images, normalisation=recipe.normalisation, generator=generator, **more)
            if recipe.resolution:
                images = resized(images, pixels=recipe.resolution.pixels_at(epoch))
        batch = images.contiguous(memory_format=self.memory_format), self.labels.index_select(0, chosen)
        if self._keeps_whole:
            self._whole = batch
        return batch

    @property
    def _keeps_whole(self) -> bool:
        """Whether all steps have the same batch."""
        return self.steps_per_epoch == 1 and self.recipe.augmentation.name == "none" and self.recipe.resolution is None

    def _check(self, epoch: int) -> None:
        """Note the seeds whose loss is not finite; raise DivergenceError once all have one. The block's only wait."""
        for index, finite in enumerate(torch.isfinite(self.loss_total).tolist()):
            if not finite and index not in self.diverged:
                self.diverged[index] = DivergenceError(epoch=epoch, step=self.num_steps - 1)
        if len(self.diverged) == len(self.seeds):
            raise self.diverged[0]

    @property
    def mean_losses(self) -> Tensor:
        """Each seed's mean loss over this epoch's images so far, (S,)."""
        num_batches = (self.num_steps - 1) % self.steps_per_epoch + 1
        return self.loss_total / min(num_batches * self.recipe.batch_size, len(self.images))

    def totals(self) -> list[dict[str, float]]:
        num = len(self.images)
        return [
            {"loss": total / num, "accuracy_percent": 100 * correct / num}
            for total, correct in zip(self.loss_total.tolist(), self.num_correct.tolist(), strict=True)
        ]

    def batch_of(self, step: int) -> list[list[int]]:
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = self.order(epoch)[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size]
        indices: list[list[int]] = chosen.view(len(chosen), -1).t().tolist()
        return indices


class BlockJob:
    """Training on images in memory, and evaluation of what was trained: an engine adds how `training` is built."""

    def __init__(self, spec: RunSpec, *, seeds: Sequence[int], data: Data, device_kind: DeviceKind) -> None:
        self.spec, self.seeds, self.data, self.device_kind = spec, seeds, data, device_kind
        self.training, self._wall_seconds = self.built(), 0.0

    def built(self) -> BlockTraining:
        """A training with the initial weights of its seeds."""
        raise NotImplementedError

    def trained(self, index: int) -> nn.Module:
        """The network of one seed that is scored."""
        raise NotImplementedError

    @property
    def num_params(self) -> int:
        return registry.num_trainable(self.training.network) // len(self.seeds)

    def train(
        self, *, checkpoint: Path | None, reports: Sequence[Report], callbacks: Sequence[Callback] = ()
    ) -> Mapping[int, DivergenceError]:
        with contextlib.suppress(DivergenceError):  # all have diverged
            self._wall_seconds = self._fit(self.training, checkpoint=checkpoint, reports=reports, callbacks=callbacks)
        return self.training.diverged

    def _fit(self, training: BlockTraining, **more: Any) -> float:
        return loop.train(training, spec=self.spec, device_kind=self.device_kind, validate=self._validation, **more)

    @functools.cached_property
    def _validation(self) -> loop.Validate | None:
        """Scores the held-back images after each epoch, on a network of its own that gets the weights.

        So hooks, modes and statistics of the network that trains stay as they are; and each block of steps seeds the
        generators anew, whatever was drawn before.
        """
        if (held_back := self.data.to_validate()) is None:
            return None
        device = torch.device(self.device_kind)
        images, labels = held_back[0].to(device), held_back[1]
        network = seeding.initial_network(replace(self.spec, compile=False), seed=0).to(device)

        def validate(training: TrainingModule, index: int) -> dict[str, float]:
            """Loss and accuracy_percent of one seed, as if it were scored now."""
            network.load_state_dict(training.scored_state(index))
            found = predict(self.forward(network), images, labels=labels, spec=self.spec, device=device)
            num_correct = int((found.predicted == labels).sum())
            return {"loss": found.loss, "accuracy_percent": 100 * num_correct / len(labels)}

        return validate

    def score(self, index: int, *, checkpoint: Path, progress: Report) -> Scored:  # noqa: ARG002
        network = self.trained(index)
        images, labels = self.data.to_score()
        device = torch.device(self.device_kind)
        predictions = predict(self.forward(network), images, labels=labels, spec=self.spec, device=device)
        refuse_not_finite(predictions, spec=self.spec)
        seconds = self._wall_seconds / len(self.seeds)  # an equal share
        return Scored(network=network, predictions=predictions, labels=labels, wall_seconds=seconds)

    def forward(self, network: nn.Module) -> nn.Module:
        """The module whose forward pass scores the network."""
        return network

    def trace(self, seeds: Collection[int], *, until: int, checkpoint: Path) -> Mapping[int, Found]:
        """From the checkpoint, unless it may hold a seed whose weights are not finite beside others."""
        start = None if self.training.stacks_seeds else checkpoint
        tracer = Tracer(seeds, until=until)
        with contextlib.suppress(DivergenceError):
            self._fit(self.built(), checkpoint=start, reports=[_unread] * len(self.seeds), callbacks=[tracer])
        return tracer.found


def _unread(point: dict[str, Any]) -> None:
    """The epochs of a replay, which the run has reported."""
