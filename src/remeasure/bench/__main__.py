"""Speed side by side with what a user would write instead, and what else a run costs.

    python -m remeasure.bench [part …] [--rounds N] [--fresh] [--results DIR] [--tiny]

Each part is measured in turn; results/bench.json and bench.md are written after each. A part that is measured again
replaces its own entry only, so that parts may come from several calls; --fresh replaces one of more rounds, too.
Parts run on the CPU: for a GPU there is `python -m remeasure.bench.gpu`. `--tiny` is the rehearsal, on little data: it
shows that all is in order, no figure.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from remeasure.bench import report
from remeasure.bench.series import Measure, Setting
from remeasure.config import errors
from remeasure.spec.base import InputError, refuse
from remeasure.system import paths, startup
from remeasure.system.clock import now
from remeasure.system.locks import held_folder
from remeasure.system.validation import did_you_mean

ROUNDS, TINY_ROUNDS = 5, 2


def all_parts() -> dict[str, Measure]:
    """Every part by its name, in the order of the report."""
    from remeasure.bench.overheads import HOUSEKEEPING
    from remeasure.bench.parity import accuracy  # torch, Lightning, scikit-learn: seconds
    from remeasure.bench.speed import CONTESTS

    return {**CONTESTS, "accuracy": accuracy, **HOUSEKEEPING}


def main(arguments: Sequence[str], *, parts: Mapping[str, Measure] | None = None) -> int:
    """Measure the named parts, or all. Exit status: 1 if a part failed; the others are still measured.

    Raises InputError: an unknown part, or a folder or file that cannot be used.
    """
    load_average = os.getloadavg()[0]  # of the machine before the benchmark
    options = _parser().parse_args(arguments)
    parts = all_parts() if parts is None else parts
    chosen = _chosen(options.parts, valid=list(parts))
    results = _results(options.results, tiny=options.tiny)
    with held_folder(results, writes=True):
        report.read(results)  # refuses a malformed file before anything is measured
    machine = report.machine(load_average=load_average)
    num_rounds = options.rounds or (TINY_ROUNDS if options.tiny else ROUNDS)
    failed = False
    for name in chosen:
        _say(f"{name} …")
        began = time.monotonic()
        try:
            with _setting(num_rounds=num_rounds, tiny=options.tiny) as setting:
                part = parts[name](setting)
        except Exception as error:  # one part's fault; the others go on
            failed = True
            _say(f"{name} failed: {' '.join(traceback.format_exception_only(error)[-1].split())}")
            continue
        seconds = round(time.monotonic() - began, 1)
        entry = report.Entry(part=part, measured_on=now(), seconds=seconds, machine=machine)
        before = report.add(results, name, entry, order=parts, fresh=options.fresh)
        _say(f"{name}: {seconds} s")
        if before:
            _say(f"{name}: the entry of {before} rounds stays; with --fresh, one of {entry.num_rounds} replaces it")
    return errors.EXIT_FAILED if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m remeasure.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="what to measure; none is all")
    parser.add_argument("--rounds", type=_rounds, help=f"how often each contestant is timed (default: {ROUNDS})")
    parser.add_argument("--fresh", action="store_true", help="replace entries of more rounds, too")
    parser.add_argument("--results", type=Path, help="a folder to write in place of results/")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal; needs --results")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rounds from 1 up, got {text!r}")
    return int(text)


def _chosen(names: Sequence[str], *, valid: Sequence[str]) -> list[str]:
    """The named parts, once each; all if none is named. Raises InputError that lists the valid names."""
    refuse(
        f"part: there is no {name!r}{did_you_mean(name, valid)}; valid: {', '.join(valid)}"
        for name in names
        if name not in valid
    )
    return list(dict.fromkeys(names or valid))


def _results(folder: Path | None, *, tiny: bool) -> Path:
    """The folder to write into. Raises InputError if a rehearsal would write into results/."""
    own = (paths.project_root() / "results").resolve()
    chosen = (folder or own).resolve()
    if tiny and (chosen == own or own in chosen.parents):
        raise InputError(f"--tiny: its figures do not belong into {own}; name another folder (--results DIR)")
    return paths.writable(chosen)


@contextmanager
def _setting(*, num_rounds: int, tiny: bool) -> Iterator[Setting]:
    """A part's setting, with a scratch folder that is deleted afterwards.

    Environment variables hide the user's tracking store and any GPU, also from the processes that the part starts.
    """
    with (
        tempfile.TemporaryDirectory(prefix="remeasure-bench-") as folder,
        mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", CUDA_VISIBLE_DEVICES=""),
    ):
        yield Setting(
            project=paths.project_root(),
            data_root=paths.data_root(),
            scratch=Path(folder),
            num_rounds=num_rounds,
            tiny=tiny,
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    startup.run(lambda: errors.guarded(lambda: main(sys.argv[1:])))
