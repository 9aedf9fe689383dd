"""The same as real processes, as a person starts them: what is refused in a test is refused in a terminal."""

import os

from hypothesis import given
from hypothesis import strategies as st
from tests.badinput.entry import Entry, assert_well_ended, changed, examples, untouched
from tests.badinput.strategies import arguments, mutations
from tests.badinput.test_config import ALSO, words
from tests.support.forking import client as forking
from tests.support.measured import LEDGER, ROW
from tests.support.project import Ended

LIMIT_SECONDS = 120
RECORDS = (f"runs/{ROW}.csv", f"predictions/{ROW}.npz", f"curves/{ROW}.csv", f"specs/{ROW}.yaml", f"sums/{ROW}.sha256")


def ended(entry: Entry, script: str, *arguments: str) -> Ended:
    """The end of `python src/<script> <arguments>`, offline; fails where it does not end."""
    command = [str(entry.root / "src" / script), *arguments]
    environment = entry.project.environment(HF_HUB_OFFLINE="1", MLFLOW_TRACKING_URI=f"sqlite:///{entry.root}/mlflow.db")
    done = forking.run(command, cwd=entry.root, env=environment, timeout=LIMIT_SECONDS)
    return Ended(done.returncode, done.stdout, done.stderr)


def is_an_argument(text: str) -> bool:
    """Whether a process can be given it at all; a data set that is not here would be asked for on the network."""
    try:
        return b"\0" not in os.fsencode(text) and "mnist" not in text and "cifar" not in text and len(text) < 100_000
    except UnicodeEncodeError:
        return False


@examples(1)
@given(arguments.filter(lambda given: all(map(is_an_argument, given))))
def test_whatever_the_command_line_says_a_process_works_or_refuses_it_by_name(
    entry: Entry, given_arguments: list[str]
) -> None:
    with untouched(entry):
        done = ended(entry, "train.py", "model=mlp2", "data=digits", "recipe.epochs_total=1", *given_arguments)
    assert_well_ended(done, naming=words(*given_arguments) | {*ALSO})


@examples(1)
@given(mutations(LEDGER.encode()))
def test_whatever_the_ledger_holds_a_process_works_or_refuses_it_by_name(entry: Entry, content: bytes) -> None:
    with changed(entry.ledger, content=content), untouched(entry):
        done = ended(entry, "reproduce.py", "verify")
    assert_well_ended(done, naming=["benchmark.yaml", "table.csv", "belongs to no row", "runs/", "labels"])


@examples(1)
@given(st.sampled_from(RECORDS), st.data())
def test_whatever_a_record_holds_a_process_names_it(entry: Entry, name: str, data: st.DataObject) -> None:
    path = entry.results / name
    before = path.read_bytes()
    content = data.draw(mutations(before))
    with changed(path, content=content), untouched(entry):
        done = ended(entry, "reproduce.py", "table" if name.startswith("runs") else "verify")
    assert_well_ended(done, naming=[name, "labels"])
    assert (content != before) <= (done.status != 0)
