"""`remeasure add-row`: one more claim in the ledger, with its margin worked out; the rest of the file stays."""

import argparse
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import yaml

from remeasure.cli.options import Parser
from remeasure.judging import ledger
from remeasure.judging.metrics import METRICS
from remeasure.spec.base import InputError, Mode
from remeasure.spec.claim import Grade, Metric, Row
from remeasure.system import locks, paths
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.validation import convert

_ROWS = "rows"
SD_PP = 0.10  # of a share of the test images between seeds, where nothing is known


def main(arguments: Sequence[str]) -> int:
    """Append the entry; returns the exit status. InputError: a fault in it or in the ledger, which stays then."""
    given = _parser().parse_args(arguments)
    row = append("-".join(filter(None, (given.model, given.data, given.variant))), entry=_entry(given))
    path, margin = paths.conf_dir() / paths.LEDGER, row.rule.margin_pp
    print(f"{path}: {row.name} added, margin {margin} percentage points; `remeasure reproduce {row.name}` measures it")
    return 0


def append(name: str, *, entry: dict[str, Any]) -> Row:
    """Append the row's entry to the ledger. InputError: a fault in it or in the ledger, which stays then."""
    path = paths.project_conf_dir() / paths.LEDGER
    with locks.held(path.parent, seconds=locks.LOCK_SECONDS), tempfile.TemporaryDirectory() as folder:
        text = read_bytes(path).decode(errors="surrogateescape")
        row = convert(Row, {**entry, "name": name}, where=f"rows.{name}")
        ledger.check_configs({name: row}, conf_dirs=paths.conf_dirs())
        before = {} if _is_empty(text) else ledger.read(path)
        if name in before:
            raise InputError(f"{path}: rows.{name}: is there already; --variant names another claim about it")
        changed = _appended(text, name=name, entry=entry).encode(errors="surrogateescape")
        trial = Path(folder) / path.name
        trial.write_bytes(changed)
        try:
            after = ledger.read(trial)
        except InputError as error:
            raise InputError(*(fault.replace(str(trial), str(path)) for fault in error.faults)) from None
        if after != {**before, name: row}:
            raise InputError(f"{path}: the entry cannot be appended, as `rows` is not written a key a line")
        write_atomic(path, changed)
        return row


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="remeasure add-row", description=__doc__)
    for group in ("model", "data", "recipe"):
        parser.add_argument(f"--{group}", required=True, help=f"a file of conf/{group}")
    parser.add_argument("--variant", help="where another row has this model and data: the rest of this one's name")
    parser.add_argument("--mode", choices=get_args(Mode), default="train", help="default: train")
    number = parser.add_mutually_exclusive_group(required=True)
    printed = "as printed, in percent: 93.0 has one decimal, 93 none"
    for metric, meaning in METRICS.items():
        name = metric.removesuffix("_percent").replace("_", "-")
        number.add_argument(f"--{name}", dest=metric, type=_printed, help=f"the {meaning.title} {printed}")
    parser.add_argument("--params", help="the number of parameters as printed, such as 11.7M (left out: not stated)")
    parser.add_argument("--num-runs", type=int, help="it is the mean of so many runs (left out: not stated)")
    parser.add_argument("--selection", help="how the run or the epoch was picked (left out: not stated)")
    parser.add_argument("--citation", required=True, help="who published it")
    parser.add_argument("--where", required=True, help="the table or page")
    parser.add_argument("--says", required=True, help="what it says there")
    grade_help = "primary: whoever measured it; secondary: who repeats it; unsourced: a number without its origin"
    parser.add_argument("--grade", required=True, choices=get_args(Grade), help=grade_help)
    parser.add_argument("--notes", default="", help="what is ambiguous, where the recipe departs from it, and why")
    parser.add_argument(
        "--sd", type=float, help="between seeds, for the margin (0.10; unknown of F1 and balanced accuracy)"
    )
    parser.add_argument(
        "--margin", type=float, help="default: half a unit of the last digit + 1.96 sd / √runs, rounded up"
    )
    parser.add_argument("--looks", help="numbers of seeds at which it is judged (5,10,20)")
    parser.add_argument("--first-seed", type=int, default=0, help="beyond all seeds that have been seen (0)")
    return parser


def _printed(text: str) -> Decimal:
    if not text.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"expected an accuracy as printed, such as 93.0, got {text!r}")
    return Decimal(text)


def _entry(given: argparse.Namespace) -> dict[str, Any]:
    """The row as the ledger has it, without its name."""
    metric = next(each for each in METRICS if getattr(given, each) is not None)
    printed: Decimal = getattr(given, metric)
    num_digits = -int(printed.as_tuple().exponent)
    rule: dict[str, Any] = {"margin_pp": _margin(given, metric=metric, num_digits=num_digits)}
    looks = given.looks or ("1" if given.mode == "evaluate" else "")
    if looks:
        rule["looks"] = [int(look) if look.isdecimal() else look for look in looks.split(",")]
    if given.first_seed:
        rule["first_seed"] = given.first_seed
    return {
        **{key: getattr(given, key) for key in ("model", "data", "recipe", "mode")},
        **({} if metric == "accuracy_percent" else {"metric": metric}),
        "published": {
            metric: float(printed),
            "num_digits": num_digits,
            "num_params_text": given.params,
            "num_runs": given.num_runs,
            "selection": given.selection,
            "sources": [{key: getattr(given, key) for key in ("citation", "where", "says", "grade")}],
            "notes": given.notes,
        },
        "rule": rule,
    }


def _margin(given: argparse.Namespace, *, metric: Metric, num_digits: int) -> float:
    """The one given, else by the formula; InputError: it needs an sd, and none is known for this metric."""
    if given.margin is not None:
        return float(given.margin)
    if given.sd is None and not METRICS[metric].is_share and given.mode == "train":
        title = METRICS[metric].title
        raise InputError(f"--sd or --margin: expected one; no usual sd between seeds is known for {title}")
    sd = SD_PP if given.sd is None else given.sd
    return ledger.margin_pp(num_digits=num_digits, num_runs=given.num_runs, sd_pp=sd, mode=given.mode)


def _is_empty(text: str) -> bool:
    """Whether the ledger has the key `rows` and nothing below it."""
    try:
        return bool(yaml.safe_load(text) == {_ROWS: None})
    except yaml.YAMLError:  # which ledger.read tells
        return False


def _appended(text: str, *, name: str, entry: dict[str, Any]) -> str:
    """The ledger with one more row after its last one."""
    text = text if text.endswith("\n") else f"{text}\n"
    lines = text.splitlines(keepends=True)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    rows = next(value for key, value in root.value if key.value == _ROWS)
    end, indent = len(lines), 2
    if isinstance(rows, yaml.MappingNode):
        end, indent = rows.end_mark.line, rows.value[0][0].start_mark.column
    while end and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):  # what belongs to the next key
        end -= 1
    shown = yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True, width=110)
    block = "".join(f"{' ' * indent}{line}" for line in shown.splitlines(keepends=True))
    return "".join([*lines[:end], "\n", block, *lines[end:]])
