"""Several seeds of one spec trained together (engine=batched): weights are stacked, each layer is one batched product.

A small net leaves most of a GPU idle, so that ten seeds cost little more than one. On a CPU they cost more than one
after the other (docs/performance.md). Each seed has the initial weights and the image order of the serial engine, so
that without dropout and distortions it ends at the same weights up to rounding; dropout masks and distortions of all
seeds are drawn from one generator.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from remeasure.spec.base import InputError
from remeasure.spec.recipe import Loss
from remeasure.spec.run import RunSpec
from remeasure.training.engines.serial import DivergenceError, Training
from remeasure.training.seeding import permutation


class Stacked(nn.Module):
    """The networks of S seeds, of one architecture, as one: (S, B, C, H, W) to logits (S, B, num_classes).

    Each parameter is stacked to (S, ...). InputError: batch normalisation, whose buffers change in training.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if any(isinstance(layer, _BatchNorm) for layer in networks[0].modules()):
            raise InputError("engine: the batched engine trains no batch normalisation; choose engine=serial")
        # In a tuple: torch must neither register nor move it. Weights are in `stacked`, buffers in constant_0, ….
        self._kind = (copy.deepcopy(networks[0]).to("meta"),)
        self._names = [name for name, _ in networks[0].named_parameters()]
        each = [dict(network.named_parameters()) for network in networks]
        self.stacked = nn.ParameterList([torch.stack([seed[name].detach() for seed in each]) for name in self._names])
        self._constants = [name for name, _ in networks[0].named_buffers()]
        for index, constant in enumerate(networks[0].buffers()):
            self.register_buffer(f"constant_{index}", constant, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = vmap(self._one, randomness="different")(list(self.stacked), images)
        return logits

    def _one(self, weights: list[Tensor], batch: Tensor) -> Any:
        """One seed's logits (B, num_classes); vmap calls it for all seeds."""
        constants = {name: getattr(self, f"constant_{index}") for index, name in enumerate(self._constants)}
        return functional_call(self._kind[0], dict(zip(self._names, weights, strict=True)) | constants, (batch,))

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The stacked parameters by the names that they have in one network."""
        return dict(zip(self._names, self.stacked, strict=True))

    def unstack(self, index: int, *, into: nn.Module) -> None:
        """Copy the weights of the seed at `index` into a network of the same architecture."""
        with torch.no_grad():
            for parameter, stacked in zip(into.parameters(), self.stacked, strict=True):
                parameter.copy_(stacked[index])


class BatchedTraining(Training):
    """`Training` of S seeds. Totals are (S,); batches are (S, B)."""

    network: Stacked
    stack: type[Stacked] = Stacked

    def __init__(
        self, networks: Sequence[nn.Module], *, spec: RunSpec, seeds: Sequence[int], images: Tensor, labels: Tensor
    ) -> None:
        super().__init__(self.stack(networks), spec=spec, seed=seeds[0], images=images, labels=labels)
        self.seeds, self.diverged = tuple(seeds), dict[int, DivergenceError]()
        self.loss_total = torch.zeros(len(seeds))
        self.num_correct = torch.zeros(len(seeds), dtype=torch.int64)
        self._orders: tuple[int, Tensor] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["diverged"] = {index: (error.epoch, error.step) for index, error in self.diverged.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = checkpoint["diverged"].items()
        self.diverged = {index: DivergenceError(epoch=epoch, step=step) for index, (epoch, step) in found}

    @property
    def is_finite(self) -> bool:
        """Always true: checkpoints may hold diverged seeds, since their diagnosis replays from the start."""
        return True

    def order(self, epoch: int) -> Tensor:
        """(N, S) on the device: column s is the serial engine's order for seed s."""
        if self._orders is None or self._orders[0] != epoch:
            num = len(self.images)
            if self.steps_per_epoch == 1:
                columns = [torch.arange(num) for _ in self.seeds]
            else:
                columns = [permutation(num, seed=seed, epoch=epoch) for seed in self.seeds]
            self._orders = epoch, torch.stack(columns, dim=1).to(self.device)
        return self._orders[1]

    def generator(self, step: int) -> torch.Generator | None:  # noqa: ARG002
        """None: distortions and dropout masks use the device's global generator, which works in a CUDA graph."""
        return None

    def _step(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """One step of all seeds on images `chosen` (B, S), without waiting for the device; adds to the totals."""
        num = len(chosen)
        with torch.autocast(self.device.type, enabled=False):
            images, labels = self.batch(chosen.t().flatten(), step=step, generator=generator)
        optimizer.zero_grad()
        logits = self.network(images.view(len(self.seeds), num, *images.shape[1:]))
        labels = labels.view(len(self.seeds), num)
        losses = self._losses(logits, labels, loss=self.recipe.loss)
        torch.autograd.backward([losses.sum()])
        if self.recipe.clip_norm is not None:
            clip_each(self._trained, max_norm=self.recipe.clip_norm)
        optimizer.step()
        self.loss_total += losses.detach() * num
        self.num_correct += (logits.detach().argmax(dim=2) == labels).sum(dim=1)
        return ()

    def _losses(self, logits: Tensor, labels: Tensor, *, loss: Loss) -> Tensor:
        """Each seed's mean loss and penalty, (S,)."""
        each: Tensor = loss.each(logits.flatten(0, 1).float(), labels.flatten())
        losses = each.view(labels.shape).mean(dim=1)
        if loss.l2_penalty:
            squares = [weight.flatten(1).square().sum(dim=1) for weight in self._trained if weight.ndim > 2]
            losses = losses + 0.5 * loss.l2_penalty * torch.stack(squares).sum(dim=0)
        return losses

    def _count(self, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Nothing: `_step` adds to the totals itself, within the CUDA graph."""

    def _check(self, epoch: int) -> None:
        """Record the seeds that diverged; raise DivergenceError only when all have."""
        for index, finite in enumerate(torch.isfinite(self.loss_total).tolist()):
            if not finite and index not in self.diverged:
                self.diverged[index] = DivergenceError(epoch=epoch, step=self.num_steps - 1)
        if len(self.diverged) == len(self.seeds):
            raise self.diverged[0]

    def totals(self) -> dict[str, Any]:
        num = len(self.images)
        return {
            "loss": [total / num for total in self.loss_total.tolist()],
            "accuracy_percent": [100 * correct / num for correct in self.num_correct.tolist()],
        }


def clip_each(parameters: Sequence[Tensor], *, max_norm: float) -> None:
    """Scale each seed's gradients (S, ...) to a norm of at most `max_norm` over all its parameters, as torch's
    clip_grad_norm_ does for one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients])
    scale = (max_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
