"""Several seeds of one spec trained as one (engine=batched): their weights stacked, each layer one batched product.

A small net leaves most of a GPU idle: ten seeds then cost little more than one. On a CPU they cost more than one after
the other (docs/performance.md). Each seed has the initial weights and the order of images that it has in the serial
engine, so that without dropout and distortions it ends at the same weights, but for rounding; dropout's masks and the
distortions are drawn for all seeds from one stream.

On CUDA a step is captured once, as a graph, and replayed: Python no longer launches each of its small kernels.
REMEASURE_CAPTURE=0 trains without that, to the same numbers.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from remeasure.recipe import build_optimizer
from remeasure.spec import InputError, Loss, RunSpec
from remeasure.training import DivergenceError, Training, permutation

CAPTURABLE = ("adam", "adamw", "rmsprop")
STEPS_BEFORE_CAPTURE = 3  # on a stream of their own, as torch asks: libraries set themselves up in the first ones


class Stacked(nn.Module):
    """The networks of S seeds, all of one kind, as one: (S, B, C, H, W) to logits (S, B, num_classes).

    Its parameters are theirs, each stacked to (S, ...). InputError: networks whose buffers training moves.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if any(isinstance(layer, _BatchNorm) for layer in networks[0].modules()):
            raise InputError("engine: the batched engine trains no batch normalisation; choose engine=serial")
        # Neither registered nor moved: what is computed with stands in `stacked` and `constants`.
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
        """One seed's logits (B, num_classes), as vmap sees it."""
        constants = {name: getattr(self, f"constant_{index}") for index, name in enumerate(self._constants)}
        return functional_call(self._kind[0], dict(zip(self._names, weights, strict=True)) | constants, (batch,))

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The stacked parameters by the names that they have in one network."""
        return dict(zip(self._names, self.stacked, strict=True))

    def unstack(self, index: int, *, into: nn.Module) -> None:
        """Copy the weights of the seed at `index` into a network of the kind."""
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
        self._graph: Any = None  # of a whole step on CUDA, once there is one; it reads the indices in `_chosen`
        self._chosen, self._rate, self._num_eager = torch.empty(0), torch.empty(()), 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if not self._captures:
            return super().configure_optimizers()
        self._rate = torch.tensor(self.recipe.optimizer.lr_peak, device=self.device)
        return build_optimizer(self.network.parameters(), optimizer=self.recipe.optimizer, captured_rate=self._rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["diverged"] = {index: (error.epoch, error.step) for index, error in self.diverged.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = checkpoint["diverged"].items()
        self.diverged = {index: DivergenceError(epoch=epoch, step=step) for index, (epoch, step) in found}

    @property
    def is_finite(self) -> bool:
        """Not asked: seeds that diverged have a place in a checkpoint, and are trained again from the start."""
        return True

    @property
    def _captures(self) -> bool:
        wanted = os.environ.get("REMEASURE_CAPTURE", "1") != "0"
        return wanted and self.device.type == "cuda" and self.recipe.optimizer.name in CAPTURABLE

    def order(self, epoch: int) -> Tensor:
        """(N, S) on the device: in column s the order of seed s, as the serial engine has it."""
        if self._orders is None or self._orders[0] != epoch:
            num = len(self.images)
            if self.steps_per_epoch == 1:
                columns = [torch.arange(num) for _ in self.seeds]
            else:
                columns = [permutation(num, seed=seed, epoch=epoch) for seed in self.seeds]
            self._orders = epoch, torch.stack(columns, dim=1).to(self.device)
        return self._orders[1]

    def generator(self, step: int) -> torch.Generator | None:  # noqa: ARG002
        """None: distortions are drawn on the device, from the stream of the dropout masks, so that a graph can."""
        return None

    def _optimiser_step(
        self,
        chosen: Tensor,
        *,
        step: int,
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """At images chosen (B, S)."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self._set_rate(optimizer, self.learning_rate(step))
        if self._captures and len(chosen) == self.recipe.batch_size and not self._small(step):
            self._replayed(chosen, step=step, optimizer=optimizer)
        else:
            self._step(chosen, step=step, optimizer=optimizer)
        return ()

    def _step(self, chosen: Tensor, *, step: int, optimizer: torch.optim.Optimizer) -> None:
        """One step of all seeds at images chosen (B, S); nothing in it waits for the device."""
        num = len(chosen)
        with torch.autocast(self.device.type, enabled=False):
            images, labels = self.batch(chosen.t().flatten(), step=step, generator=None)
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

    def _losses(self, logits: Tensor, labels: Tensor, *, loss: Loss) -> Tensor:
        """Each seed's mean cross-entropy and penalty, (S,)."""
        smoothing = loss.label_smoothing
        each = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing, reduction="none"
        )
        losses = each.view(labels.shape).mean(dim=1)
        if loss.l2_penalty:
            squares = [weight.flatten(1).square().sum(dim=1) for weight in self._trained if weight.ndim > 2]
            losses = losses + 0.5 * loss.l2_penalty * torch.stack(squares).sum(dim=0)
        return losses

    def _count(self, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Each step has counted itself: a graph can."""

    def _check(self, epoch: int) -> None:
        """A seed that diverges is out; the others go on."""
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

    # ------------------------------------------------ on CUDA, a captured step

    def _small(self, step: int) -> bool:
        """Whether this step's images are smaller than they will be."""
        resolution = self.recipe.resolution
        return resolution is not None and resolution.pixels_at(step // self.steps_per_epoch) is not None

    def _set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        captured = self._captures  # a graph reads the rate's tensor; a checkpoint may have brought another one
        optimizer.param_groups[0]["lr"] = self._rate.fill_(rate) if captured else rate

    def _replayed(self, chosen: Tensor, *, step: int, optimizer: torch.optim.Optimizer) -> None:
        if self._graph is None and self._num_eager < STEPS_BEFORE_CAPTURE:
            self._num_eager += 1
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step(chosen, step=step, optimizer=optimizer)
            torch.cuda.current_stream().wait_stream(aside)
            return
        if self._graph is None:
            self._chosen = chosen.clone()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # records, and does nothing yet
                self._step(self._chosen, step=step, optimizer=optimizer)
        self._chosen.copy_(chosen)
        self._graph.replay()


def clip_each(parameters: Sequence[Tensor], *, max_norm: float) -> None:
    """Scale each seed's gradients (S, ...) to a norm of at most `max_norm` over all its parameters, as torch's
    clip_grad_norm_ does for one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients])
    scale = (max_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
