"""`remeasure judge`: accuracies that somebody else measured. `remeasure compare`: two results folders."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from remeasure.cli.options import Parser
from remeasure.config.errors import EXIT_FAILED
from remeasure.judging.comparison import compare_folders
from remeasure.judging.verdict import judge_accuracies
from remeasure.spec.base import InputError


def judge(arguments: Sequence[str]) -> int:
    """Print the verdict, and why; returns the exit status. InputError: as in `judge_accuracies`."""
    parser = Parser(prog="remeasure judge", description="The verdict on accuracies that somebody else measured.")
    parser.add_argument("accuracies", nargs="+", help="in percent, one for each independent seed, in their order")
    parser.add_argument("--published", type=float, required=True, help="the published accuracy in percent")
    parser.add_argument("--margin", type=float, required=True, help="in percentage points")
    parser.add_argument("--confidence", type=float, default=0.95, help="default: 0.95")
    looks_help = "planned numbers of seeds at which it is judged, such as 5,10,20 (default: once, at all)"
    parser.add_argument("--looks", type=_numbers, help=looks_help)
    parser.add_argument("--num-test", type=int, help="number of test images (default: as many as the digits resolve)")
    verdict = judge_accuracies(**vars(parser.parse_args(arguments)))
    measured = "" if verdict.mean_percent is None else f"{verdict.mean_percent:.3f}"
    measured += "" if verdict.sd_percent is None else f" ± {verdict.sd_percent:.3f}"
    print(f"{verdict.verdict}: {measured} % (n = {verdict.num_seeds}); {verdict.reason}")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of seeds such as 5,10,20, got {text!r}") from None


def compare(arguments: Sequence[str]) -> int:
    """Print a line for each row; exit status 1 where one differs. InputError: no results, or damaged ones."""
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
    return EXIT_FAILED if any(row.outcome == "different" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit("no command of its own; `python -m remeasure --help` lists the commands")
