"""Which claim and rule the ledger had when a seed's number was first seen here: runs/rules/<row>.json.

runs/rules/since has the time at which a command first saw each row in the ledger.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.system import locks
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.clock import now

NO_CLAIM = "no such claim"  # the ledger had none when a seed's number was first seen


def note(runs: Path, *, rows: Iterable[str]) -> None:
    """Keep since when the ledger has these rows, by name. Call it before any of their seeds is trained."""
    folder = runs / "rules"
    folder.mkdir(parents=True, exist_ok=True)
    with locks.held(folder):
        known = _since(folder)
        if new := {row: now() for row in rows if row not in known}:
            write_atomic(folder / "since", json.dumps(known | new, indent=1).encode())


def first_rules(runs: Path, *, row: Row, finished: Mapping[int, str]) -> dict[int, str]:
    """Row.rule_text by seed, as it was when the seed's number was first seen; new seeds get today's. `finished`: when
    each seed's run had ended; NO_CLAIM if that was before the ledger had the row, as after another row's measurement.

    It outlives the seed's attempts and its record in results/, so that a later rule never looks like the first one.
    """
    since = _since(runs / "rules").get(row.name, "")
    new = {seed: row.rule_text if time >= since else NO_CLAIM for seed, time in finished.items()}
    return _with_new(runs, row=row.name, rules=new)


def _since(folder: Path) -> dict[str, str]:
    path = folder / "since"
    return dict(json.loads(read_bytes(path))) if path.is_file() else {}


def take_over(source: Path, *, runs: Path) -> None:
    """Let the seeds that another machine has in `source`, its folder of runs, keep the rule under which it saw them.

    A seed that has a rule here keeps that one. Raises InputError: a file of rules is damaged.
    """
    for path in sorted((source / "rules").glob("*.json")):
        try:
            rules = _read(path)
        except (ValueError, AttributeError):
            raise InputError(f"{path}: damaged; it says under which rule the seeds were seen") from None
        _with_new(runs, row=path.stem, rules=rules)


def _with_new(runs: Path, *, row: str, rules: dict[int, str]) -> dict[int, str]:
    """The row's rules by seed, with these of seeds that had none; kept."""
    folder = runs / "rules"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row}.json"
    with locks.held(folder):
        known = _read(path) if path.is_file() else {}
        found = dict(sorted((rules | known).items()))
        if found != known:
            write_atomic(path, json.dumps(found, indent=1).encode())
    return found


def _read(path: Path) -> dict[int, str]:
    return {int(seed): str(text) for seed, text in json.loads(read_bytes(path)).items()}
