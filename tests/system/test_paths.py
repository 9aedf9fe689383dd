"""Where data and results lie."""

from pathlib import Path

import pytest

from remeasure.system import paths


def test_the_data_root_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REMEASURE_DATA", "~/data")
    assert paths.data_root() == tmp_path / "data"
