"""The debugging checklist as a callback: it examines a training and reports what is wrong with it.

It examines `LOOK_STEPS` optimiser steps at the start, and again after 20, 40, 80, … steps: the cost is that of a few
steps however long the run is, and a resumed run is examined at the same steps as an uninterrupted one. It reads values
that these steps compute anyway, draws no random numbers, changes nothing, and fetches its results after the block has
waited for the device. curves.CurveMonitor examines the curves.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from remeasure.training.diagnostics.curves import CurveMonitor
from remeasure.training.engines.blocks import BlockTraining
from remeasure.training.engines.steps import TrainingModule

LOOK_STEPS = 10  # 640 images in the article's batches
# Inputs need mean 0 and deviation 1 (LeCun, Bottou, Orr and Müller 1998, "Efficient backprop", section 4.3). They count
# as not normalised beyond half a power of ten: a mean outside ±3, a deviation above 3. Pixels in [0, 1] pass, such as
# MNIST's 0.13 ± 0.31.
FAR_MEAN, FAR_DEVIATION, LEAST_DEVIATION = 3.0, 3.0, 0.1
# "As much as 40 % of your network can be dead" where the rate is too high: Stanford's CS231n, on activations.
DEAD_SHARE = 0.4
# A sound layer changes the gradient's size by a small factor only (Glorot and Bengio 2010, eq. 6; He et al. 2015, eq.
# 14). A factor of 3 lost in each of 6 layers, or a stack of sigmoids, gives about 10⁻³.
VANISHED, EXPLODED = 1e-3, 1e3
# Training may cure these: a LeNet-5 as published begins at 10⁻³ and is at 0.1 after 200 steps. So two looks in a row
# must find them.
PASSING = {"vanishing gradients", "exploding gradients"}
# Far below any gradient that changes float32 weights; if the largest is lower, the net has nothing left to learn.
NO_GRADIENT = 1e-6
# Labels are checked in the first epochs and after a finding, if the loss is above 90 % of ln C. With correct labels the
# nearest other image, by pixels, has the same label more often than by chance (CIFAR-10: 20 of 100 among a thousand;
# MNIST: 85), by more than 3 standard errors.
SUSPICIOUS_LOSS, SUSPICIOUS_EPOCHS = 0.9, 2
NUM_NEIGHBOURS, LEAST_NEIGHBOURS, STANDARD_ERRORS = 1000, 200, 3.0


class Doctor(Callback):
    """Examines a training and notes findings in the chart of each seed. `inside`: whether to hook into the net; hooks
    make torch.compile recompile it. Of seeds that train together, it examines the labels alone.
    """

    def __init__(self, charts: Sequence[CurveMonitor], *, inside: bool = True) -> None:
        self.charts, self.inside = charts, inside
        self._look: Look | None = None
        self._doubtful: set[str] = set()  # transient findings of the last look, to be confirmed by the next

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module, TrainingModule)
        due = is_due(pl_module.num_steps, batch_steps=pl_module.steps_per_batch)
        if self._look is None and due and not pl_module.stacks_seeds:
            self._look = Look(pl_module.network, trainer.optimizers[0], inside=self.inside)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:  # noqa: ARG002
        assert isinstance(pl_module, TrainingModule)
        if self._look and self._look.num_steps >= LOOK_STEPS and pl_module.ends_block(pl_module.num_steps):
            self._conclude(self._look, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < SUSPICIOUS_EPOCHS:
            self._look_at_labels(pl_module)

    def on_train_end(self, *_: object) -> None:
        if self._look:
            self._look.end()  # too few steps to conclude from

    def _conclude(self, look: "Look", pl_module: LightningModule) -> None:
        self._look = None
        (chart,) = self.charts
        chart.same_answer = look.same_answer()
        found: dict[str, str] = {}
        for name, evidence in look.findings():
            found.setdefault(name, evidence)
        doubtful = found.keys() & PASSING
        if doubtful - self._doubtful:  # defer it, and all that may follow from it
            found = {name: evidence for name, evidence in found.items() if name == "input not normalised"}
        self._doubtful = doubtful
        if found:
            self._look_at_labels(pl_module)  # wrong labels cannot be learned: units die, gradients vanish
        for name, evidence in found.items():
            chart.note(name, evidence)

    def _look_at_labels(self, pl_module: LightningModule) -> None:
        if isinstance(pl_module, BlockTraining):  # photographs are not in memory
            losses = pl_module.mean_losses.tolist()
            for index, (chart, loss) in enumerate(zip(self.charts, losses, strict=True)):
                if index not in pl_module.diverged:
                    check_labels(chart, images=pl_module.images, labels=pl_module.labels, loss=loss)


def is_due(num_steps: int, *, batch_steps: int) -> bool:
    """Whether one of 0, 20, 40, 80, … was reached with the last `batch_steps`."""
    reached = LOOK_STEPS << (num_steps // LOOK_STEPS).bit_length() - 1 if num_steps >= 2 * LOOK_STEPS else 0
    return num_steps == 0 or num_steps - batch_steps < reached


class Look:
    """Observes `network` during the next `LOOK_STEPS` steps of `optimizer`."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, inside: bool) -> None:
        self.num_steps, self.num_images = 0, 0
        self._parameters = dict(network.named_parameters())
        self._calls: Counter[str] = Counter()  # calls of each layer in this forward pass
        self._input: Tensor | None = None  # mean and deviation of each channel, (2, C)
        self._answers: list[Tensor] = []
        self._alive: dict[str, Tensor] = {}  # for each ReLU's units, whether any image made them more than 0
        self._signals: dict[str, Tensor] = {}  # norm of ∂loss/∂output of each layer, last layer first
        self._gradients: Tensor | None = None  # the largest gradient norm of each parameter
        self._hooks: list[Any] = [optimizer.register_step_post_hook(lambda *_: self._stepped())]
        if inside:
            self._watch(network)

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------ while steps are taken

    def _watch(self, network: nn.Module) -> None:
        self._hooks.append(network.register_forward_pre_hook(lambda _, inputs: self._see_input(inputs[0])))
        self._hooks.append(network.register_forward_hook(lambda _, __, logits: self._see_answers(logits)))
        for name, layer in network.named_modules():
            label = f"{name} ({type(layer).__name__})"
            if isinstance(layer, nn.ReLU):
                self._hooks.append(layer.register_forward_hook(partial(self._see_units, label)))
            elif any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False)):
                self._hooks.append(layer.register_forward_hook(partial(self._see_signal, label)))

    @torch.no_grad()
    def _see_input(self, images: Tensor) -> None:
        self._calls.clear()
        self.num_images += len(images)
        if self._input is None:
            seen = images.float()
            self._input = torch.stack([seen.mean(dim=(0, 2, 3)), seen.std(dim=(0, 2, 3))])

    def _see_answers(self, logits: Tensor) -> None:
        self._answers.append(logits.detach().argmax(dim=1))

    def _see_units(self, label: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._calls[label] += 1
        name = f"{label}, call {calls}" if (calls := self._calls[label]) > 1 else label
        unit = 1 if output.ndim == 4 else output.ndim - 1  # a channel, or the last dimension
        others = [dim for dim in range(output.ndim) if dim != unit]
        alive = output.detach().amax(dim=others) > 0
        self._alive[name] = alive | self._alive[name] if name in self._alive else alive

    def _see_signal(self, label: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        def keep(gradient: Tensor) -> None:
            self._signals[label] = torch.linalg.vector_norm(gradient, dtype=torch.float32)

        if self.num_steps == 0 and isinstance(output, Tensor) and output.requires_grad:
            tensor: Any = output  # its method is not annotated
            tensor.register_hook(keep)

    @torch.no_grad()
    def _stepped(self) -> None:
        """After a step, while its gradients still exist: record their norms."""
        zero = torch.zeros((), device=next(iter(self._parameters.values())).device)
        norms = torch.stack(
            [zero if parameter.grad is None else parameter.grad.norm() for parameter in self._parameters.values()]
        )
        self._gradients = norms if self._gradients is None else torch.maximum(self._gradients, norms)
        self.num_steps += 1
        if self.num_steps >= LOOK_STEPS:
            self.end()

    # ------------------------------------------------ once they are done

    def same_answer(self) -> float:
        """The largest share of one class among the predictions."""
        if not self._answers:
            return 0.0
        answers = torch.cat(self._answers)
        return int(answers.bincount().max()) / len(answers)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yields names and evidence, causes before their consequences."""
        yield from self._of_input()
        signals = {name: float(norm) for name, norm in reversed(self._signals.items())}
        yield from _of_signals(signals, name="exploding gradients", wrong=lambda ratio: ratio > EXPLODED)
        yield from _of_signals(signals, name="vanishing gradients", wrong=lambda ratio: 0 < ratio < VANISHED)
        yield from self._of_units()  # with tiny weights the biases decide, and half of the units are 0, too
        yield from _of_signals(signals, name="vanishing gradients", wrong=lambda ratio: ratio == 0)
        yield from self._of_gradients()

    def _of_input(self) -> Iterator[tuple[str, str]]:
        if self._input is None:
            return
        for channel, (mean, deviation) in enumerate(self._input.t().tolist()):
            if abs(mean) > FAR_MEAN or not LEAST_DEVIATION <= deviation <= FAR_DEVIATION:
                yield (
                    "input not normalised",
                    f"channel {channel} of a batch has mean {mean:.3g} and standard deviation {deviation:.3g} as the "
                    "net sees it, where about 0 and 1 are expected",
                )

    def _of_units(self) -> Iterator[tuple[str, str]]:
        for name, alive in self._alive.items():
            num, num_dead = len(alive), len(alive) - int(alive.sum())
            if num_dead >= DEAD_SHARE * num:
                yield "dead units", f"{num_dead} of the {num} units of {name} are 0 on all of {self.num_images} images"

    def _of_gradients(self) -> Iterator[tuple[str, str]]:
        norms = [] if self._gradients is None else self._gradients.tolist()
        without = [name for name, norm in zip(self._parameters, norms, strict=True) if norm == 0]
        if without and max(norms) > NO_GRADIENT:
            evidence = (
                f"in {self.num_steps} steps none came to {len(without)} of {len(norms)}: {', '.join(without[:4])}"
            )
            yield "parameters without gradient", evidence + (", …" if len(without) > 4 else "")


def _of_signals(signals: dict[str, float], *, name: str, wrong: Callable[[float], bool]) -> Iterator[tuple[str, str]]:
    """`signals`: the norm of the gradient of the loss with respect to each layer's output, first layer first."""
    norms = list(signals.values())
    if len(norms) > 1 and norms[-1] > 0 and math.isfinite(ratio := norms[0] / norms[-1]) and wrong(ratio):
        layers = ", ".join(f"{layer} {norm:.2g}" for layer, norm in signals.items())
        yield name, f"the gradient by the first layer's output is {ratio:.2g} times that by the last one's: {layers}"


def check_labels(chart: CurveMonitor, *, images: Tensor, labels: Tensor, loss: float) -> None:
    """If `loss` shows that nothing is learned, check that labels (N,) belong to images (N, C, H, W) uint8."""
    if loss <= SUSPICIOUS_LOSS * chart.chance_loss:
        return
    num = min(len(images), NUM_NEIGHBOURS)
    if num < LEAST_NEIGHBOURS:
        return
    chosen = torch.arange(num, device=images.device) * len(images) // num
    agreeing, expected = neighbours_agree(images[chosen], labels=labels[chosen])
    bound = expected + STANDARD_ERRORS * math.sqrt(expected * (1 - expected) / num)
    if agreeing <= bound:
        chart.note(
            "labels look shuffled",
            f"of {num} training images {agreeing:.1%} have their nearest neighbour's label, and {expected:.1%} would "
            f"have it by chance; the train loss is {loss:.4g}, and guessing gets {chart.chance_loss:.4g}",
        )


@torch.no_grad()
def neighbours_agree(images: Tensor, *, labels: Tensor) -> tuple[float, float]:
    """Share of images (N, C, H, W) whose nearest other image has the same label, and the share expected by chance."""
    pixels = images.flatten(1).float()
    distances = torch.cdist(pixels, pixels)
    distances.fill_diagonal_(math.inf)
    agreeing = (labels[distances.argmin(dim=1)] == labels).float().mean()
    shares = labels.bincount().float() / len(labels)
    return float(agreeing), float(shares.square().sum())
