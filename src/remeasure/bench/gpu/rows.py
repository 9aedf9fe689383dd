"""Records of rows, measured into a results folder of their own."""

import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remeasure.bench.gpu.report import Figures, IncompleteError
from remeasure.cli import reproduce
from remeasure.config import compose
from remeasure.judging.reader import read_runs
from remeasure.spec.record import RunRecord


def measure_rows(arguments: Sequence[str], *, archive: Path, deadline: float) -> Figures:
    """The results of `reproduce.py measure <arguments>`, which name rows and --seeds.

    `archive` gets what was published, also if interrupted. Raises IncompleteError if a row lacks seeds.
    """
    budget = f"{max(1, int(deadline - time.monotonic()))}s"
    with tempfile.TemporaryDirectory() as folder:
        results, began = Path(folder) / "results", time.monotonic()
        command = ["measure", *arguments, "--budget", budget, "--results", str(results)]
        try:
            status = reproduce.main(command, compose=compose.compose)
        finally:
            _pack(results, archive=archive)
        seconds = time.monotonic() - began
        rows = [argument for argument in arguments[: arguments.index("--seeds")] if not argument.startswith("-")]
        records = {row: read_runs(results, row=row) for row in rows}
    lines: Figures = [{"row": "all of them, from shell to shell", "seconds_in_all": round(seconds, 1)}]
    lines += [_row_line(row, group) for row, group in records.items() if group]
    num_seeds = int(arguments[arguments.index("--seeds") + 1])
    lacks = [f"{row} has {len(group)} of {num_seeds} seeds" for row, group in records.items() if len(group) < num_seeds]
    if status or lacks:
        raise IncompleteError("; ".join(lacks) or f"measure {' '.join(arguments)} ended with {status}", lines=lines)
    return lines


def _pack(results: Path, *, archive: Path) -> None:
    """Pack the rows that have a seed, if any: unpacked at home, an empty record would replace a committed one."""
    sealed = {path.stem for path in results.glob("sums/*.sha256")}
    if not sealed:
        return

    def with_a_seed(file: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(file.name)
        return None if path.parent.name == "runs" and path.stem not in sealed else file

    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w:gz") as packed:
        packed.add(results, arcname="results", filter=with_a_seed)
    os.replace(partial, archive)


def _row_line(name: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    scored = [record.accuracy_percent for record in records if record.accuracy_percent is not None]
    return {
        "row": name,
        "seeds": len(records),
        "mean_percent": round(statistics.fmean(scored), 3) if scored else None,
        "sd_percent": round(statistics.stdev(scored), 3) if len(scored) > 1 else None,
        "first_seed_seconds": records[0].wall_seconds,
        "median_seed_seconds": statistics.median(record.wall_seconds for record in records),
    }
