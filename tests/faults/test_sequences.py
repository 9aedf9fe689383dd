"""Whatever is commanded, broken off and killed in whatever order: evidence never gives way to weaker evidence."""

import random
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import NUM_KILLS
from tests.faults.sequences import run_sequence

NUM_COMMANDS = 8 if NUM_KILLS > 20 else 3  # of a sequence
RecordProperty = Callable[[str, object], None]


def test_no_sequence_of_commands_weakens_or_loses_evidence(tmp_path: Path, record_property: RecordProperty) -> None:
    num, found = max(2, NUM_KILLS // 3), list[str]()
    for number in range(num):
        found += run_sequence(tmp_path / str(number), chance=random.Random(number), num_commands=NUM_COMMANDS)
    record_property("faults", f"{num} sequences of {NUM_COMMANDS} commands in two checkouts: {len(found)} faults")
    assert found == [], "\n".join(found)
