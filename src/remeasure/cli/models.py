"""What a person does with the network of a finished run: load it, score it again, predict for images."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from remeasure.models import pretrained, saved
from remeasure.models.saved import Classifier
from remeasure.runs import code
from remeasure.runs.folder import Place, ended_record, find_run
from remeasure.runs.hardware import processor
from remeasure.runs.recorder import spec_of
from remeasure.runs.splits import Splits
from remeasure.spec.base import DeviceKind, InputError, gathered, refuse
from remeasure.spec.config import Config
from remeasure.spec.record import RunRecord
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.system.atomic import write_atomic
from remeasure.system.clock import now
from remeasure.system.formats import encode_csv
from remeasure.training.device import resolve_device
from remeasure.training.engines.base import engine_of
from remeasure.training.inference import Forward, Predictions, predict
from remeasure.training.photographs.evaluate import evaluate
from remeasure.training.photographs.pictures import Pictures

SHOWN = 5  # classes an image
BATCH = 64  # images at once
FREE = ("evaluate", "predict", "device")  # what the command line may say beside the run


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run that has a network."""

    directory: Path
    record: RunRecord
    spec: RunSpec
    classifier: Classifier


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One line of the CSV: a class among an image's first SHOWN, from rank 1, with its softmax probability."""

    image: str
    rank: int
    class_index: int
    class_name: str
    probability: float


def open_run(name: str | Path) -> Run:
    """Raises InputError: no such run, or one that is unfinished, diverged, damaged or keeps no network."""
    directory = find_run(name, runs=paths.project_root() / "runs")
    record = ended_record(directory)
    if record.accuracy_percent is None:
        raise InputError(f"{directory}: this run diverged, so it has no network")
    spec = spec_of(directory)
    published = pretrained.locate(spec) if saved.read(directory).published else None
    return Run(directory=directory, record=record, spec=spec, classifier=saved.load(directory, published=published))


def use(config: Config, *, overrides: Sequence[str]) -> int:
    """`evaluate=RUN`, with or without `predict=IMAGES`; `overrides`: the command line. Returns the exit status."""
    assert config.evaluate is not None
    run = open_run(config.evaluate)
    _refuse_others(overrides, run=run)
    device_kind = _device_kind(config.device, record=run.record)
    if config.predict is None:
        lines = _scored(run, device_kind=device_kind)
    else:
        given = (config.predict,) if isinstance(config.predict, str) else config.predict
        lines = _predicted(run, images=list(_files(given)), device=torch.device(device_kind))
    for line in lines:
        print(line)
    return 0


def _refuse_others(overrides: Sequence[str], *, run: Run) -> None:
    """Raise InputError if the command line asks for something else than the run has."""
    faults = []
    names = {key: getattr(run.spec, key).name for key in ("model", "data", "recipe")}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in names and value != names[key]:
            faults.append(f"{override}: {run.directory} is a run of {key}={names[key]}")
        elif key not in names and key not in FREE:
            faults.append(
                f"{override}: the run is scored as it was trained; beside it, only device= and predict= count"
            )
    refuse(faults)


def _device_kind(device: str, *, record: RunRecord) -> DeviceKind:
    """The named device; auto: the record's kind, if this machine has it."""
    if device != "auto":
        return resolve_device(device)
    try:
        return resolve_device(record.device_kind)
    except InputError:
        return resolve_device("auto")


# ---------------------------------------------------------------- evaluate=


def _scored(run: Run, *, device_kind: DeviceKind) -> Iterator[str]:
    predictions, labels = score(run, device_kind=device_kind)
    predicted = predictions.predicted.numpy()
    with np.load(run.directory / "predictions.npz", allow_pickle=False) as arrays:
        num_differing = int((predicted != arrays["predicted"]).sum())
    num, num_correct = len(labels), int((predicted == labels.numpy()).sum())
    split, percent = run.spec.data.split, 100 * num_correct / num
    recorded = f"the record has {run.record.accuracy_percent:.3f} %"
    yield f"{split} accuracy {percent:.3f} % ({num_correct} of {num}); {recorded}"
    if num_differing:
        there = f"{run.record.device} ({run.record.device_kind}){_by_other_code(run)}; here it is {device_kind}"
        yield f"{num_differing} of {num} predictions differ from the record's, which was made on {there}"
    else:
        yield f"all {num} predictions equal the record's"
    path = os.path.relpath(run.directory / "record.json")
    line = f"{split}_accuracy_percent={percent:.3f} num_correct={num_correct} num_differing={num_differing}"
    yield f"{line} record={path}" if split == "test" else line


def _by_other_code(run: Run) -> str:
    """Such as " by other code (models/mlp.py differs)"; "" if this code made the run."""
    if code.kept(run.directory) == code.code_sha256(run.spec):
        return ""
    return f" by other code ({code.changed(run.directory, spec=run.spec)})"


def score(run: Run, *, device_kind: DeviceKind) -> tuple[Predictions, Tensor]:
    """The network's predictions for the run's scored split, and its labels (N,), by the forward pass, batch size,
    threads and precision with which the run was scored.
    """
    spec, network = run.spec, run.classifier.network
    place = Place(
        runs=run.directory.parent,
        project=paths.project_root(),
        data_root=paths.data_root(),
        device_kind=device_kind,
    )
    data, device = Splits(spec, place=place), torch.device(device_kind)
    if spec.compile:
        network.compile()
    with processor(spec):
        if spec.transform is None:
            images, labels = data.to_score()
            return predict(_forward(run), images, labels=labels, spec=spec, device=device), labels
        data.official()  # raises InputError if the photographs have changed
        listing = data.listing("test")
        with tempfile.TemporaryDirectory() as folder:
            net, checkpoint = Forward(network, spec=spec, device=device), Path(folder) / "checkpoint.npz"
            _, predictions = evaluate(net, listing, checkpoint=checkpoint, report=lambda _: None)
        return predictions, torch.tensor(listing.labels)


def _forward(run: Run) -> torch.nn.Module:
    """The module whose forward pass scored the network."""
    if not engine_of(run.spec).computes_in_numpy:
        return run.classifier.network
    from remeasure.training.engines.numpy_engine import FromScratch  # Lightning: seconds to import

    return FromScratch(run.classifier.network)


# ---------------------------------------------------------------- predict=


def _files(given: Sequence[str]) -> Iterator[Path]:
    """The files that are named, and those of each folder that are images by their suffix. InputError: there is none."""
    from PIL import Image

    suffixes, faults = Image.registered_extensions(), list[str]()
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in suffixes and each.is_file())
            if not found:
                faults.append(f"{path}: there is no image in this folder")
            yield from found
        elif path.is_file():
            yield path
        else:
            faults.append(f"{path}: there is no such file or folder")
    refuse(faults)


@torch.inference_mode()
def _predicted(run: Run, *, images: Sequence[Path], device: torch.device) -> Iterator[str]:
    """The lines for the terminal; the CSV is written when all images are read. InputError names each that is none."""
    classifier, pictures = run.classifier.to(device), Pictures(run.spec)
    lines, shown, faults = list[Predicted](), list[str](), list[str]()
    for start in range(0, len(images), BATCH):
        batch = list[tuple[Path, Tensor, str]]()
        for path in images[start : start + BATCH]:
            with gathered(faults):
                batch.append((path, *pictures.read(path)))
        if faults:
            continue
        logits = classifier(torch.stack([pixels for _, pixels, _ in batch]).to(device))
        top = logits.softmax(dim=1).topk(min(SHOWN, len(classifier.classes)))
        for (path, _, note), shares, indices in zip(batch, top.values.tolist(), top.indices.tolist(), strict=True):
            name = str(path).encode(errors="replace").decode()
            best = [
                Predicted(
                    image=name, rank=rank, class_index=index, class_name=classifier.classes[index], probability=share
                )
                for rank, (index, share) in enumerate(zip(indices, shares, strict=True), start=1)
            ]
            lines += best
            ranked = ", ".join(f"{each.class_name} {100 * each.probability:.1f} %" for each in best)
            shown.append(f"{name}: {ranked}{note}")
    refuse(faults)
    path = paths.project_root() / "runs" / "predictions" / f"{run.directory.name}-{now().replace(':', '')}.csv"
    write_atomic(path, encode_csv(lines, cls=Predicted))
    yield from shown
    yield f"num_images={len(images)} csv={os.path.relpath(path)}"
