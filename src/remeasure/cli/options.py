"""The commands of the table and their options; light to import."""

import argparse
import re
from pathlib import Path
from typing import NoReturn, get_args

from remeasure.spec.base import InputError, Keep

DESCRIPTION = "The whole table from one command: plan, measure, table, verify. Also each of them alone."
SUITES = {
    "demo": "conf/demo.yaml into runs/demo, offline, under a minute",
    "controls": "conf/controls.yaml, faults on purpose that must fall short, into results/controls",
}
COMMANDS = {
    "reproduce": "plan, measure, write the table, verify it (the default)",
    "measure": "measure the named rows, or all; a table that is there is kept up to date",
    "table": "rebuild table, report and README block from results/ alone",
    "verify": "recompute every accuracy and every digit of the table; no training",
    "metrics": "error rate, macro F1, balanced accuracy, calibration, each class's accuracy: from predictions",
    "track": "replay into MLflow what its store lacks",
    "export": "a folder in exports/ for each named row's trained network, for others to load without this package",
    "ui": "serve MLflow's UI over the store on this machine, and print its link",
    "plan": "say what `reproduce` would train, at what cost, and stop",
}


LOCAL = "local"
ON_HELP = f"where runs are trained: {LOCAL}, this machine (default), or a file of conf/cluster, such as slurm or ray"


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (`{self.prog} --help`)")


def parser() -> argparse.ArgumentParser:
    """The options of `reproduce`, which its other commands share."""
    made = Parser(description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    help_text = "\n".join(f"{name:<10} {text}" for name, text in COMMANDS.items())
    made.add_argument("command", nargs="?", default="reproduce", choices=COMMANDS, metavar="command", help=help_text)
    made.add_argument("rows", nargs="*", default=[], help="rows of the ledger; none is all")
    made.add_argument("--seeds", type=_count, help="exactly so many seeds a row (default: until the row is decided)")
    budget_help = "such as 4h, 90m, 30s (default: 2h)"
    made.add_argument(
        "--budget", dest="budget_seconds", metavar="BUDGET", type=_seconds, default=7200.0, help=budget_help
    )
    made.add_argument(
        "--together", type=_count, default=1, help="train so many seeds of a row as one: for small nets on a GPU"
    )
    made.add_argument("--on", default=LOCAL, metavar="NAME", help=ON_HELP)
    made.add_argument("--fresh", action="store_true", help="train again what runs/ has")
    made.add_argument("--continue", dest="adopt", action="store_true", help="go on from the committed seeds")
    keep_help = "which seeds keep their trained network: the first of a row (default), all, none"
    made.add_argument("--keep", default="first", choices=get_args(Keep), help=keep_help)
    made.add_argument("--observers", metavar="NAMES", help="further files of conf/observer, such as a,b")
    made.add_argument("--port", type=_port, default=5000, help="of the UI (default: 5000)")
    told = made.add_mutually_exclusive_group()
    told.add_argument("--quiet", action="store_true", help="no plan and no progress: verdicts, faults and the table")
    told.add_argument("--verbose", action="store_true", help="a line for each seed, and all that is missing")
    made.add_argument("--results", type=Path, help="a folder to write in place of results/; README stays")
    made.add_argument("--json", type=Path, metavar="FILE", help="with table: its numbers as JSON, too, for DVC")
    suites = made.add_mutually_exclusive_group()
    for suite, help_text in SUITES.items():
        suites.add_argument(f"--{suite}", dest="suite", action="store_const", const=suite, default="", help=help_text)
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of seeds from 1 up, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """Such as 4h, 90m, 30s."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time such as 4h, 90m or 30s, got {text!r}")
    return float(found[1]) * {"h": 3600.0, "m": 60.0, "s": 1.0}[found[2]]
