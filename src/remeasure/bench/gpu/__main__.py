"""All that is open on a GPU, measured by one command: records of rows that can be committed, and speeds.

    python -m remeasure.bench.gpu --out DIR [--minutes 9] [--only STEP …] [--tiny]

DIR/gpu.json has the machine and one entry for each step that is done; a step that is there already is not done again,
so that the same command goes on after an interruption. DIR/gpu.md shows it as tables. DIR/rows-*.tar.gz have the
files of rows with seeds, as results/ holds them; docs/gpu.md says how to compare them with what is committed.
`--tiny` is the rehearsal: the same steps on the CPU, with sizes that end in a few minutes and the demo's rows.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from remeasure.bench.gpu import graphs, photographs, rows, speeds
from remeasure.bench.gpu.report import Figures, Report
from remeasure.bench.gpu.sizes import FULL, TINY, Sizes
from remeasure.config import errors
from remeasure.runs import provenance
from remeasure.runs.hardware import settle
from remeasure.spec.base import DeviceKind, refuse
from remeasure.system import paths, startup
from remeasure.system.locks import held_folder
from remeasure.training.device import resolve_device

Step = Callable[[], Figures]


def main(arguments: Sequence[str]) -> int:
    """Measure the steps that are not in DIR yet. Exit status: 1 if a step failed; the others are still measured.

    Raises InputError: an unknown step, a folder that cannot be written, or figures in it that are damaged or of others.
    """
    options = _parser().parse_args(arguments)
    sizes, kind = (TINY, resolve_device("cpu")) if options.tiny else (FULL, resolve_device("auto"))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts; Lightning sets it in each run
    settle()
    provenance.warn_of_unknown(paths.project_root())
    deadline = time.monotonic() + 60 * options.minutes
    found = dict(steps(sizes, kind=kind, out=options.out, deadline=deadline))
    chosen = _chosen(options.only or [""], valid=list(found))
    with held_folder(paths.writable(options.out)):
        report = Report(options.out, kind=kind, tiny=options.tiny)
        return _measure(found, chosen=chosen, report=report, deadline=deadline)


def _chosen(beginnings: Sequence[str], *, valid: Sequence[str]) -> set[str]:
    """The steps with these beginnings, with or without "rows ". Raises InputError that lists the valid names."""
    chosen = {
        beginning: {name for name in valid if name.startswith(beginning) or name.startswith(f"rows {beginning}")}
        for beginning in beginnings
    }
    refuse(
        f"--only: no step begins with {beginning!r}; valid: {', '.join(valid)}"
        for beginning, names in chosen.items()
        if not names
    )
    return set().union(*chosen.values())


def _measure(found: Mapping[str, Step], *, chosen: Container[str], report: Report, deadline: float) -> int:
    for name, step in found.items():
        if name not in chosen:
            pass
        elif report.done(name):
            print(f"{name}: done before", file=sys.stderr)
        elif time.monotonic() > deadline:
            print(f"{name}: no time left; the same command goes on", file=sys.stderr)
        else:
            report.take(name, step)
        is_known = name in chosen or report.done(name)  # the check may come from an earlier call
        if name == "graph check" and is_known and not graphs.holds(report.lines(name)):
            print("captured steps are not as others, or cannot be made: none from here on", file=sys.stderr)
            os.environ["REMEASURE_CAPTURE"] = "0"
    return int(bool(report.failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remeasure.bench.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, gpu.md and rows-*.tar.gz")
    parser.add_argument("--minutes", type=float, default=9.0, help="no step is begun after so many minutes")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone, by the beginnings of their names")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal, on the CPU")
    return parser


def steps(sizes: Sizes, *, kind: DeviceKind, out: Path, deadline: float) -> Iterator[tuple[str, Step]]:
    """The name and the function of each step; archives of rows go into folder `out`."""
    device = torch.device(kind)

    def measured(arguments: Sequence[str]) -> tuple[str, Step]:
        archive = out / f"rows-{arguments[0]}.tar.gz"
        return f"rows {' '.join(arguments)}", partial(rows.measure_rows, arguments, archive=archive, deadline=deadline)

    yield "matrix products", lambda: [speeds.matrix_product(sizes.matrix, device=device, repeats=sizes.repeats)]
    yield "graph check", lambda: graphs.graph_check(sizes, kind=kind)
    yield measured(sizes.first_rows)
    yield measured(sizes.last_rows)
    yield "ViT from memory", lambda: speeds.vit_from_memory(sizes, device=device)
    yield "ResNet-18 ways", lambda: graphs.resnet_ways(sizes, kind=kind)
    yield "ViT from files", lambda: photographs.vit_from_files(sizes, device=device)
    yield "ResNet-18 by batch", lambda: speeds.resnet_by_batch(sizes, device=device)
    yield "MLP by batch and width", lambda: speeds.mlp_by_size(sizes, device=device)
    yield "seeds together", lambda: graphs.seeds_together(sizes, kind=kind)


if __name__ == "__main__":
    startup.run(lambda: errors.guarded(lambda: main(sys.argv[1:])))
