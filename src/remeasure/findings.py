"""What can be wrong with a training, how it shows in its curve, and what to try next. Standard library only.

A finding is told once a run, and not where an earlier one explains it: the cause, not each of its symptoms. Thresholds
were written down before any ledger row was looked at; docs/doctor.md has them all, with their sources.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = Mapping[str, Any]  # an epoch of the curve, as journaled: epoch, step, loss, accuracy_percent

# ln C is the cross-entropy of whoever guesses among C classes. A loss below half of it has learned most of its task.
HIGH_LOSS = 0.5
# A loss that falls by less than 1 % of itself over several epochs has stood still: noise between epochs is as large.
STANDSTILL = 0.01
# Nothing is said of a start before so many epochs and optimiser steps: rates are warmed up, moments are gathered.
START_EPOCHS, START_STEPS = 3, 50
# A plateau is as long as a quarter of the epochs planned, and no shorter than the start.
PLATEAU_SHARE = 0.25
# Accuracy below one and a half times 1/C is a guess: the commonest class may hold a little more than its share.
GUESS = 1.5
# A net that gives one class 99 answers in a hundred gives the same answer whatever it sees.
SAME_ANSWER = 0.99
# Between train and held-out images. 10 points are 3 standard errors of an accuracy of 80 % on 150 images.
GAP_POINTS, GAP_LOSSES = 10.0, 2.0

# The article's order of debugging: what is simple and telling first. Advice is always given in this order.
CHECKLIST = {
    "simple": "start simple: model=logreg or mlp2 with recipe=article on the same data, then add one thing at a time",
    "one_batch": "overfit one batch: debug=overfit_batch must bring its loss to 0",
    "data": "look at the data: a few dozen images beside their labels, in the order in which the loader gives them",
    "input": "check the input: debug=one_step shows the range, mean and deviation that the net sees",
    "weights": "check the initial weights: sqrt(2/fan_in) for ReLU, sqrt(1/fan_in) for tanh; normalisation layers help",
    "gradients": "look at the gradients: debug=one_step shows them layer by layer",
    "rate_down": "lower the learning rate tenfold, or warm it up",
    "rate_up": "raise the learning rate tenfold; check that its schedule does not end early",
    "clip": "clip the gradient: recipe.clip_norm=1.0",
    "capacity": "give the net more: wider, deeper, or less weight decay and dropout",
    "regularise": "restrain the net: more data or augmentation, dropout, weight decay, fewer epochs",
}

# Name → likely causes, and the steps of the checklist that help.
ADVICE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "input not normalised": (
        ("pixels in 0..255 where the recipe's statistics are of 0..1", "a division by 255 twice", "blank images"),
        ("data", "input"),
    ),
    "labels look shuffled": (
        ("labels in another order than the images", "the wrong label file", "shuffled apart from the images"),
        ("one_batch", "data"),
    ),
    "exploding gradients": (
        ("initial weights that are too large", "many layers without normalisation", "a learning rate that is too high"),
        ("input", "weights", "gradients", "rate_down", "clip"),
    ),
    "dead units": (
        ("a learning rate that is too high", "biases far below 0", "weights that are 0"),
        ("weights", "gradients", "rate_down"),
    ),
    "vanishing gradients": (
        ("initial weights that are too small", "many layers of tanh or sigmoid", "units that are saturated"),
        ("simple", "weights", "gradients"),
    ),
    "parameters without gradient": (
        ("a frozen layer", "a layer that the forward pass leaves out", "detach() or no_grad() on the way"),
        ("one_batch", "gradients"),
    ),
    "not finite": (
        ("a learning rate that is too high", "no clipping", "log or division of 0", "values that overflow in 16 bits"),
        ("simple", "input", "gradients", "rate_down", "clip"),
    ),
    "accuracy stuck at 1/C": (
        ("an output that does not depend on the input", "a learning rate that is far too high", "saturated units"),
        ("simple", "one_batch", "data", "input", "rate_down"),
    ),
    "loss not falling": (
        ("a learning rate that is far too low", "the optimiser has other parameters than the net", "no step is taken"),
        ("simple", "one_batch", "data", "gradients", "rate_up"),
    ),
    "plateau": (
        ("a learning rate that is too low, or decays early", "too small a net", "too much weight decay or dropout"),
        ("one_batch", "data", "rate_up", "capacity"),
    ),
    "overfitting": (
        ("too few images for this net", "too many epochs", "held-out images of another kind, or prepared otherwise"),
        ("data", "input", "regularise"),
    ),
}

_NO_PROGRESS = ("accuracy stuck at 1/C", "loss not falling", "plateau")
_SIGNALS = ("exploding gradients", "dead units", "vanishing gradients", "parameters without gradient")
# Name → what follows from it, and is not told beside it.
EXPLAINS: dict[str, tuple[str, ...]] = {
    "input not normalised": (*_SIGNALS, *_NO_PROGRESS, "overfitting"),
    "labels look shuffled": (*_SIGNALS, *_NO_PROGRESS, "overfitting"),
    "exploding gradients": (*_SIGNALS, *_NO_PROGRESS),
    "dead units": (*_SIGNALS, *_NO_PROGRESS),
    "vanishing gradients": (*_SIGNALS, *_NO_PROGRESS),
    "parameters without gradient": _NO_PROGRESS,
    "accuracy stuck at 1/C": _NO_PROGRESS,
    "loss not falling": _NO_PROGRESS,
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`evidence`: the numbers, in words; `causes`: the likely ones; `next_steps`: what to try, in this order."""

    name: str
    evidence: str
    causes: tuple[str, ...]
    next_steps: tuple[str, ...]


def finding(name: str, evidence: str) -> Finding:
    causes, steps = ADVICE[name]
    return Finding(
        name=name,
        evidence=evidence,
        causes=causes,
        next_steps=tuple(text for step, text in CHECKLIST.items() if step in steps),
    )


def recorded(name: str, evidence: str) -> Finding:
    """One that is read back; that of another version has no advice here."""
    if name in ADVICE:
        return finding(name, evidence)
    return Finding(name=name, evidence=evidence, causes=(), next_steps=())


class Chart:
    """What is known of one seed's training. `report` gets each finding, once.

    `known`: the names of those that were told before an interruption; `points`: the epochs that were journaled.
    `same_answer`: the largest share of one class among the last answers that were looked at; 0: nobody looked.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        epochs_total: int,
        report: Callable[[Finding], None],
        known: Sequence[str] = (),
        points: Sequence[Point] = (),
    ) -> None:
        self.num_classes, self.epochs_total, self._report = num_classes, epochs_total, report
        self.names, self._points = list(known), {point["epoch"]: point for point in points}
        self.same_answer = 0.0

    def note(self, name: str, evidence: str) -> None:
        """Tell it, unless that was done, or what was told explains it."""
        if name not in self.names and not any(name in EXPLAINS.get(cause, ()) for cause in self.names):
            self.names.append(name)
            self._report(finding(name, evidence))

    @property
    def chance_loss(self) -> float:
        """ln C."""
        return math.log(self.num_classes)

    def see(self, point: Point) -> None:
        """An epoch has ended. One that is trained again, after a resume, is followed by none of before."""
        kept = {epoch: earlier for epoch, earlier in self._points.items() if epoch < point["epoch"]}
        self._points = {**kept, point["epoch"]: point}
        points = [self._points[epoch] for epoch in sorted(self._points)]
        if len(points) >= START_EPOCHS and (point["step"] or 0) >= START_STEPS:
            self._judge_start(points)
            self._judge_plateau(points)

    def _judge_start(self, points: Sequence[Point]) -> None:
        losses = [point["loss"] for point in points]
        accuracy = max(point["accuracy_percent"] for point in points)
        chance = 100 / self.num_classes
        guesses = accuracy < GUESS * chance
        still = min(losses[1:]) > (1 - STANDSTILL) * losses[0] and losses[-1] > HIGH_LOSS * self.chance_loss
        if guesses and (not still or self.same_answer >= SAME_ANSWER):
            same = f"; one class gets {self.same_answer:.0%} of the answers" if self.same_answer else ""
            self.note(
                "accuracy stuck at 1/C",
                f"after {len(points)} epochs train accuracy was never above {accuracy:.2f} %, "
                f"and guessing gets {chance:.2f} %{same}",
            )
        elif still:
            self.note(
                "loss not falling",
                f"train loss {losses[0]:.4g} in epoch 1 and {losses[-1]:.4g} in epoch {len(points)}, never "
                f"{STANDSTILL:.0%} lower than at first; guessing gets {self.chance_loss:.4g}",
            )

    def _judge_plateau(self, points: Sequence[Point]) -> None:
        length = max(START_EPOCHS, round(PLATEAU_SHARE * self.epochs_total))
        if len(points) <= length:
            return
        before, now = points[-1 - length]["loss"], points[-1]["loss"]
        if now > (1 - STANDSTILL) * before and now > HIGH_LOSS * self.chance_loss:
            self.note(
                "plateau",
                f"train loss {before:.4g} in epoch {len(points) - length} and {now:.4g} in epoch {len(points)}; "
                f"guessing gets {self.chance_loss:.4g}",
            )

    def scored(self, *, split: str, loss: float, accuracy_percent: float) -> None:
        """The run is over, and was scored on images that it was not trained on."""
        if not self._points:  # published weights: nothing was trained
            return
        last = self._points[max(self._points)]
        gap = last["accuracy_percent"] - accuracy_percent
        if gap >= GAP_POINTS and loss >= GAP_LOSSES * last["loss"]:
            self.note(
                "overfitting",
                f"train loss {last['loss']:.4g} and accuracy {last['accuracy_percent']:.2f} %, {split} loss {loss:.4g} "
                f"and accuracy {accuracy_percent:.2f} %: {gap:.1f} points apart",
            )
