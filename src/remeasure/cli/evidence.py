"""Evidence of others. `remeasure judge`: their accuracies; `compare`: their results folders; `merge`: their runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from remeasure.cli.options import Parser
from remeasure.config.errors import EXIT_FAILED
from remeasure.judging import rules
from remeasure.judging.comparison import compare_folders
from remeasure.judging.verdict import judge_accuracies
from remeasure.runs.merge import Merged
from remeasure.runs.merge import merge as merge_runs
from remeasure.spec.base import InputError, gathered, refuse
from remeasure.spec.claim import Metric
from remeasure.system import paths


def judge(arguments: Sequence[str]) -> int:
    """Print the verdict, and why; returns the exit status. InputError: as in `judge_accuracies`."""
    parser = Parser(prog="remeasure judge", description="The verdict on accuracies that somebody else measured.")
    parser.add_argument("accuracies", nargs="+", help="in percent, one for each independent seed, in their order")
    parser.add_argument("--published", required=True, help="the published number in percent")
    metric_help = "what all these numbers are (default: accuracy_percent); error, top5 and macro-f1 are short names"
    parser.add_argument(
        "--metric", type=_metric, choices=get_args(Metric), default="accuracy_percent", help=metric_help
    )
    parser.add_argument("--margin", type=float, required=True, help="in percentage points")
    parser.add_argument("--confidence", type=float, default=0.95, help="default: 0.95")
    looks_help = "planned numbers of seeds at which it is judged, such as 5,10,20 (default: once, at all)"
    parser.add_argument("--looks", type=_numbers, help=looks_help)
    parser.add_argument("--num-test", type=int, help="number of test images (default: as many as the digits resolve)")
    given = parser.parse_args(arguments)
    given.accuracies = [each for text in given.accuracies for each in _parted(text)]
    verdict = judge_accuracies(**vars(given))
    measured = "" if verdict.mean_percent is None else f"{verdict.mean_percent:.3f}"
    measured += "" if verdict.sd_percent is None else f" ± {verdict.sd_percent:.3f}"
    print(f"{verdict.verdict}: {measured} % (n = {verdict.num_seeds}); {verdict.reason}")
    return 0


def _parted(text: str) -> list[str]:
    """The numbers between commas; but "92,9" is one that `judge_accuracies` refuses."""
    parts = text.rstrip(",").split(",")
    return parts if all("." in part for part in parts) else [text.rstrip(",")]


def _metric(text: str) -> str:
    """The ledger's name of a metric; `add-row` has its options without the unit."""
    return f"{text.removesuffix('_percent').replace('-', '_')}_percent"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of seeds such as 5,10,20, got {text!r}") from None


def compare(arguments: Sequence[str]) -> int:
    """Print a line for each row; exit status 1 where one differs. InputError: no results, or damaged ones, or none that
    could be compared.
    """
    parser = Parser(prog="remeasure compare", description="Two results folders, of other machines or commits, by row.")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--confidence", type=float, default=0.95, help="of Welch's t-test (default: 0.95)")
    given = parser.parse_args(arguments)
    if not 0 < given.confidence < 1:
        raise InputError(f"--confidence: expected a fraction in (0, 1), got {given.confidence}")
    rows = compare_folders(given.first, given.second, confidence=given.confidence)
    for row in rows:
        print("\n  ".join((f"{row.row}: {row.outcome}: {row.evidence}", *row.differences)))
    if all(row.outcome == "not compared" for row in rows):
        raise InputError(f"no row of {given.first} could be compared with one of {given.second}")
    return EXIT_FAILED if any(row.outcome == "different" for row in rows) else 0


def merge(arguments: Sequence[str]) -> int:
    """Take over finished runs; returns the exit status. InputError: a folder has none, or a run of it is damaged."""
    parser = Parser(prog="remeasure merge", description="Finished runs of other machines, taken over into runs/.")
    parser.add_argument("folders", nargs="+", type=Path, help="their runs/, or the projects that hold them")
    faults, found = list[str](), list[Merged]()
    for folder in parser.parse_args(arguments).folders:
        source = folder / "runs" if (folder / "runs").is_dir() else folder
        with gathered(faults):
            runs = paths.writable(paths.project_root() / "runs")
            rules.take_over(source, runs=runs)
            for each in merge_runs(source, runs=runs):
                if isinstance(each, Merged):
                    found.append(each)
                else:
                    faults += each.faults
    seeds: dict[str, set[int]] = {}
    for each in found:
        name = each.record.row or each.source.name.rpartition("-s")[0]
        seeds.setdefault(f"{name}: {each.taken}: seed", set()).add(each.record.seed)
    for line, numbers in seeds.items():
        print(f"{line}{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}")
    if any(each.taken == "merged" for each in found):
        judges, sends = paths.command("reproduce"), paths.command("track")
        print(f"`{judges}` judges those of its own code; `{sends}` sends all to MLflow")
    refuse(faults)
    return 0
