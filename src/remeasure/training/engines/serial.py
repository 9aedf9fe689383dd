"""One seed in torch (engine=serial)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from remeasure.spec.recipe import Averaging
from remeasure.spec.run import RunSpec
from remeasure.training import seeding
from remeasure.training.engines.blocks import BlockJob, BlockTraining
from remeasure.training.engines.steps import Memory, take_step
from remeasure.training.losses import training_loss
from remeasure.training.seeding import initial_network


class Training(BlockTraining):
    """One seed's training."""

    def __init__(self, network: nn.Module, *, spec: RunSpec, seed: int, images: Tensor, labels: Tensor) -> None:
        super().__init__(network, spec=spec, seeds=[seed], images=images, labels=labels)
        self.seed = seed
        self.average = _average(network, self.recipe.averaging) if self.recipe.averaging else None
        self.mirrored_first = self.recipe.augmentation.mirrored_first(len(images), seed=seed)
        repeats = self.recipe.optimizer.searches_lines and self._keeps_whole and _repeats(network, images[:2])
        self.memory = Memory(self._trained) if repeats else None

    def order(self, epoch: int) -> Tensor:
        return self.order_of(self.seed, epoch=epoch)

    def generator(self, step: int) -> torch.Generator | None:
        if self.device.type == "cuda":
            return None
        return torch.Generator().manual_seed(seeding.derive(self.seed, purpose="augmentation", step=step))

    def take(
        self, chosen: Tensor, *, step: int, generator: torch.Generator | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, ...]:
        """Returns loss () and logits (B, num_classes) from before the step, and labels (B,)."""
        images, labels = self.batch(chosen, step=step, generator=generator)
        loss, logits = take_step(
            self.network,
            images,
            labels,
            optimizer=optimizer,
            loss=self.loss,
            clip=self._clip,
            look=self.look,
            memory=self.memory,
        )
        return loss, logits, labels

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return training_loss(logits, labels, loss=self.recipe.loss, parameters=self._trained)

    def _launched(self, chosen: Tensor, *, step: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        done = super()._launched(chosen, step=step, generator=generator)
        averaging = self.recipe.averaging
        if self.average and averaging and step >= (averaging.from_epoch - 1) * self.steps_per_epoch:
            self.average.update_parameters(self.network)
        return done

    @property
    def scored(self) -> nn.Module:
        """The network that is scored: the trained one, or the average of its weights once that has begun."""
        if self.average is None or not self.average.n_averaged:
            return self.network
        return self.average.module

    def scored_state(self, index: int) -> Mapping[str, Tensor]:
        assert index == 0
        return self.scored.state_dict()

    def count(self, steps: Sequence[tuple[Tensor, ...]]) -> None:
        losses, logits, labels = zip(*steps, strict=True)
        sizes = torch.tensor([len(some) for some in labels])
        self.loss_total += (torch.stack(losses) * sizes.to(self.device)).sum()
        self.num_correct += (torch.cat(logits).argmax(dim=1) == torch.cat(labels)).sum()


@torch.inference_mode()
def _repeats(network: nn.Module, images: Tensor) -> bool:
    """Whether its forward pass in training gives the same again: it keeps no statistics and draws no numbers."""
    if list(network.buffers()):
        return False
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        network(images.float())
        return torch.equal(torch.get_rng_state(), before)


def _average(network: nn.Module, averaging: Averaging) -> AveragedModel:
    average = get_ema_multi_avg_fn(averaging.decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)  # the buffers of batch normalisation


class SerialJob(BlockJob):
    """One seed."""

    training: Training
    module: type[Training] = Training

    def built(self) -> Training:
        (seed,) = self.seeds
        images, labels = self.data.to_train(seed=seed)
        network = initial_network(self.spec, seed=seed)
        return self.module(network, spec=self.spec, seed=seed, images=images, labels=labels)

    def trained(self, index: int) -> nn.Module:
        assert index == 0
        return self.training.scored
