"""Evaluation of a net on photographs that worker processes decode on demand; nothing is trained.

The workers return uint8; the device normalises.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from remeasure.data.listing import Listing
from remeasure.spec.base import InputError
from remeasure.spec.photographs import Transform
from remeasure.system.formats import encode_npz
from remeasure.system.paths import checkpoint_seconds
from remeasure.system.startup import num_cores
from remeasure.training.checkpoints import keep_checkpoint, sound
from remeasure.training.engines.base import Report
from remeasure.training.inference import Forward, Predictions, Tally, predictions
from remeasure.training.photographs.decode import Photographs, collate
from remeasure.training.photographs.loading import Loader
from remeasure.training.photographs.world import ALONE, World, gathered

QUEUED = 4  # batches that may wait on a GPU
REPORT_SECONDS = 1.0


def stream(
    listing: Listing,
    *,
    transform: Transform,
    indices: Sequence[int],
    batch_size: int,
    pinned: bool,
    num_devices: int = 1,
) -> Iterator[Tensor]:
    """The photographs at these indices, in this order, as batches (B, 3, H, W) uint8, decoded on all cores, or on the
    share of each of `num_devices` processes.

    Raises InputError, which names each photograph of the first batch that could not be decoded, and what
    `Loader.batches` raises.
    """
    tasks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    photographs, num_workers = Photographs(listing, transform=transform), max(num_cores() // num_devices, 1)
    with Loader(photographs, collate=collate, num_workers=min(num_workers, len(tasks)), pinned=pinned) as loader:
        for images, faults in loader.batches(tasks):
            if faults:
                raise InputError(*faults)
            yield images


@torch.inference_mode()
def evaluate(
    run: Forward, listing: Listing, *, checkpoint: Path, report: Report, world: World = ALONE
) -> tuple[float, Predictions]:
    """Seconds, and a network's predictions for the photographs of the listing, in its order.

    `report` gets done, total and images_per_second about once a second. An interrupted evaluation resumes from its
    checkpoint at the start of a batch, to the same numbers. Raises InputError: a photograph that cannot be decoded.

    The connected processes of a `world` take whole batches in turn, the same as one process has, so that each image has
    the same answer. Each process returns all predictions, and raises the faults of all.
    """
    if world.size > 1:
        checkpoint = checkpoint.with_name(f"{checkpoint.name}.{world.rank}-of-{world.size}")
    sound(checkpoint)
    indices = _share(len(listing), batch_size=run.spec.recipe.batch_size, world=world)
    faults: tuple[str, ...] = ()
    try:
        seconds, found = _evaluated(run, listing, indices=indices, checkpoint=checkpoint, report=report, world=world)
    except InputError as error:
        seconds, found, faults = 0.0, {}, error.faults
    shares = gathered((indices, found, faults), world=world)
    if faults := tuple(fault for _, _, each in shares for fault in each):
        raise InputError(*faults)
    shares = [share for share in shares if share[0]]  # there may be fewer batches than processes
    order = np.argsort(np.concatenate([taken for taken, _, _ in shares]))
    whole = {key: np.concatenate([arrays[key] for _, arrays, _ in shares]) for key in found}
    return seconds, predictions({key: part if key == "loss" else part[order] for key, part in whole.items()})


def _share(num: int, *, batch_size: int, world: World) -> list[int]:
    """The indices of the photographs that this process evaluates: every `size`-th batch of `num` photographs."""
    starts = range(world.rank * batch_size, num, world.size * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, num))]


def _evaluated(
    run: Forward, listing: Listing, *, indices: Sequence[int], checkpoint: Path, report: Report, world: World
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds, and the tally of the photographs at these indices."""
    spec, device = run.spec, run.device
    assert spec.transform is not None
    labels = torch.tensor(listing.labels[indices]).to(device)
    others = _others(listing, num_classes=spec.data.num_classes).to(device)
    also = None if listing.also is None else torch.tensor(listing.also[indices]).to(device)
    tally, began = Tally(), time.monotonic()
    first, seconds_before = tally.resume(checkpoint, total=len(indices), num_classes=spec.data.num_classes)
    done, reported, saved = first, began, began
    batches = stream(
        listing,
        transform=spec.transform,
        indices=indices[first:],
        batch_size=spec.recipe.batch_size,
        pinned=device.type == "cuda",
        num_devices=world.devices,
    )

    def tallied() -> Iterator[int]:
        """Yields the size of each batch, once its work is queued on the device."""
        start = first
        for images in batches:
            logits, part = run(images), slice(start, start + len(images))
            if len(others):
                logits = logits.index_fill(1, others, -torch.inf)
            if also is not None:
                logits = _with_one_right(logits, labels=labels[part], also=also[part])
            tally.add(logits, labels=labels[part])
            start += len(images)
            yield len(images)

    interval = checkpoint_seconds(30.0)
    for num in paced(tallied(), device=device):
        done, now = done + num, time.monotonic()
        if now - reported >= REPORT_SECONDS:
            reported = now
            report(
                {
                    "done": min(done * world.size, len(listing)),  # all processes are about as far
                    "total": len(listing),
                    "images_per_second": world.size * (done - first) / (now - began),
                }
            )
        if now - saved >= interval:
            kept = tally.arrays() | {"seconds": np.array([seconds_before + now - began])}
            partial = checkpoint.with_name(f"{checkpoint.name}.partial")
            partial.write_bytes(encode_npz(kept))
            keep_checkpoint(partial, checkpoint)
            saved = time.monotonic()
    found = tally.arrays()
    return seconds_before + time.monotonic() - began, found


def _others(listing: Listing, *, num_classes: int) -> Tensor:
    """The classes (M,) that the net may not choose."""
    allowed = range(num_classes) if listing.among is None else listing.among
    return torch.tensor(sorted(set(range(num_classes)) - set(allowed)), dtype=torch.int64)


def _with_one_right(logits: Tensor, *, labels: Tensor, also: Tensor) -> Tensor:
    """The logits (B, classes) with the best one of an image's right labels in place of its label's, and without the
    others: the label (B,) is first, or among the first five, where any of the right ones was; `also` (B, K).
    """
    right = torch.cat([labels[:, None], also], dim=1)
    best = logits.gather(1, right).amax(dim=1, keepdim=True)
    return logits.scatter(1, right, -torch.inf).scatter(1, labels[:, None], best)


def paced(steps: Iterable[int], *, device: torch.device) -> Iterator[int]:
    """Yields each step once the device has finished it; at most `QUEUED` later ones are queued, to bound memory."""
    if device.type != "cuda":
        yield from steps
        return
    waiting: deque[tuple[int, torch.cuda.Event]] = deque()
    for num in steps:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        waiting.append((num, event))
        if len(waiting) > QUEUED:
            yield _done(waiting)
    while waiting:
        yield _done(waiting)


def _done(waiting: "deque[tuple[int, torch.cuda.Event]]") -> int:
    num, event = waiting.popleft()
    event.synchronize()
    return num
