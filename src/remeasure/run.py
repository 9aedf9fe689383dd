"""One run: RunSpec and seed → RunRecord. A finished run is returned, an unfinished one resumed, else one is begun."""

import contextlib
import ctypes
import fcntl
import functools
import json
import math
import platform
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import yaml
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from remeasure import data, evaluation, models, provenance, weights
from remeasure.encoding import encode_npz
from remeasure.journal import Event, Journal, last, now, read
from remeasure.records import environment_sha256, predicted_sha256
from remeasure.rundir import Outcome, Place, finished, open_directory, read_record, write_record, write_whole
from remeasure.spec import Evaluation, InputError, Recipe, RunRecord, RunSpec
from remeasure.training import DivergenceError, Predictions, Training, derive, predict, train

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
Sink = Callable[[Path, Event], None]  # (run directory, event), called as things happen
Report = Callable[..., None]  # an event's name and values, for the journal


def execute(spec: RunSpec, *, seed: int, row: str, place: Place, sink: Sink, fresh: bool = False) -> Outcome:
    """Train and evaluate one seed, or evaluate published weights, or return it where it is finished already.

    `row`: the ledger row it belongs to, "" for none. Raises InputError, and what training
    raises; the journal then says so.
    """
    if getattr(rank_zero_only, "rank", 0):
        _follow(spec, seed=seed, place=place)
    if not fresh and (done := finished(spec, seed=seed, place=place)):
        return done
    directory = open_directory(spec, seed=seed, place=place, fresh=fresh)
    with _held(directory):
        if (directory / "record.json").is_file():  # another process finished it while this one waited
            return Outcome(record=read_record(directory), directory=directory, reused=True)
        with processor(spec):
            record = _measure(spec, seed=seed, row=row, place=place, directory=directory, sink=sink)
    return Outcome(record=record, directory=directory, reused=False)


def _follow(spec: RunSpec, *, seed: int, place: Place) -> NoReturn:
    """In the process of a further device: train with the first one, which alone holds, scores and records the run."""
    directory = open_directory(spec, seed=seed, place=place, fresh=False)
    network = _network(spec, seed=seed)
    _stream(network, spec=spec, seed=seed, place=place, checkpoint=directory / "checkpoint.ckpt", report=lambda _: None)
    raise SystemExit(0)


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the run for this process; another one that wants it waits. The kernel lets go when the process ends."""
    with (directory / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def processor(spec: RunSpec) -> Iterator[None]:
    """The spec's number of threads, and no denormal numbers; as before afterwards."""
    _keep_freed_memory()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(spec.cpu_threads)
    torch.set_flush_denormal(True)  # a confident LeNet-5 has denormal gradients, and its steps take twice as long
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(num_threads)


@functools.cache
def _keep_freed_memory() -> None:
    """glibc gives freed tensors back to the kernel, which clears their pages anew at each step of a ResNet-18.

    Without that, such a step takes 0.7 to 0.8 times as long on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a run comes to: its predictions, the labels (N,) int64 they are scored by, and its seconds."""

    predictions: Predictions
    labels: Tensor
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run is to do with its network, once it is announced: `do(checkpoint, report, watch)`.

    `report` journals an event; `watch` is for what only a person who waits wants to know, and leaves no trace.
    """

    network: nn.Module
    do: Callable[[Path, Report, Report], Scored]


def _measure(spec: RunSpec, *, seed: int, row: str, place: Place, directory: Path, sink: Sink) -> RunRecord:
    """Train, evaluate once after the last epoch, and keep what came out in `directory`; the record is written last."""
    journal = Journal(directory)

    def report(event: str, /, **values: object) -> None:
        sink(directory, journal.write(event, **values))

    def watch(event: str, /, **values: object) -> None:
        sink(directory, {"event": event, "time": now(), **values})

    work = _work(spec, seed=seed, place=place)
    facts = _facts(spec, seed=seed, row=row, place=place, num_params=models.num_trainable(work.network))
    checkpoint = directory / "checkpoint.ckpt"
    _announce(directory, spec=spec, facts=facts, place=place, report=report, checkpoint=_sound(checkpoint))
    try:
        scored = work.do(checkpoint, report, watch)
    except DivergenceError as reason:
        report("diverged", epoch=reason.epoch, step=reason.step, reason=str(reason))
        record = RunRecord(**facts, **_no_result(spec), wall_seconds=0.0, finished_at=now())
    except BaseException as error:
        report("interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed", reason=repr(error))
        raise
    else:
        seconds = round(scored.wall_seconds, 1)
        record = RunRecord(**facts, **_result(scored), wall_seconds=seconds, finished_at=now())
        _keep_arrays(directory, network=work.network, predictions=scored.predictions)
        report("epoch", **_last_point(spec, record=record))
    report("finished", record=asdict(record))
    if spec.data.split == "test":  # tuning leaves no record
        write_record(directory, record)
    for leftover in directory.glob("checkpoint.*"):
        leftover.unlink()
    return record


def _work(spec: RunSpec, *, seed: int, place: Place) -> Work:
    if isinstance(spec.recipe, Evaluation):
        return _evaluation(spec, place=place)
    if spec.recipe.streaming:
        return _stream_and_score(spec, seed=seed, place=place)
    return _train_and_score(spec, seed=seed, place=place)


def _stream_and_score(spec: RunSpec, *, seed: int, place: Place) -> Work:
    """Training on photographs that stay in their files, on all devices; the first one scores."""
    assert isinstance(spec.recipe, Recipe)
    assert spec.recipe.streaming is not None
    transform = spec.recipe.streaming.transform
    listing = data.load_listing(spec.data, "test", root=place.data_root)
    network = _network(spec, seed=seed)

    def do(checkpoint: Path, report: Report, watch: Report) -> Scored:
        wall_seconds = _stream(
            network,
            spec=spec,
            seed=seed,
            place=place,
            checkpoint=checkpoint,
            report=lambda values: report("epoch", **values),
        )
        _, predictions = evaluation.evaluate(
            network,
            listing,
            spec=spec,
            transform=transform,
            device=torch.device(place.device_kind),
            checkpoint=checkpoint.with_suffix(".npz"),
            report=lambda values: watch("images", **values),
        )
        return Scored(predictions=predictions, labels=torch.tensor(listing.labels), wall_seconds=wall_seconds)

    return Work(network=network, do=do)


def _stream(
    network: nn.Module,
    *,
    spec: RunSpec,
    seed: int,
    place: Place,
    checkpoint: Path,
    report: Callable[[dict[str, Any]], None],
) -> float:
    """Seconds of training with all devices of the kind; the network then has the weights to score."""
    from remeasure import streaming  # timm: seconds to import

    listing = data.load_listing(spec.data, "train", root=place.data_root)
    devices = torch.cuda.device_count() if place.device_kind == "cuda" else 1
    return streaming.train(
        network,
        spec=spec,
        seed=seed,
        paths=[f"{listing.place}/{name}" for name in listing.names],
        labels=listing.labels,
        device_kind=place.device_kind,
        devices=devices,
        num_workers=evaluation.num_cores() // devices,
        checkpoint=checkpoint,
        report=report,
    )


def _train_and_score(spec: RunSpec, *, seed: int, place: Place) -> Work:
    training = build_training(spec, seed=seed, place=place)

    def do(checkpoint: Path, report: Report, watch: Report) -> Scored:  # noqa: ARG001
        wall_seconds = train(
            training,
            spec=spec,
            device_kind=place.device_kind,
            checkpoint=checkpoint,
            report=lambda values: report("epoch", **values),
        )
        images, labels = _scored_on(spec, place=place)
        predictions = predict(
            training.network, images, labels=labels, spec=spec, device=torch.device(place.device_kind)
        )
        if not math.isfinite(predictions.loss):  # the very last steps blew up
            raise DivergenceError(
                epoch=spec.recipe.epochs_total - 1, step=spec.recipe.epochs_total * training.steps_per_epoch - 1
            )
        return Scored(predictions=predictions, labels=labels, wall_seconds=wall_seconds)

    return Work(network=training.network, do=do)


def _evaluation(spec: RunSpec, *, place: Place) -> Work:
    """Published weights on the photographs of the test split."""
    recipe = spec.recipe
    assert isinstance(recipe, Evaluation)
    listing = data.load_listing(spec.data, "test", root=place.data_root)
    network = _network(spec, seed=0)
    path = weights.locate(spec)
    assert path is not None
    weights.load(network, path, sha256=spec.weights_sha256)

    def do(checkpoint: Path, report: Report, watch: Report) -> Scored:  # noqa: ARG001
        wall_seconds, predictions = evaluation.evaluate(
            network,
            listing,
            spec=spec,
            transform=recipe.transform,
            device=torch.device(place.device_kind),
            checkpoint=checkpoint,
            report=lambda values: watch("images", **values),
        )
        if not math.isfinite(predictions.loss):
            raise InputError(f"{path}: with these weights the net's answers are not finite in {spec.precision}")
        return Scored(predictions=predictions, labels=torch.tensor(listing.labels), wall_seconds=wall_seconds)

    return Work(network=network, do=do)


def _sound(checkpoint: Path) -> Literal["used", "none", "corrupt"]:
    """Whether there is a checkpoint to go on from. One that the disk did not keep whole is removed."""
    if not checkpoint.exists():
        return "none"
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if archive.testzip() is None:
                return "used"
    except Exception:  # whatever zipfile stumbles over
        pass
    checkpoint.unlink()
    return "corrupt"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A whole official split: `images` (N, C, H, W) uint8, `labels` (N,) int64; `verified` as in data.Split."""

    images: Tensor
    labels: Tensor
    verified: bool


_LOADED: dict[tuple[str, str], Loaded] = {}  # a worker process trains many seeds on the same images


def _load(spec: RunSpec, split: Literal["train", "test"], *, place: Place) -> Loaded:
    """The split, read once a process."""
    key = (spec.data_sha256, split)
    if key not in _LOADED:
        read = data.load_split(spec.data, split, root=place.data_root)
        _LOADED[key] = Loaded(
            images=torch.tensor(read.images), labels=torch.tensor(read.labels), verified=read.verified
        )
    return _LOADED[key]


def build_training(spec: RunSpec, *, seed: int, place: Place) -> Training:
    """A Lightning module on the spec's data, with the seed's own initial weights."""
    loaded = _load(spec, "train", place=place)
    num = len(loaded.images) - spec.data.num_validation
    network = _network(spec, seed=seed)
    return Training(network, spec=spec, seed=seed, images=loaded.images[:num], labels=loaded.labels[:num])


def _network(spec: RunSpec, *, seed: int) -> nn.Module:
    network = models.build(
        spec.model,
        image_shape=spec.input_shape,
        num_classes=spec.data.num_classes,
        generator_seed=derive(seed, purpose="weights", step=0),
    )
    if spec.compile:
        network.compile()
    return network


def _scored_on(spec: RunSpec, *, place: Place) -> tuple[Tensor, Tensor]:
    """The official test split; when tuning, the held-back end of the training split, and the test split is not read."""
    if spec.data.split == "test":
        loaded = _load(spec, "test", place=place)
        return loaded.images, loaded.labels
    loaded = _load(spec, "train", place=place)
    return loaded.images[-spec.data.num_validation :], loaded.labels[-spec.data.num_validation :]


def _facts(spec: RunSpec, *, seed: int, row: str, place: Place, num_params: int) -> dict[str, Any]:
    """What a record says that is known before training."""
    device = provenance.device_name(place.device_kind)
    revision = provenance.revision(place.project)
    return {
        "row": row,
        "seed": seed,
        "spec_sha256": spec.spec_sha256,
        "training_version": spec.training_version,
        "num_params": num_params,
        "epochs": spec.recipe.epochs_total,
        "device": device,
        "device_kind": place.device_kind,
        "data_sha256": spec.data_sha256,
        "data_official": _official(spec, place=place),
        "commit": revision.commit,
        "dirty": revision.dirty,
        "versions_sha256": environment_sha256(provenance.environment(device)),
        "mlflow_run_id": "",
    }


def _official(spec: RunSpec, *, place: Place) -> str:
    if data.streamed(spec.data):
        source = data.fingerprint(spec.data, root=place.data_root, trains=spec.mode == "train")
        if source.data_sha256 != spec.data_sha256:
            raise InputError(f"data {spec.data.name}: its files have changed since the run was planned; start again")
        return source.data_official
    verified = _load(spec, "train", place=place).verified
    return data.official(spec.data, spec.data_sha256, verified=verified).data_official


def _announce(
    directory: Path,
    *,
    spec: RunSpec,
    facts: dict[str, Any],
    place: Place,
    report: Report,
    checkpoint: str,
) -> None:
    """Write what the run is into its directory, then journal that it started or goes on."""
    if started := last(read(directory), "started"):
        names = {key: started[key] for key in ("row", "seed", "model", "data", "epochs_total")}
        report("resumed", **names, checkpoint=checkpoint)
        return
    config = {"row": facts["row"], "seed": facts["seed"], **asdict(spec)}
    write_whole(directory / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False).encode())
    environment = provenance.environment(facts["device"])
    write_whole(directory / "environment.json", json.dumps(environment, indent=1, sort_keys=True).encode())
    if diff := provenance.revision(place.project).diff:
        write_whole(directory / "diff.patch", diff.encode())
    names = {"run_id": directory.name, "model": spec.model.name, "data": spec.data.name, "recipe": spec.recipe.name}
    report("started", **names, **facts, epochs_total=spec.recipe.epochs_total)


def plain(value: object) -> Any:
    """`asdict` output with lists in place of tuples, as YAML and JSON hold it."""
    return json.loads(json.dumps(value))


def _result(scored: Scored) -> dict[str, Any]:
    predictions, labels = scored.predictions, scored.labels
    num_correct = int((predictions.predicted == labels).sum())
    return {
        "accuracy_percent": 100 * num_correct / len(labels),
        "num_correct": num_correct,
        "num_test": len(labels),
        "loss": predictions.loss,
        "predicted_sha256": predicted_sha256(predictions.predicted.numpy()),
    }


def _no_result(spec: RunSpec) -> dict[str, Any]:
    """What a seed that diverged has to show. It need not have read what it would have been scored on."""
    num_test = spec.data.num_test if spec.data.split == "test" else spec.data.num_validation
    return {"accuracy_percent": None, "num_correct": None, "num_test": num_test, "loss": None, "predicted_sha256": None}


def _last_point(spec: RunSpec, *, record: RunRecord) -> dict[str, Any]:
    """The evaluation as a point of the curve."""
    keys = {"split": spec.data.split, "loss": record.loss, "accuracy_percent": record.accuracy_percent}
    return {"epoch": spec.recipe.epochs_total, "step": None, **keys, "lr": None, "seconds": None}


def _keep_arrays(directory: Path, *, network: nn.Module, predictions: Predictions) -> None:
    predicted = predictions.predicted.numpy().astype(np.uint16)
    confidence = predictions.confidence.numpy().astype(np.float16)
    write_whole(directory / "predictions.npz", encode_npz({"predicted": predicted, "confidence": confidence}))
    weights = models.first_layer_weights(network).numpy().astype(np.float16)
    write_whole(directory / "filters.npz", encode_npz({"weights": weights}))
