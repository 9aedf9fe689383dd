"""The entry that each file of this folder has."""

from collections.abc import Iterator

import pytest
from tests.badinput.entry import Entry, entered
from tests.support.project import copy_project


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    with entered(copy_project(tmp_path_factory.mktemp("entry"))) as entry:
        yield entry
