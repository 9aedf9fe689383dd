"""Measures a table of published benchmark accuracies again, and judges each number."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remeasure.models.saved import Classifier

__version__ = version("remeasure")


def load(run: str | Path) -> "Classifier":
    """The trained network of a run, by its folder or MLflow run id, in evaluation mode on the CPU.

    It maps images (N, C, H, W) uint8 in 0..255 to logits (N, num_classes) float32, and normalises them itself; its
    `classes` have names. Raises remeasure.spec.base.InputError: there is no such run, or it is unfinished, damaged or
    keeps no network. docs/models.md has an example.
    """
    from remeasure.cli.models import load_run  # torch: seconds to import

    return load_run(run)
