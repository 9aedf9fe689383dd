"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

from remeasure import paths

MNIST_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The data root, which holds MNIST: without it, tests are skipped, or fail where REMEASURE_REQUIRE_DATA is set."""
    root = paths.data_root()
    raw = root / "MNIST/raw"
    if all((raw / f"{stem}.gz").is_file() or (raw / stem).is_file() for stem in MNIST_STEMS):
        return root
    if os.environ.get("REMEASURE_REQUIRE_DATA"):
        pytest.fail(f"REMEASURE_REQUIRE_DATA is set, but {raw} lacks MNIST")
    pytest.skip(f"{raw} lacks MNIST")
