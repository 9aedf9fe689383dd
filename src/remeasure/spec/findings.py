"""Faults of a training (findings), their likely causes, and what to try next. Standard library only.

Each finding is reported once per run, and not at all if an earlier one explains it: the cause, not each symptom.
Thresholds were fixed before any ledger row was inspected; docs/doctor.md lists them with their sources.
"""

from dataclasses import dataclass

# The article's debugging order: simple, informative steps first. Advice is always given in this order.
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
# Name → the findings that follow from it and are not reported after it.
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
    """One fault. `evidence`: its numbers, in words; `causes`: likely ones; `next_steps`: what to try, in this order."""

    name: str
    evidence: str
    causes: tuple[str, ...]
    next_steps: tuple[str, ...]


def finding(name: str, evidence: str) -> Finding:
    """The finding with its advice; a name that this version does not know, read back from a record, gets none."""
    causes, steps = ADVICE.get(name, ((), ()))
    return Finding(
        name=name,
        evidence=evidence,
        causes=causes,
        next_steps=tuple(text for step, text in CHECKLIST.items() if step in steps),
    )
