"""One optimiser step, and the Lightning module that all trainings have in common."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from remeasure.spec.base import DivergenceError
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec
from remeasure.training.recipe import learning_rate

What = Literal["output", "loss", "gradient", "weight"]
Look = Callable[[What, str, Tensor], None]  # gets what, its layer, and whether it is finite for each seed, (S,) bool


def take_step(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    clip: Callable[[], object] | None = None,
    look: Look | None = None,
    memory: "Memory | None" = None,
) -> tuple[Tensor, Tensor]:
    """One optimiser step: forward, loss, backward, clip, update. Returns loss and logits from before the step.

    `loss`: from logits and labels to the loss (), or the losses (S,) of seeds that train together. `look` gets whether
    the loss is finite. L-BFGS evaluates more than once a step; `memory` spares it the evaluations that it repeats.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def closure() -> float:
        if memory and (again := memory.recall()):
            seen.append(again)
            return again[0]  # type: ignore[return-value]  # as below
        optimizer.zero_grad()
        logits = network(images)
        value = loss(logits, labels)
        # No loss is scaled; Lightning's manual_backward costs 3 % a step.
        torch.autograd.backward([value], [torch.ones_like(value)] if value.ndim else None)
        if look:
            look("loss", "", value.detach().isfinite())
        if clip:
            clip()
        seen.append((value.detach(), logits.detach()))
        if memory:
            memory.keep(*seen[-1])
        return value  # type: ignore[return-value]  # torch's own annotation; its optimisers take tensors

    optimizer.step(closure)
    return seen[0]


class Memory:
    """The last evaluation of the full batch: L-BFGS ends a step with one and begins the next step by repeating it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._weights: Tensor | None = None  # all of them as one vector

    def keep(self, loss: Tensor, logits: Tensor) -> None:
        self._weights = parameters_to_vector(self._parameters).detach()
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._seen = loss, logits

    def recall(self) -> tuple[Tensor, Tensor] | None:
        """Loss and logits that were kept, their gradients restored, if the weights are still the same; else None."""
        if self._weights is None or not torch.equal(parameters_to_vector(self._parameters), self._weights):
            return None
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._seen


class TrainingModule(LightningModule):
    """What Lightning's loop, callbacks and jobs need of a training: of one seed, or of several as one network.

    `stacks_seeds`: whether the network takes the batches of all seeds, stacked. `num_steps`: optimiser steps done.
    `steps_per_batch`: those of one Lightning batch. `diverged`: the seeds that have diverged, by position.
    """

    stacks_seeds: ClassVar[bool] = False
    network: nn.Module
    num_steps: int
    steps_per_batch: int
    steps_per_epoch: int
    loss_total: Tensor  # over this epoch's images so far; checkpoints keep both
    num_correct: Tensor

    def __init__(self, *, spec: RunSpec, seeds: Sequence[int]) -> None:
        super().__init__()
        assert isinstance(spec.recipe, Recipe)
        self.spec, self.recipe, self.seeds = spec, spec.recipe, tuple(seeds)
        self.steps_per_block = spec.steps_per_block
        self.num_steps = 0
        self.step_callbacks: list[StepCallback] = []
        self.diverged: dict[int, DivergenceError] = {}
        self.look: Look | None = None

    def learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            lr_peak=self.recipe.optimizer.lr_peak,
            schedule=self.recipe.schedule,
            steps_per_epoch=self.steps_per_epoch,
            epochs_total=self.recipe.epochs_total,
        )

    def ends_block(self, num_steps: int) -> bool:
        """Whether a block of steps ends after `num_steps`; the last one of an epoch may be shorter."""
        return num_steps % self.steps_per_epoch % self.steps_per_block == 0

    def on_train_epoch_start(self) -> None:
        """Reset the totals; Lightning does not call this after a resume in mid-epoch."""
        self.loss_total.zero_()
        self.num_correct.zero_()

    def totals(self) -> list[dict[str, float]]:
        """For each seed the epoch's mean loss and accuracy_percent so far, on the batches as they were trained on."""
        raise NotImplementedError

    @property
    def is_finite(self) -> bool:
        """Whether a checkpoint may be written: a replay from weights that are not finite could not find the fault.

        One of several seeds may hold diverged ones, since their diagnosis replays from the start.
        """
        return self.stacks_seeds or all(weight.isfinite().all() for weight in self.network.parameters())

    # ------------------------------------------------ for diagnostics.nonfinite.Tracer

    def trace(self, look: Look) -> None:
        """From now on, `look` gets each step's outputs, losses and gradients, before they are clipped."""
        self.look = look
        self.trace_outputs(lambda name, finite: look("output", name, finite))
        for name, parameter in self.named_weights().items():
            hook: Any = parameter.register_post_accumulate_grad_hook
            hook(lambda owner, name=name: look("gradient", name, finite_seeds(owner.grad, num=len(self.seeds))))

    def trace_outputs(self, look: Callable[[str, Tensor], None]) -> None:
        """From now on, `look` gets each layer's name and whether its output is finite."""
        trace_outputs(self.network, look)

    def named_weights(self) -> Mapping[str, nn.Parameter]:
        """The parameters by their names in one seed's network; of several seeds (S, …)."""
        return dict(self.network.named_parameters())

    def state_of(self, index: int) -> dict[str, Tensor]:
        """A copy of one seed's weights and buffers."""
        assert index == 0
        return {key: value.detach().clone() for key, value in self.network.state_dict().items()}

    def scored_state(self, index: int) -> Mapping[str, Tensor]:
        """The state_dict of the network that one seed would be scored with now."""
        return self.state_of(index)

    def batch_of(self, step: int) -> list[list[int]]:
        """For each seed the indices, in the training split, of the images of a step, in their order."""
        raise NotImplementedError


class StepCallback(Callback):
    """A Lightning callback that is also called around each optimiser step, outside of CUDA graphs.

    Lightning's own hooks are called around a batch, which may be a block of steps.
    """

    module: TrainingModule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        assert isinstance(pl_module, TrainingModule)
        self.module = pl_module
        pl_module.step_callbacks.append(self)

    def before_step(self, step: int) -> None:
        """Before optimiser step `step`, counted from 0."""

    def after_step(self, step: int) -> None:
        """After it, its update of the weights included."""


class AfterSteps(StepCallback):
    """Calls a function after each optimiser step."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def after_step(self, step: int) -> None:  # noqa: ARG002
        self._call()


def trace_outputs(network: nn.Module, look: Callable[[str, Tensor], None]) -> None:
    """Hook each leaf layer to call `look` with its name and whether its output is finite, ()."""

    def hook(name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            look(name, output.detach().isfinite().all())

    for name, layer in network.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(partial(hook, name))


def finite_seeds(values: Tensor, *, num: int) -> Tensor:
    """Whether all values of each of `num` seeds are finite: (num, …), or of one seed any shape, to (num,) bool."""
    return values.detach().isfinite().reshape(num, -1).all(dim=1)
