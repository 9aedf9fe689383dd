"""What a multirun or a study has swept: its table, and how it stands."""

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remeasure.system.clock import now

if TYPE_CHECKING:
    from remeasure.spec.config import Config
    from remeasure.tracking.observer import State, Sweep


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep. `overrides`: its command line; `accuracy_percent`: None if it failed."""

    overrides: tuple[str, ...]
    accuracy_percent: float | None

    def value(self, key: str) -> str:
        return dict(override.partition("=")[::2] for override in self.overrides).get(key, "")


@dataclass(kw_only=True)
class Sweeping:
    """A sweep under way. `name`: one that no other sweep of the project has."""

    name: str = field(default_factory=lambda: f"{now()} {os.getpid()}")
    started: str = field(default_factory=now)
    jobs: list[Job] = field(default_factory=list)

    def standing(self, state: "State") -> "Sweep":
        from remeasure.tracking.observer import Sweep

        percents = [job.accuracy_percent for job in self.jobs if job.accuracy_percent is not None]
        return Sweep(
            name=self.name,
            state=state,
            started=self.started,
            at=now(),
            table=tuple(table(self.jobs)) if self.jobs else (),
            percents=tuple(percents),
        )

    def end(self, config: "Config", *, state: "State") -> None:
        """Tell the observers of this config that the sweep has ended."""
        from remeasure.system import paths
        from remeasure.tracking.observer import build

        with build(config.observer, project=paths.project_root()) as observers:
            observers.sweep(self.standing(state))


def table(jobs: Sequence[Job]) -> Iterator[str]:
    """A line for each combination of the swept values but the seed: mean and sample sd of the accuracy over seeds."""
    keys = dict.fromkeys(override.partition("=")[0] for job in jobs for override in job.overrides)
    swept = [key for key in keys if key != "seed" and len({job.value(key) for job in jobs}) > 1]
    groups: dict[tuple[str, ...], list[float | None]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.value(key) for key in swept), []).append(job.accuracy_percent)
    rows = [(*swept, "seeds", "mean %", "sd")]
    for values, accuracies in groups.items():
        done = [accuracy for accuracy in accuracies if accuracy is not None]
        num = str(len(done)) if len(done) == len(accuracies) else f"{len(done)} of {len(accuracies)}"
        mean = f"{statistics.mean(done):.3f}" if done else ""
        rows.append((*values, num, mean, f"{statistics.stdev(done):.3f}" if len(done) > 1 else ""))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row, whose cells are padded to the widths of their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
