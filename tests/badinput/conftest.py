"""The entry that each file of this folder has, and the count of what became of the examples."""

from collections.abc import Iterator

import pytest
from tests.badinput.entry import TALLY, Entry, entered
from tests.support.project import copy_project


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    with entered(copy_project(tmp_path_factory.mktemp("entry"))) as entry:
        yield entry


@pytest.fixture(scope="session", autouse=True)
def tally() -> Iterator[None]:
    """With `pytest -s`: how many examples there were, and how they ended."""
    yield
    print("".join(f"\n{name}: {count}" for name, count in sorted(TALLY.items())), f"\nin all: {TALLY.total()}")
