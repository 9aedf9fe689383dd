"""Measures a table of published benchmark accuracies again, and judges each number."""

import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from remeasure.spec import __version__ as __version__

if TYPE_CHECKING:
    from remeasure.judging.table import TableRow
    from remeasure.models.saved import Classifier
    from remeasure.runs.folder import Outcome
    from remeasure.spec.claim import Metric, Verdict
    from remeasure.spec.config import Config

_ONE_RUN = Lock()

if sys.argv[0] == "-m":  # `python -m` imports the package first: a module that is no command would do nothing, exit 0
    _module = sys.orig_argv[-len(sys.argv)].removeprefix("-m").removeprefix("remeasure.")
    _file = Path(__file__).parent / (_module.replace(".", "/") + ".py")
    if _file.is_file() and "__main__" not in _file.read_text("utf-8"):
        print(f"remeasure.{_module} is no command; `python -m remeasure --help` lists them", file=sys.stderr)
        sys.exit(2)


def compose(overrides: Sequence[str] = ()) -> "Config":
    """The config of `remeasure train <overrides>`, in the project of the working directory, else the package's own.

    Raises remeasure.spec.base.InputError: all that is wrong with it. docs/own_table.md has an example.
    """
    from remeasure.config import compose, errors  # Hydra, torch: seconds to import
    from remeasure.system import paths

    paths.enter()
    with errors.as_input_errors():
        return compose.compose([overrides] if isinstance(overrides, str) else overrides)


def run(config: "Config") -> "Outcome":
    """Train one run, or take the finished one; its `record` has the accuracy, its `directory` the files.

    Prints what the command prints: contextlib.redirect_stdout and `verbosity=quiet` in the config silence it. Runs that
    several threads start take turns: a training sets torch's generators and number of threads, which are the process's.
    Raises remeasure.spec.base.InputError: the data or the device is not here.
    """
    from remeasure.cli.train import run_single  # Lightning: seconds to import

    with _ONE_RUN:
        return run_single(config)


def table(results: str | Path | None = None) -> "list[TableRow]":
    """The table of a results folder, by default the project's, a row of the ledger each; pandas.DataFrame takes it.

    Raises remeasure.spec.base.InputError: a fault in the ledger or in a record.
    """
    from remeasure.judging import ledger, reader
    from remeasure.judging.table import build
    from remeasure.system import paths

    paths.enter()
    rows = ledger.read(paths.conf_dir() / paths.LEDGER)
    folder = Path(results) if results is not None else paths.project_root() / "results"
    records = {name: reader.read_runs(folder, row=name) for name in rows}
    return list(build(rows, records=records, specs=reader.read_specs(folder, rows=rows)))


def load(run: str | Path) -> "Classifier":
    """The trained network of a run, by its folder or MLflow run id, in evaluation mode on the CPU.

    It maps images (N, C, H, W) uint8 in 0..255 to logits (N, num_classes) float32, and normalises them itself; its
    `classes` have names. Raises remeasure.spec.base.InputError: there is no such run, or it is unfinished, damaged or
    keeps no network. docs/models.md has an example.
    """
    from remeasure.cli.models import open_run  # torch: seconds to import

    return open_run(run).classifier


def judge(
    accuracies: Sequence[float | str],
    *,
    published: float | str,
    margin: float,
    confidence: float = 0.95,
    looks: Sequence[int] | None = None,
    num_test: int | None = None,
    metric: "Metric" = "accuracy_percent",
) -> "Verdict":
    """The verdict on accuracies, in percent, of independent seeds that somebody else has trained.

    `published` in percent, `margin` in percentage points; `looks`: the planned numbers of seeds, None for one look at
    all of them; `num_test`: the number of test images, None for what the printed decimals resolve;
    `metric`: what the numbers are (spec.claim.Metric). Raises
    remeasure.spec.base.InputError.

        verdict = remeasure.judge([93.1, 92.8, 93.4, 93.0, 93.2], published=93.0, margin=0.5)
        print(verdict.verdict, verdict.reason)
    """
    from remeasure.judging.verdict import judge_accuracies  # SciPy: a second to import

    return judge_accuracies(
        accuracies,
        published=published,
        margin=margin,
        confidence=confidence,
        looks=looks,
        num_test=num_test,
        metric=metric,
    )
