"""A power cut at any moment between a write, its fsync and its rename: the same command goes on to the same record."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.campaign import (
    EPOCHS,
    NEVER,
    NUM_CUTS,
    REPRODUCE,
    TRAIN,
    Unbroken,
    faults,
    folder,
    kept,
    setbacks,
    summary,
)
from tests.faults.test_kills import RecordProperty

# At which fsync or rename of a start it may be: of all files, of all but checkpoints, which each epoch has three of.
MOST = {
    REPRODUCE: {"any": 60 + 21 * EPOCHS, "other": 150},
    TRAIN: {"any": 10 + 6 * EPOCHS, "other": 60},
}
# First of all: a seed is finished by its journal and has no record; then it has one, and its checkpoint is still there.
FIRST = {REPRODUCE: (), TRAIN: ("record.json 1 before", "record.json 2 after")}


@pytest.mark.parametrize(("command", "num_cuts"), [(REPRODUCE, NUM_CUTS - NUM_CUTS // 2), (TRAIN, NUM_CUTS // 2)])
def test_power_cuts_at_random_lose_nothing(
    command: tuple[str, ...], num_cuts: int, unbroken: Unbroken, tmp_path: Path, record_property: RecordProperty
) -> None:
    """Of each file, what was fsynced is left, and of the rest nothing or a part. A new campaign when one has ended."""
    moments, cuts, found = moments_of(command, chance=random.Random(num_cuts)), 0, list[str]()
    expected = unbroken.kept if command == REPRODUCE else of_one_run(unbroken)
    while cuts < num_cuts:
        campaign, status = unbroken.begin(folder(tmp_path, name=f"after-{cuts}-cuts")), -signal.SIGKILL
        while status != 0:
            status = campaign.run(*command, cut=next(moments) if cuts < num_cuts else NEVER)
            assert status in (0, -signal.SIGKILL), campaign.output()
            cuts += status != 0
        found += [*setbacks(campaign), *faults(kept(campaign), expected=expected)]
    record_property("faults", summary(f"{cuts} power cuts of {command[0]}", faults=found))
    assert found == [], "\n".join(found)


def moments_of(command: tuple[str, ...], *, chance: random.Random) -> Iterator[str]:
    """When the power fails, as the driver wants it told."""
    yield from FIRST[command]
    while True:
        kind = chance.choice(list(MOST[command]))
        yield f"{kind} {chance.randint(1, MOST[command][kind])} {chance.choice(('before', 'after'))}"


def of_one_run(unbroken: Unbroken) -> dict[str, object]:
    """What `train.py` leaves of it: the first row's first seed, which is no row's child in MLflow; README as it was."""
    run, kept = "MLflow: shaken-digits seed 000", unbroken.kept
    own = [name for name in kept if name.startswith(("runs/shaken", "weights of shaken")) and "-s0-a1" in name]
    points = [name for name in kept if name.startswith(f"{run}, ")]
    points += ["runs/rules/shaken-digits.json seed 0"]
    readme = (unbroken.template.root / "README.md").read_bytes()
    return {name: kept[name] for name in [*own, *points]} | {run: ("FINISHED", None), "README.md": readme}
