"""Evaluation of a net on photographs that worker processes decode on demand; nothing is trained.

The workers return uint8; the device normalises.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from remeasure.data.listing import Listing
from remeasure.spec.base import InputError, refuse
from remeasure.spec.photographs import Transform
from remeasure.spec.run import RunSpec
from remeasure.system.formats import Array, decode_npz, encode_npz
from remeasure.system.paths import checkpoint_seconds, read_file
from remeasure.system.startup import num_cores
from remeasure.training.checkpoints import DIGEST_BYTES, keep_checkpoint, sound, unusable
from remeasure.training.engines.base import Report
from remeasure.training.inference import Forward, Predictions, forward, top5
from remeasure.training.photographs.decode import Photographs, collate
from remeasure.training.photographs.loading import Loader
from remeasure.training.photographs.world import ALONE, World, gathered

QUEUED = 4  # batches that may wait on a GPU
REPORT_SECONDS = 1.0
CHECKPOINT_TYPES = {
    **{"predicted": ("<i8",), "confidence": ("<f4",), "top5": ("<i8",)},
    **{"loss": ("<f8",), "seconds": ("<f8",)},
}


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


class Tally:
    """The predictions and loss so far, in order, on the device: reading them after each batch would stall a GPU."""

    def __init__(self, *, device: torch.device) -> None:
        self.predicted, self.confidence = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        self.top5 = [torch.empty(0, dtype=torch.int64)]
        self.loss_total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def add(self, logits: Tensor, *, labels: Tensor) -> None:
        top = logits.softmax(dim=1).max(dim=1)
        self.predicted.append(top.indices)
        self.confidence.append(top.values)
        self.top5.append(top5(logits))
        self.loss_total += functional.cross_entropy(logits, labels, reduction="sum")

    def arrays(self) -> dict[str, np.ndarray]:
        """The tally as CPU arrays. Waits for the device."""
        found = {"predicted": self.predicted, "confidence": self.confidence, "top5": self.top5}
        for parts in found.values():
            parts[:] = [torch.cat([part.cpu() for part in parts])]
        return {key: parts[0].numpy() for key, parts in found.items()} | {"loss": np.array([self.loss_total.item()])}

    def resume(self, checkpoint: Path, *, total: int, num_classes: int) -> tuple[int, float]:
        """Resume from the checkpoint, if there is one; returns its number of photographs and its seconds.

        Raises InputError if it cannot be of an evaluation of `total` photographs in `num_classes` classes.
        """
        if not checkpoint.exists():
            return 0, 0.0
        try:
            kept = decode_npz(read_file(checkpoint)[:-DIGEST_BYTES], name="npz", dtypes=CHECKPOINT_TYPES)
            refuse(_kept_faults(**kept, total=total, num_classes=num_classes))
        except InputError as error:
            raise unusable(checkpoint, error) from None
        self.predicted = [torch.tensor(kept["predicted"])]
        self.confidence = [torch.tensor(kept["confidence"])]
        self.top5 = [torch.tensor(kept["top5"])]
        self.loss_total += kept["loss"].item()
        return len(self.predicted[0]), kept["seconds"].item()


def _kept_faults(
    *, predicted: Array, confidence: Array, top5: Array, loss: Array, seconds: Array, total: int, num_classes: int
) -> Iterator[str]:
    """Faults in the arrays of a checkpoint."""
    if predicted.ndim != 1 or len(predicted) > total or confidence.shape != predicted.shape:
        yield f"expected a class and a confidence for each of at most {total} photographs"
    if not ((predicted >= 0) & (predicted < num_classes)).all():
        yield f"predicted: expected classes from 0 to {num_classes - 1}"
    if top5.shape != (*predicted.shape, min(5, num_classes)) or not ((top5 >= 0) & (top5 < num_classes)).all():
        yield f"top5: expected {min(5, num_classes)} classes from 0 to {num_classes - 1} for each"
    if not ((confidence >= 0) & (confidence <= 1)).all():  # false for NaN, too
        yield "confidence: expected finite numbers in [0, 1]"
    for name, value in (("loss", loss), ("seconds", seconds)):
        if value.shape != (1,) or not 0 <= value[0] < np.inf:
            yield f"{name}: expected one finite number from 0 up"


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    listing: Listing,
    *,
    spec: RunSpec,
    transform: Transform,
    device: torch.device,
    checkpoint: Path,
    report: Report,
    world: World = ALONE,
) -> tuple[float, Predictions]:
    """Seconds, and the network's predictions for the photographs of the listing, in its order.

    `report` gets done, total and images_per_second about once a second. An interrupted evaluation resumes from its
    checkpoint at the start of a batch, to the same numbers. Raises InputError: a photograph that cannot be decoded.

    The connected processes of a `world` take whole batches in turn, the same as one process has, so that each image has
    the same answer. Each process returns all predictions, and raises the faults of all.
    """
    if world.size > 1:
        checkpoint = checkpoint.with_name(f"{checkpoint.name}.{world.rank}-of-{world.size}")
        sound(checkpoint)
    indices = _share(len(listing), batch_size=spec.recipe.batch_size, world=world)
    evaluated = partial(
        _evaluated,
        network,
        listing,
        indices=indices,
        spec=spec,
        transform=transform,
        device=device,
        checkpoint=checkpoint,
        report=report,
        world=world,
    )
    if world.size == 1:
        seconds, found = evaluated()
        return seconds, _predictions(found)
    faults: tuple[str, ...] = ()
    try:
        seconds, found = evaluated()
    except InputError as error:
        seconds, found, faults = 0.0, {}, error.faults
    shares = gathered((indices, found, faults), world=world)
    if faults := tuple(fault for _, _, each in shares for fault in each):
        raise InputError(*faults)
    shares = [share for share in shares if share[0]]  # there may be fewer batches than processes
    order = np.argsort(np.concatenate([taken for taken, _, _ in shares]))
    whole = {key: np.concatenate([arrays[key] for _, arrays, _ in shares]) for key in found}
    return seconds, _predictions({key: part if key == "loss" else part[order] for key, part in whole.items()})


def _share(num: int, *, batch_size: int, world: World) -> list[int]:
    """The indices of the photographs that this process evaluates: every `size`-th batch of `num` photographs."""
    starts = range(world.rank * batch_size, num, world.size * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, num))]


def _predictions(found: Mapping[str, np.ndarray]) -> Predictions:
    """`loss`: the sum of each process."""
    return Predictions(
        predicted=torch.tensor(found["predicted"]),
        confidence=torch.tensor(found["confidence"]),
        top5=torch.tensor(found["top5"]),
        loss=found["loss"].sum().item() / len(found["predicted"]),
    )


def _evaluated(
    network: nn.Module,
    listing: Listing,
    *,
    indices: Sequence[int],
    spec: RunSpec,
    transform: Transform,
    device: torch.device,
    checkpoint: Path,
    report: Report,
    world: World,
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds, and the tally of the photographs at these indices."""
    run, labels = forward(network, spec=spec, device=device), torch.tensor(listing.labels[indices]).to(device)
    others = _others(listing, num_classes=spec.data.num_classes).to(device)
    also = None if listing.also is None else torch.tensor(listing.also[indices]).to(device)
    tally, began = Tally(device=device), time.monotonic()
    first, seconds_before = tally.resume(checkpoint, total=len(indices), num_classes=spec.data.num_classes)
    done, reported, saved = first, began, began
    batches = stream(
        listing,
        transform=transform,
        indices=indices[first:],
        batch_size=spec.recipe.batch_size,
        pinned=device.type == "cuda",
        num_devices=world.devices,
    )
    interval = checkpoint_seconds(30.0)
    steps = _tallied(batches, run=run, tally=tally, labels=labels, also=also, others=others, first=first)
    for num in paced(steps, device=device):
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


def _tallied(
    batches: Iterable[Tensor],
    *,
    run: Forward,
    tally: Tally,
    labels: Tensor,
    also: Tensor | None,
    others: Tensor,
    first: int,
) -> Iterator[int]:
    """Yields the size of each batch, once its work is queued on the device."""
    for images in batches:
        logits, part = run(images), slice(first, first + len(images))
        if len(others):
            logits = logits.index_fill(1, others, -torch.inf)
        if also is not None:
            logits = _with_one_right(logits, labels=labels[part], also=also[part])
        tally.add(logits, labels=labels[part])
        first += len(images)
        yield len(images)


def _with_one_right(logits: Tensor, *, labels: Tensor, also: Tensor) -> Tensor:
    """The logits (B, classes) with the best one of an image's right labels in place of its label's, and without the
    others: the label (B,) is first, or among the first five, where any of the right ones was; `also` (B, K).
    """
    right = torch.cat([labels[:, None], also], dim=1)
    best = logits.gather(1, right).amax(dim=1, keepdim=True)
    return logits.scatter(1, right, -torch.inf).scatter(1, labels[:, None], best)


def paced(steps: Iterable[int], *, device: torch.device) -> Iterator[int]:
    """Yields each step once the device has finished it; at most `QUEUED` later ones are queued, to bound memory."""
    waiting: deque[tuple[int, torch.cuda.Event]] = deque()
    for num in steps:
        if device.type != "cuda":
            yield num
            continue
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
