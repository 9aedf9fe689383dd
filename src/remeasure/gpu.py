"""All that is open on a GPU, measured by one command: records of rows that can be committed, and speeds.

    python -m remeasure.gpu --out DIR [--minutes 9] [--tiny]

DIR/gpu.json has the machine and one entry for each step that is done; a step that is there already is not done again,
so that the same command goes on after an interruption. DIR/gpu.md shows it as tables. DIR/rows-*.tar.gz have the
rows' files as results/ holds them: unpacked over the project, they are committed like any others.
`--tiny` is the rehearsal: the same steps on the CPU, with sizes that end in two minutes and the demo's rows.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from remeasure import cli, evaluation, models, paths, process, provenance, reproduce
from remeasure.batched import BatchedTraining
from remeasure.devices import resolve_device
from remeasure.journal import now
from remeasure.recipe import training_loss
from remeasure.records import read_runs
from remeasure.rundir import write_whole
from remeasure.spec import Config, DeviceKind, RunRecord
from remeasure.training import Training, forward, train

Figures = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. Rows are command lines of `reproduce.py measure`; `vit` is one of `train.py`."""

    first_rows: tuple[str, ...]
    last_rows: tuple[str, ...]
    matrix: int
    batches: tuple[int, ...]
    photograph_batches: tuple[int, ...]
    hidden: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    num_images: int
    vit: tuple[str, ...]
    repeats: int


FULL = Sizes(
    first_rows=("resnet18-cifar10", "--seeds", "5"),
    last_rows=("logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist", "--seeds", "10", "--together", "10"),
    matrix=8192,
    batches=(128, 512, 2048),
    photograph_batches=(64, 256, 512),
    hidden=(64, 256, 1024, 4096),
    seeds=(1, 10, 100),
    steps=200,
    num_images=4_000,
    vit=("model=vit_b16",),
    repeats=30,
)
TINY = Sizes(
    first_rows=("logreg-digits", "--demo", "--seeds", "2"),
    last_rows=("mlp2-digits", "--demo", "--seeds", "2", "--together", "2"),
    matrix=512,
    batches=(8, 16),
    photograph_batches=(2,),
    hidden=(16, 64),
    seeds=(1, 2),
    steps=3,
    num_images=16,
    vit=("model=vit_b16", "model.options.architecture=vit_tiny_patch16_224"),
    repeats=2,
)


def main(arguments: Sequence[str]) -> int:
    """Measure what is not in DIR yet; returns the exit status: 1 where a step failed, and the others were done."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes, kind = (TINY, resolve_device("cpu")) if options.tiny else (FULL, resolve_device("auto"))
    deadline = time.monotonic() + 60 * options.minutes
    report = _Report(options.out, kind=kind)
    for name, step in _steps(sizes, kind=kind, out=options.out, deadline=deadline):
        if name in report.figures:
            print(f"{name}: done before", file=sys.stderr)
        elif time.monotonic() > deadline:
            print(f"{name}: no time left; the same command goes on", file=sys.stderr)
        else:
            report.take(name, step)
    write_whole(options.out / "gpu.md", to_markdown(report.content()).encode())
    return int(bool(report.failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remeasure.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, gpu.md and rows-*.tar.gz")
    parser.add_argument("--minutes", type=float, default=9.0, help="no step is begun after so many minutes")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal, on the CPU")
    return parser


class _Report:
    """DIR/gpu.json: what is measured so far, written after each step."""

    def __init__(self, out: Path, *, kind: DeviceKind) -> None:
        self.path, self.failures = out / "gpu.json", list[str]()
        revision = provenance.revision(paths.project_root())
        self.head = {
            "environment": provenance.environment(provenance.device_name(kind)),
            "commit": str(revision),
        }
        self.figures: dict[str, Any] = {}
        if self.path.is_file():
            found = json.loads(self.path.read_text())
            if found["head"] != self.head:
                raise SystemExit(f"{self.path} is of another machine, version or commit; give another --out")
            self.figures = found["figures"]

    def content(self) -> dict[str, Any]:
        return {"head": self.head, "figures": self.figures}

    def take(self, name: str, step: Callable[[], Figures]) -> None:
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            figures = step()
        except Exception as error:  # one step's fault; the time on this machine is for the others
            self.failures.append(name)
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return
        seconds = round(time.monotonic() - began, 1)
        self.figures[name] = {"measured_at": now(), "seconds": seconds, "lines": figures}
        write_whole(self.path, json.dumps(self.content(), indent=1).encode())
        print(f"{name}: {seconds} s", file=sys.stderr, flush=True)


def _steps(
    sizes: Sizes, *, kind: DeviceKind, out: Path, deadline: float
) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Names and what measures them, the most wanted first."""
    device = torch.device(kind)

    def rows(arguments: Sequence[str]) -> tuple[str, Callable[[], Figures]]:
        archive = out / f"rows-{arguments[0]}.tar.gz"
        return f"rows {' '.join(arguments)}", partial(measure_rows, arguments, archive=archive, deadline=deadline)

    yield "matrix products", lambda: [matrix_product(sizes.matrix, device=device, repeats=sizes.repeats)]
    yield rows(sizes.first_rows)
    yield "ViT from memory", lambda: vit_from_memory(sizes, device=device)
    yield "ViT from files", lambda: vit_from_files(sizes, device=device)
    yield "ResNet-18 by batch", lambda: resnet_by_batch(sizes, device=device)
    yield "MLP by batch and width", lambda: mlp_by_size(sizes, device=device)
    yield "seeds together", lambda: seeds_together(sizes, kind=kind)
    yield rows(sizes.last_rows)


# ---------------------------------------------------------------- the clock


@contextmanager
def _clock(device: torch.device) -> Iterator[list[float]]:
    """Seconds that the block and what it started on the device took, in a list that is filled at its end."""
    seconds: list[float] = []
    _wait(device)
    began = time.perf_counter()
    yield seconds
    _wait(device)
    seconds.append(time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], *, device: torch.device, repeats: int) -> tuple[float, float]:
    """(seconds of the first call, which may compile; median seconds of a later one, over five equal groups)."""
    with _clock(device) as first:
        call()
    call()
    group, times = max(1, repeats // 5), list[float]()
    for _ in range(5):
        with _clock(device) as seconds:
            for _ in range(group):
                call()
        times.append(seconds[0] / group)
    return first[0], statistics.median(times)


# ---------------------------------------------------------------- the steps


def matrix_product(size: int, *, device: torch.device, repeats: int) -> dict[str, Any]:
    """The chip's own rate: a bfloat16 matrix product of size³, in FLOP/s (2·size³ a product)."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    _, seconds = median_seconds(lambda: left @ right, device=device, repeats=repeats)
    return {"size": size, "precision": "bfloat16", "tflops": round(2 * size**3 / seconds / 1e12, 6)}


def measure_rows(arguments: Sequence[str], *, archive: Path, deadline: float) -> Figures:
    """`reproduce.py measure <arguments>` into a results folder of its own, which `archive` then holds."""
    budget = f"{max(1, int(deadline - time.monotonic()))}s"
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        began = time.monotonic()
        status = reproduce.main(
            ["measure", *arguments, "--budget", budget, "--results", str(results)], compose=cli.compose
        )
        seconds = time.monotonic() - began
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(results, arcname="results")
        records = {path.stem: read_runs(results, row=path.stem) for path in sorted((results / "runs").glob("*.csv"))}
    if status:
        raise RuntimeError(f"measure {' '.join(arguments)} ended with {status}")
    return [{"row": "all of them, from shell to shell", "seconds_in_all": round(seconds, 1)}] + [
        _row_line(name, group) for name, group in records.items() if group
    ]


def _row_line(name: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    scored = [record.accuracy_percent for record in records if record.accuracy_percent is not None]
    seconds = sorted(record.wall_seconds for record in records)
    return {
        "row": name,
        "seeds": len(records),
        "mean_percent": round(statistics.fmean(scored), 3) if scored else None,
        "sd_percent": round(statistics.stdev(scored), 3) if len(scored) > 1 else None,
        "first_seed_seconds": records[0].wall_seconds,
        "median_seed_seconds": statistics.median(seconds),
    }


def _config(*overrides: str) -> Config:
    return cli.compose(list(overrides))


def _network(config: Config, *, device: torch.device) -> nn.Module:
    network = models.build(
        config.model, image_shape=config.input_shape, num_classes=config.data.num_classes, generator_seed=0
    )
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=form)


def _flop(call: Callable[[], object]) -> int:
    """Floating point operations of a call, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def vit_from_memory(sizes: Sizes, *, device: torch.device) -> Figures:
    """Images/s of inference in bfloat16 on uint8 images that are on the device, plain and compiled."""
    config, lines = _config(*sizes.vit), Figures()
    for compiled in (False, True) if device.type == "cuda" else (False,):
        network = _network(config, device=device)
        if compiled:
            network.compile(mode="max-autotune-no-cudagraphs")
        run = forward(network, spec=config.spec(data_sha256=""), device=device)
        for batch in sizes.photograph_batches:
            images = torch.randint(0, 256, (batch, *config.input_shape), dtype=torch.uint8).to(device)
            call = torch.inference_mode()(partial(run, images))
            lines.append(_speed(call, batch=batch, compiled=compiled, device=device, repeats=sizes.repeats))
    return lines


def vit_from_files(sizes: Sizes, *, device: torch.device) -> Figures:
    """Images/s from JPEG files: decoding alone, and decoding with the net, beside the net alone."""
    config = _config(*sizes.vit, "data=imagenet_sample")
    return [evaluation.throughput(config, device=device, data_root=paths.data_root(), num_images=sizes.num_images)]


def resnet_by_batch(sizes: Sizes, *, device: torch.device) -> Figures:
    """Seconds and images/s of the row's own optimiser step (crop, flip, cut-out, bfloat16) on random pixels."""
    lines = Figures()
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for batch in sizes.batches:
            config = _config("model=resnet18", f"recipe.batch_size={batch}", "recipe.resolution=null")
            call, flop = _training_call(config, compiled=compiled, device=device)
            lines.append(_speed(call, batch=batch, compiled=compiled, device=device, repeats=sizes.repeats, flop=flop))
    return lines


def mlp_by_size(sizes: Sizes, *, device: torch.device) -> Figures:
    """Seconds of the article's optimiser step by batch, and by the width of one hidden layer."""
    lines = Figures()
    grid = [(batch, 256) for batch in sizes.batches] + [(sizes.batches[0], width) for width in sizes.hidden]
    for batch, width in grid:
        config = _config("model=mlp2", f"recipe.batch_size={batch}", f"model.options.hidden_sizes=[{width}]")
        call, flop = _training_call(config, compiled=False, device=device)
        speed = _speed(call, batch=batch, compiled=False, device=device, repeats=sizes.repeats, flop=flop)
        lines.append({"hidden": width, **speed})
    return lines


def seeds_together(sizes: Sizes, *, kind: DeviceKind) -> Figures:
    """Seconds of an optimiser step of so many seeds, launched kernel by kernel and captured as a graph.

    Where a step cannot be captured here, the line says why, and nothing is captured from then on.
    """
    lines = Figures()
    modes = ("0", "1") if kind == "cuda" else ("0",)
    for model, num, captured in itertools.product(("mlp2", "lenet5"), sizes.seeds, modes):
        if captured > os.environ.get("REMEASURE_CAPTURE", "1"):
            continue
        line: dict[str, Any] = {"model": model, "seeds": num, "captured": captured == "1"}
        try:
            with mock.patch.dict(os.environ, REMEASURE_CAPTURE=captured):
                seconds = _seconds_per_step(model, num_seeds=num, num_steps=sizes.steps, kind=kind)
        except Exception as error:
            if captured == "0":
                raise
            os.environ["REMEASURE_CAPTURE"] = "0"
            lines.append({**line, "fault": f"{type(error).__name__}: {error}"})
            continue
        each = {"milliseconds": round(1000 * seconds, 3), "milliseconds_per_seed": round(1000 * seconds / num, 4)}
        lines.append({**line, **each})
    return lines


def _seconds_per_step(model: str, *, num_seeds: int, num_steps: int, kind: DeviceKind) -> float:
    """Of the second epoch of so many steps, trained as a run trains, on noise."""
    epochs = ("recipe.epochs_total=2", "recipe.schedule.epochs_warmup=0")
    config = _config(f"model={model}", *epochs, "engine=batched", f"engine_width={num_seeds}")
    spec, seeds = config.spec(data_sha256=""), range(num_seeds)
    generator = torch.Generator().manual_seed(0)
    num = num_steps * config.recipe.batch_size
    images = torch.randint(0, 256, (num, *config.input_shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, config.data.num_classes, (num,), generator=generator)
    networks = [_network(config, device=torch.device("cpu")) for _ in seeds]
    training, seconds = BatchedTraining(networks, spec=spec, seeds=seeds, images=images, labels=labels), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.ckpt"
        train(
            training, spec=spec, device_kind=kind, checkpoint=checkpoint, report=lambda v: seconds.append(v["seconds"])
        )
    return seconds[1] / num_steps


def _training_call(config: Config, *, compiled: bool, device: torch.device) -> tuple[Callable[[], object], int]:
    """One optimiser step as a run makes it, without Lightning around it; and its FLOP."""
    generator = torch.Generator().manual_seed(0)
    num = config.recipe.batch_size
    images = torch.randint(0, 256, (num, *config.input_shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, config.data.num_classes, (num,), generator=generator)
    network = _network(config, device=device)
    if compiled:
        network.compile()
    spec = config.spec(data_sha256="")
    training = Training(network, spec=spec, seed=0, images=images, labels=labels).to(device)
    optimizer, chosen = training.configure_optimizers(), torch.arange(num, device=device)

    def call() -> None:
        batch, truth = training.batch(chosen, step=0, generator=generator)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = training_loss(network(batch), truth, loss=training.recipe.loss, parameters=network.parameters())
        torch.autograd.backward([loss])
        optimizer.step()

    return call, 0 if compiled else _flop(call)


def _speed(
    call: Callable[[], object], *, batch: int, compiled: bool, device: torch.device, repeats: int, flop: int = 0
) -> dict[str, Any]:
    operations = flop or (0 if compiled else _flop(call))
    first, seconds = median_seconds(call, device=device, repeats=repeats)
    return {
        "batch": batch,
        "compiled": compiled,
        "first_call_seconds": round(first, 3),
        "milliseconds": round(1000 * seconds, 3),
        "images_per_second": round(batch / seconds, 1),
        "tflops": round(operations / seconds / 1e12, 6) if operations else None,
    }


# ---------------------------------------------------------------- for a reader


def to_markdown(content: Mapping[str, Any]) -> str:
    """gpu.md: the machine, the command, and a table for each step."""
    environment = content["head"]["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    lines = [
        f"# Measured on {environment['device']}",
        "",
        "By `python -m remeasure.gpu --out DIR`, at commit "
        f"{content['head']['commit'] or 'unknown'}; {environment['cpu']}, Python {environment['python']}, {packages}.",
    ]
    peak = next((line["tflops"] for line in _lines(content, "matrix products")), None)
    for name in content["figures"]:
        table = [_with_share(line, peak=peak) for line in _lines(content, name)]
        columns = list(dict.fromkeys(key for line in table for key in line))
        lines += ["", f"## {name}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(line.get(column)) for column in columns)} |" for line in table]
    return "\n".join(lines) + "\n"


def _lines(content: Mapping[str, Any], name: str) -> Figures:
    lines: Figures = content["figures"].get(name, {}).get("lines", [])
    return lines


def _with_share(line: Mapping[str, Any], *, peak: float | None) -> dict[str, Any]:
    """A speed also as a share of the rate of the matrix products measured beside it."""
    if not peak or "size" in line or not line.get("tflops"):
        return dict(line)
    return {**line, "share_of_matrix_products": round(line["tflops"] / peak, 3)}


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case int():
            return f"{value:,}"
    return str(value)


if __name__ == "__main__":
    process.run(lambda: main(sys.argv[1:]))
