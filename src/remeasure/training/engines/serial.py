"""The training of one seed: the Lightning module, whose step is a block of optimiser steps.

The images stay on the device as uint8. One Lightning training step runs a block of torch's optimiser steps, so that
Lightning's overhead per step is small: Lightning counts blocks, `Training.num_steps` the steps. All randomness is a
function of (seed, purpose, step), so that a resumed run gives the same numbers as an uninterrupted one.
"""

import functools
import logging
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.training import seeding
from remeasure.training.augment import augment, resized
from remeasure.training.engines import capture
from remeasure.training.inference import memory_format
from remeasure.training.losses import training_loss
from remeasure.training.optimizers import build_optimizer
from remeasure.training.recipe import rate_of
from remeasure.training.seeding import permutation

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips, no list of the accelerators it found
# Importing Lightning sets this to 1; without a GPU, torch's optimisers then search the disk for a driver at each step.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


class DivergenceError(ArithmeticError):
    """The loss is no longer finite. `epoch` and `step` (from 0): where it was noticed or, with `reason`, arose."""

    def __init__(self, *, epoch: int, step: int, reason: str = "") -> None:
        super().__init__(reason or f"the loss is not finite after step {step} (epoch {epoch + 1})")
        self.epoch, self.step = epoch, step


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation of the full batch: the weights as one vector, their gradients, the loss (), the logits."""

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
        self._trained = list(network.parameters())  # a list: walking through the modules at each step is slow
        self.recipe, self.seed, self.steps_per_block = spec.recipe, seed, spec.steps_per_block
        self.precision_name = spec.precision
        self.average = AveragedModel(network, **_averaging(spec.recipe)) if spec.recipe.averaging else None
        self.register_buffer("images", images, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("loss_total", torch.zeros(()))  # over this epoch's images so far; checkpoints keep both
        self.register_buffer("num_correct", torch.zeros((), dtype=torch.int64))
        self._mirrored_first: Tensor | None = self.recipe.augmentation.mirrored_first(len(images), seed=seed)
        self.num_steps = 0  # optimiser steps done; checkpoints keep them
        self._whole: tuple[Tensor, Tensor] | None = None
        self._evaluated: Evaluated | None = None
        self._draws = any(isinstance(layer, nn.Dropout) for layer in network.modules())
        self._captured, self._compiled = capture.Captured(), spec.compile
        self._rate: Tensor | None = None  # the learning rate () that CUDA graphs read
        self.steps_per_epoch = math.ceil(len(images) / self.recipe.batch_size)
        self.blocks_per_epoch = math.ceil(self.steps_per_epoch / self.steps_per_block)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if capture.possible(self.device) and self.recipe.optimizer.capturable:
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
        """Reset the totals; Lightning does not call this after a resume in mid-epoch."""
        self.loss_total.zero_()
        self.num_correct.zero_()

    def training_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002 - a resumed loader restarts at 0
        """One block of optimiser steps; its position and its random seeds follow from `num_steps` alone."""
        first = self.num_steps
        epoch, start = divmod(first, self.steps_per_epoch)
        torch.manual_seed(seeding.derive(self.seed, purpose="dropout", step=first))
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

        A full batch keeps the images' own order, so that sums round alike in every epoch and after every resume.
        """
        if self.steps_per_epoch == 1:
            return torch.arange(len(self.images))
        return permutation(len(self.images), seed=self.seed, epoch=epoch)

    def generator(self, step: int) -> torch.Generator | None:
        """The generator of distortions for the block that begins with optimiser step `step`. None on CUDA: the device's
        global generator, which the block has seeded and which works in a CUDA graph.
        """
        if self.device.type == "cuda":
            return None
        return torch.Generator().manual_seed(seeding.derive(self.seed, purpose="augmentation", step=step))

    def _optimiser_step(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """One step at its learning rate, as a CUDA graph where possible; returns what `_step` returns."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        rate = self.learning_rate(step)  # set it anew: a checkpoint may have restored another tensor than graphs read
        optimizer.param_groups[0]["lr"] = rate if self._rate is None else self._rate.fill_(rate)
        take = functools.partial(self._step, step=step, generator=generator, optimizer=optimizer)
        hooked = bool(optimizer._optimizer_step_post_hooks)  # by the doctor; a graph's replay calls no hooks
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
        """All that Python decides in step `step`: the image size, and for alternating flips the epoch's parity."""
        resolution, epoch = self.recipe.resolution, step // self.steps_per_epoch
        odd = 0 if self._mirrored_first is None else epoch % 2
        return resolution and resolution.pixels_at(epoch), odd

    def _mirrored(self, chosen: Tensor, *, epoch: int) -> Tensor | None:
        """Which of the images at these indices are mirrored in this epoch, (B,) bool; None: drawn anew in each step."""
        if self._mirrored_first is None:
            return None
        self._mirrored_first = self._mirrored_first.to(self.device)
        return self._mirrored_first.index_select(0, chosen) ^ (epoch % 2 == 1)

    def _step(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """One optimiser step; returns loss () and logits (B, num_classes) from before the step, and labels (B,)."""
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
        """Keep a full-batch evaluation: L-BFGS ends a step with one and begins the next step by repeating it."""
        if self.recipe.optimizer.searches_lines and self._whole is not None and not self._draws:
            weights = parameters_to_vector(self._trained).detach()
            gradients = [parameter.grad for parameter in self._trained]
            self._evaluated = Evaluated(weights=weights, gradients=gradients, loss=loss, logits=logits)

    def _evaluated_here(self) -> "Evaluated | None":
        """The kept evaluation, its gradients restored, if the weights are still the same; else None."""
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
        """Raise DivergenceError if the loss is not finite. The block's only synchronisation."""
        if not torch.isfinite(self.loss_total):
            raise DivergenceError(epoch=epoch, step=self.num_steps - 1)

    @property
    def mean_loss(self) -> Tensor:
        """The mean loss over this epoch's images so far, ()."""
        num_batches = (self.num_steps - 1) % self.steps_per_epoch + 1
        return self.loss_total / min(num_batches * self.recipe.batch_size, len(self.images))

    def totals(self) -> dict[str, Any]:
        """The epoch's mean loss and accuracy on the batches as they were trained on."""
        num = len(self.images)
        return {"loss": self.loss_total.item() / num, "accuracy_percent": 100 * self.num_correct.item() / num}

    def batch(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Images as the network gets them in optimiser step `step`, and labels, at these indices.

        A full batch without augmentation or resizing is made once.
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
        """Whether the weights are finite. Others are not checkpointed: a replay from them could not find the fault."""
        return all_finite(self._trained)

    def learning_rate(self, step: int) -> float:
        return rate_of(self.recipe, step=step, steps_per_epoch=self.steps_per_epoch)


def _averaging(recipe: Recipe) -> dict[str, Any]:
    assert recipe.averaging is not None
    average = get_ema_multi_avg_fn(recipe.averaging.decay)  # type: ignore[no-untyped-call]
    return {"multi_avg_fn": average, "use_buffers": True}  # those of batch normalisation


def all_finite(weights: Iterable[Tensor]) -> bool:
    return all(weight.isfinite().all() for weight in weights)
