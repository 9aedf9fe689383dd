"""What a run starts from is looked for before anything is trained or fetched."""

from pathlib import Path

import pytest

from remeasure import data, inputs, weights
from remeasure.cli import compose
from remeasure.spec import Config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether weights were asked for with leave to download them, call by call; there are none."""
    seen: list[bool] = []

    def fingerprint(config: Config, *, fetch: bool) -> str:  # noqa: ARG001
        seen.append(fetch)
        raise data.DataMissingError("weights: not here")

    monkeypatch.setattr(weights, "fingerprint", fingerprint)
    return seen


def test_weights_are_not_downloaded_for_photographs_that_are_not_there(tmp_path: Path, asked: list[bool]) -> None:
    missing = inputs.identify(compose(["model=vit_b16"]), data_root=tmp_path)
    assert asked == [False]
    assert isinstance(missing, list)
    assert len(missing) == 2  # both are named at once


def test_weights_may_be_downloaded_where_the_photographs_are(
    asked: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data, "load_listing", lambda *_, **__: None)
    assert inputs.identify(compose(["model=vit_b16"]), data_root=tmp_path) == [("weights: not here",)]
    assert asked == [True]
