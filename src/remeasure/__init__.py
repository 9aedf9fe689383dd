"""Measures a table of published benchmark accuracies again, and judges each number."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remeasure.models.saved import Classifier
    from remeasure.spec.claim import Verdict

__version__ = version("remeasure")


def load(run: str | Path) -> "Classifier":
    """The trained network of a run, by its folder or MLflow run id, in evaluation mode on the CPU.

    It maps images (N, C, H, W) uint8 in 0..255 to logits (N, num_classes) float32, and normalises them itself; its
    `classes` have names. Raises remeasure.spec.base.InputError: there is no such run, or it is unfinished, damaged or
    keeps no network. docs/models.md has an example.
    """
    from remeasure.cli.models import load_run  # torch: seconds to import

    return load_run(run)


def judge(
    accuracies: Sequence[float | str],
    *,
    published: float,
    margin: float,
    confidence: float = 0.95,
    looks: Sequence[int] | None = None,
    num_test: int | None = None,
) -> "Verdict":
    """The verdict on accuracies, in percent, of independent seeds that somebody else has trained.

    `published` in percent, `margin` in percentage points; `looks`: the planned numbers of seeds, None for one look at
    all of them; `num_test`: the number of test images, None for what the printed decimals resolve. Raises
    remeasure.spec.base.InputError.

        verdict = remeasure.judge([93.1, 92.8, 93.4, 93.0, 93.2], published=93.0, margin=0.5)
        print(verdict.verdict, verdict.reason)
    """
    from remeasure.judging.verdict import judge_accuracies  # SciPy: a second to import

    return judge_accuracies(
        accuracies, published=published, margin=margin, confidence=confidence, looks=looks, num_test=num_test
    )
