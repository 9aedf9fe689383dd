"""The leak linter: a run whose score could have seen what it was trained or chosen on fails, and leaves no record."""

from collections.abc import Sequence

from torch import Tensor

from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec

MOST_SHARED = 0.01  # of the scored images may be among the training images, byte for byte; official sets share a few

_SHARED: dict[tuple[str, int, int], int] = {}  # by data and sizes: a worker trains many seeds on the same images


class LeakError(ValueError):
    """What the run was scored on was not kept apart."""


def refuse_shared_images(trained: Tensor, scored: Tensor, *, spec: RunSpec) -> None:
    """LeakError where more than `MOST_SHARED` of the scored images (M, C, H, W) uint8 are in the trained (N, C, H, W).

    By their pixels: indices cannot tell that a set was put together from copies.
    """
    key = (spec.data_sha256, len(trained), len(scored))
    if key not in _SHARED:
        known = {image.tobytes() for image in trained.cpu().numpy()}
        _SHARED[key] = sum(image.tobytes() in known for image in scored.cpu().numpy())
    shared = _SHARED[key]
    if shared > MOST_SHARED * len(scored):
        raise LeakError(
            f"leak: {shared:,} of the {len(scored):,} {spec.data.split} images of {spec.data.name} are among the "
            "training images, byte for byte; what it scores there is no measurement"
        )


def refuse_early_scores(events: Sequence[Event], *, spec: RunSpec) -> None:
    """LeakError where the journal shows that the scored split was read before the last epoch was trained.

    Then an epoch could have been selected by it. `events`: up to the score, which is read once, after the last epoch.
    """
    early = [event["epoch"] for event in events if event["event"] == "epoch" and event["split"] != "train"]
    if any(epoch < spec.recipe.epochs_total for epoch in early):
        raise LeakError(
            f"leak: the {spec.data.split} split was read after epoch {early[0]} of {spec.recipe.epochs_total}; it is "
            "for one look, after the last"
        )
