"""Findings from one seed's training curve (spec/findings.py explains each finding)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from remeasure.spec.findings import EXPLAINS, Finding, finding

Point = Mapping[str, Any]  # an epoch of the curve, as journaled: epoch, step, loss, accuracy_percent

# ln C is the cross-entropy of guessing among C classes. At half of it, a net has learned most of its task.
HIGH_LOSS = 0.5
# A loss that falls by less than 1 % of itself over several epochs has stood still: noise between epochs is as large.
STANDSTILL = 0.01
# No finding before so many epochs and optimiser steps: the rate warms up, the optimiser's moments build up.
START_EPOCHS, START_STEPS = 3, 50
# A plateau is as long as a quarter of the epochs planned, and no shorter than the start.
PLATEAU_SHARE = 0.25
# Accuracy below one and a half times 1/C is guessing: the commonest class may have a little more than its share.
GUESS = 1.5
# A net that predicts one class for 99 images in a hundred predicts the same whatever its input.
SAME_ANSWER = 0.99
# Gaps between train and held-out images. 10 points are 3 standard errors of an accuracy of 80 % on 150 images.
GAP_POINTS, GAP_LOSSES = 10.0, 2.0


class CurveMonitor:
    """Examines one seed's training curve. `report` gets each finding, once.

    `known`: names of findings reported before an interruption; `points`: the epochs that were journaled.
    `same_answer`: the largest share of one class among the predictions last examined; 0: none were.
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
        """Report a finding, unless it was reported before or a reported finding explains it."""
        if name not in self.names and not any(name in EXPLAINS.get(cause, ()) for cause in self.names):
            self.names.append(name)
            self._report(finding(name, evidence))

    @property
    def chance_loss(self) -> float:
        """ln C."""
        return math.log(self.num_classes)

    def see(self, point: Point) -> None:
        """Add an epoch that has ended; for one trained again after a resume, drop the later ones from before."""
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
        """Compare the score, on images that the run was not trained on, with the last epoch."""
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
