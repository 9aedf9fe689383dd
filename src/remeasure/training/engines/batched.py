"""Several seeds of one spec trained together (engine=batched): weights are stacked, each layer is one batched product.

A small net leaves most of a GPU idle, so that ten seeds cost little more than one. On a CPU they cost more than one
after the other (docs/performance.md). Each seed has the initial weights and the image order of the serial engine, so
that without dropout and distortions it ends at the same weights up to rounding; dropout masks and distortions of all
seeds are drawn from one generator.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.training.engines.blocks import BlockJob, BlockTraining
from remeasure.training.engines.steps import take_step, trace_outputs
from remeasure.training.seeding import initial_network


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
        self._look: Callable[[str, Tensor], None] | None = None
        self._outputs: list[tuple[str, Tensor]] = []  # of the last forward pass: layer name, and whether it is finite

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor
        logits, finite = vmap(self._one, randomness="different")(list(self.stacked), images)
        if self._look:
            for (name, _), seeds in zip(self._outputs, finite, strict=True):
                self._look(name, seeds)
        return logits

    def _one(self, weights: list[Tensor], batch: Tensor) -> tuple[Any, list[Tensor]]:
        """One seed's logits (B, num_classes), and whether each traced output is finite; vmap calls it for all seeds."""
        self._outputs = []
        given = dict(zip(self._names, weights, strict=True)) | self.constants()
        logits = functional_call(self._kind[0], given, (batch,))
        return logits, [finite for _, finite in self._outputs]

    def constants(self) -> dict[str, Tensor]:
        """The buffers by the names that they have in one network."""
        return {name: getattr(self, f"constant_{index}") for index, name in enumerate(self._constants)}

    def trace(self, look: Callable[[str, Tensor], None]) -> None:
        """From now on, `look` gets each leaf layer's name and whether its outputs are finite, (S,).

        vmap hides values from hooks, so that they are looked at within it and returned beside the logits.
        """
        self._look = look
        trace_outputs(self._kind[0], lambda name, finite: self._outputs.append((name, finite)))

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The stacked parameters by the names that they have in one network."""
        return dict(zip(self._names, self.stacked, strict=True))

    def state_of(self, index: int) -> dict[str, Tensor]:
        """A copy of the state_dict that the network of one seed would have."""
        values = {name: stacked[index] for name, stacked in self.parameters_by_name().items()} | self.constants()
        return {name: values[name].detach().clone() for name in self._kind[0].state_dict()}


def clip_each(parameters: Sequence[Tensor], *, max_norm: float) -> None:
    """Scale each seed's gradients (S, ...) to a norm of at most `max_norm` over all its parameters, as torch's
    clip_grad_norm_ does for one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients])
    scale = (max_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


class BatchedTraining(BlockTraining):
    """Training of S seeds; batches are (S, B)."""

    stacks_seeds = True
    clip = staticmethod(clip_each)
    network: Stacked

    def __init__(
        self, networks: Sequence[nn.Module], *, spec: RunSpec, seeds: Sequence[int], images: Tensor, labels: Tensor
    ) -> None:
        super().__init__(Stacked(networks), spec=spec, seeds=seeds, images=images, labels=labels)
        self._orders: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """(N, S) on the device: column s is the serial engine's order for seed s."""
        if self._orders is None or self._orders[0] != epoch:
            columns = [self.order_of(seed, epoch=epoch) for seed in self.seeds]
            self._orders = epoch, torch.stack(columns, dim=1).to(self.device)
        return self._orders[1]

    def generator(self, step: int) -> torch.Generator | None:  # noqa: ARG002
        """None: vmap draws from the device's global generator only."""
        return None

    def take(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """One step of all seeds on images `chosen` (B, S). It adds to the totals itself, within the CUDA graph, whose
        outputs would have to be copied; so it returns nothing to count.
        """
        num = len(chosen)
        images, labels = self.batch(chosen.t().flatten(), step=step, generator=generator)
        images, labels = images.view(len(self.seeds), num, *images.shape[1:]), labels.view(len(self.seeds), num)
        losses, logits = take_step(
            self.network, images, labels, optimizer=optimizer, loss=self.losses, clip=self._clip, look=self.look
        )
        self.loss_total += losses * num
        self.num_correct += (logits.argmax(dim=2) == labels).sum(dim=1)
        return ()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each seed's mean loss and penalty, (S,)."""
        loss = self.recipe.loss
        each: Tensor = loss.each(logits.flatten(0, 1).float(), labels.flatten())
        losses = each.view(labels.shape).mean(dim=1)
        if loss.l2_penalty:
            squares = [weight.flatten(1).square().sum(dim=1) for weight in self._trained if weight.ndim > 2]
            losses = losses + 0.5 * loss.l2_penalty * torch.stack(squares).sum(dim=0)
        return losses

    def named_weights(self) -> Mapping[str, nn.Parameter]:
        return self.network.parameters_by_name()

    def trace_outputs(self, look: Callable[[str, Tensor], None]) -> None:
        self.network.trace(look)

    def state_of(self, index: int) -> dict[str, Tensor]:
        return self.network.state_of(index)


class BatchedJob(BlockJob):
    """A group of seeds, trained as one network on the same images."""

    training: BatchedTraining

    def built(self) -> BatchedTraining:
        images, labels = self.data.to_train(seed=self.seeds[0])
        networks = [initial_network(self.spec, seed=seed) for seed in self.seeds]
        return BatchedTraining(networks, spec=self.spec, seeds=self.seeds, images=images, labels=labels)

    def trained(self, index: int) -> nn.Module:
        network = initial_network(self.spec, seed=self.seeds[index])
        with torch.no_grad():  # by position: a state_dict also has the second names of shared weights
            for parameter, stacked in zip(network.parameters(), self.training.network.stacked, strict=True):
                parameter.copy_(stacked[index])
        return network
