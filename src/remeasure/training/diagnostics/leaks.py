"""Leak checks: a run fails, without a record, if it trained on the scored images or read them before its last epoch."""

from collections.abc import Sequence

from torch import Tensor

from remeasure.data import files
from remeasure.spec.base import InputError
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec

_SHARED: dict[tuple[str, int, int], int] = {}  # cached by data and sizes: a worker trains many seeds on the same images


class LeakError(InputError):
    """The scored images were not kept apart from the training."""


def refuse_shared_images(trained: Tensor, scored: Tensor, *, spec: RunSpec) -> None:
    """LeakError if too many (files.MOST_SHARED) of the scored images (M, C, H, W) uint8 are in the trained ones.

    Compares pixels: indices would not reveal copies in a data set.
    """
    key = (spec.data_sha256, len(trained), len(scored))
    if key not in _SHARED:
        _SHARED[key] = len(files.shared_images(trained.cpu().numpy(), scored.cpu().numpy()))
    if fault := files.leak(_SHARED[key], num_scored=len(scored), split=spec.data.split, name=spec.data.name):
        raise LeakError(fault)


def refuse_early_scores(events: Sequence[Event], *, epochs: int) -> None:
    """LeakError if the journal shows that the test split was read before the last of `epochs` was trained.

    An epoch could have been selected by it. `events`: those up to the score, which is taken once, after the last epoch.
    """
    for event in events:
        if event["event"] == "epoch" and event["split"] == "test" and event["epoch"] < epochs:
            raise LeakError(
                f"leak: the test split was read after epoch {event['epoch']} of {epochs}; it is for one "
                "look, after the last"
            )
