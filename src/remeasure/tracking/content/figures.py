"""Figures of a row, as PNG."""

import io
from collections.abc import Sequence

import numpy as np

from remeasure.data import catalog
from remeasure.judging.records import SeedResults
from remeasure.judging.report.analysis import confusion as counted
from remeasure.spec.base import InputError
from remeasure.spec.run import DataSpec
from remeasure.system import paths
from remeasure.system.validation import convert

MOST_CLASSES = 20  # with more, the cells cannot be read


def confusion(seeds: Sequence[SeedResults]) -> bytes | None:
    """The confusion matrix, mean over the seeds, shaded by how frequent a mistake is.

    None where the test split is not here, or has too many classes, or the seeds were not scored on it.
    """
    predicted = [part.predicted for part in seeds if part.predicted is not None]
    data = seeds[0].spec["data"]
    if not predicted or data["num_classes"] > MOST_CLASSES or data["split"] != "test":
        return None
    try:
        spec = convert(DataSpec, data, where="data")
        labels = catalog.test_labels(spec, root=paths.data_root())
    except InputError:
        return None
    matrix = counted(np.stack(predicted), labels=labels, num_classes=spec.num_classes)
    return _drawn(
        matrix, classes=catalog.class_names(spec), title=f"{seeds[0].record.row}, mean of {len(predicted)} seeds"
    )


def _drawn(matrix: np.ndarray, *, classes: Sequence[str], title: str) -> bytes:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(7, 7), dpi=110)
    axes = figure.subplots(gridspec_kw={"left": 0.16, "bottom": 0.16, "right": 0.98, "top": 0.94})
    mistakes = matrix - np.diag(np.diag(matrix))
    axes.imshow(mistakes, cmap="Reds", vmax=1.5 * max(mistakes.max(), 1e-9))
    for (truth, answer), count in np.ndenumerate(matrix):
        if count:
            text = f"{count:.0f}" if count >= 9.95 or count == int(count) else f"{count:.1f}"
            weight = "bold" if truth == answer else "normal"
            axes.text(answer, truth, text, ha="center", va="center", fontsize=8, weight=weight)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(title=title, xlabel="predicted class", ylabel="class")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
