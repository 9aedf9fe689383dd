"""The learning rate as a function of the step. No Lightning, no files, no clock."""

import math

from remeasure.spec.recipe import Schedule


def learning_rate(step: int, *, lr_peak: float, schedule: Schedule, steps_per_epoch: int, epochs_total: int) -> float:
    """The rate of optimiser step `step` (from 0), a pure function: there is no scheduler state to lose or resume."""
    steps_warmup = schedule.epochs_warmup * steps_per_epoch
    if step < steps_warmup:
        return lr_peak * (schedule.lr_start_factor + (1 - schedule.lr_start_factor) * step / steps_warmup)
    done = (step - steps_warmup) / (epochs_total * steps_per_epoch - steps_warmup)  # of the decay, in [0, 1)
    end = schedule.lr_end_factor
    match schedule.name:
        case "linear":
            return lr_peak * (1 - (1 - end) * done)
        case "cosine":
            return lr_peak * (end + (1 - end) * (1 + math.cos(math.pi * done)) / 2)
        case "milestones":
            assert schedule.gamma is not None
            return lr_peak * schedule.gamma ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
        case "constant":
            return lr_peak
