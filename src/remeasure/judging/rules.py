"""Which claim and rule the ledger had when a seed's number was first seen here: runs/rules/<row>.json."""

import json
from collections.abc import Iterable
from pathlib import Path

from remeasure.spec.claim import Row
from remeasure.system import locks
from remeasure.system.atomic import read_bytes, write_atomic


def first_rules(runs: Path, *, row: Row, seeds: Iterable[int]) -> dict[int, str]:
    """Row.rule_text by seed, as it was when the seed was first asked for; new seeds get today's.

    It outlives the seed's attempts and its record in results/, so that a later rule never looks like the first one.
    """
    folder = runs / "rules"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    with locks.held(folder):
        content = json.loads(read_bytes(path)) if path.is_file() else {}
        known = {int(seed): str(text) for seed, text in content.items()}
        found = dict(sorted((dict.fromkeys(seeds, row.rule_text) | known).items()))
        if found != known:
            write_atomic(path, json.dumps(found, indent=1).encode())
    return found
