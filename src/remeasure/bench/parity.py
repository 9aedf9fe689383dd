"""Are the accuracies alike? The article's loop beside this project, and bfloat16 beside float32, seed by seed.

Each value is written at once to the project's runs/bench, by commit, so that the same command resumes after an
interruption.
"""

import statistics
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from remeasure.bench.baselines import ours, pytorch_loops
from remeasure.bench.baselines.processes import own_process
from remeasure.bench.series import Part, Ratio, Series, Setting
from remeasure.bench.speed import held_back, place_of, sizes_of
from remeasure.campaign.executors.local import Workers, num_workers
from remeasure.runs import journal, provenance
from remeasure.runs.folder import Outcome

# Chosen before any result: the standard deviation of one run of an MNIST row, as in the ledger's rule.
MARGIN_PP = 0.10
CONFIDENCE = 0.95
ARTICLE_LOOP, FLOAT32, BFLOAT16 = "(a) the article's loop", "(e) this project, float32", "(e) this project, bfloat16"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two samples' means, first minus second, in points.

    difference, low, high: Welch's interval at `CONFIDENCE`; p_welch: hypothesis of no difference (Welch 1947).
    p_tost: larger p-value of two one-sided tests; hypothesis of a difference of MARGIN_PP or more (Schuirmann 1987).
    p_ks: two-sample Kolmogorov-Smirnov test; hypothesis of one distribution.
    """

    difference: float
    low: float
    high: float
    p_welch: float
    p_tost: float
    p_ks: float

    @property
    def alike(self) -> bool:
        return self.p_tost <= 1 - CONFIDENCE


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """The comparison of two samples of at least two values each, not all equal."""
    welch = stats.ttest_ind(first, second, equal_var=False)
    interval = welch.confidence_interval(CONFIDENCE)
    above = stats.ttest_ind([value + MARGIN_PP for value in first], second, equal_var=False, alternative="greater")
    below = stats.ttest_ind([value - MARGIN_PP for value in first], second, equal_var=False, alternative="less")
    return Comparison(
        difference=statistics.fmean(first) - statistics.fmean(second),
        low=float(interval.low),
        high=float(interval.high),
        p_welch=float(welch.pvalue),
        p_tost=float(max(above.pvalue, below.pvalue)),
        p_ks=float(stats.ks_2samp(first, second).pvalue),
    )


# ---------------------------------------------------------------- values, kept between calls


class Kept:
    """Accuracies by contestant and seed, in a journal that is kept after the benchmark."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.journal = folder, journal.Journal(folder)

    def add(self, contestant: str, *, seed: int, accuracy_percent: float) -> None:
        self.journal.write("scored", contestant=contestant, seed=seed, accuracy_percent=accuracy_percent)

    def of(self, contestant: str) -> dict[int, float]:
        """Accuracy in percent, by seed."""
        events = (event for event in journal.read(self.folder) if event["contestant"] == contestant)
        return {event["seed"]: event["accuracy_percent"] for event in events}

    def missing(self, contestant: str, *, seeds: Sequence[int]) -> list[int]:
        done = self.of(contestant)
        return [seed for seed in seeds if seed not in done]


def folder_of(setting: Setting) -> Path:
    """The folder for values of this commit; a checkout with changes has a separate one."""
    revision = provenance.revision(setting.project)
    name = f"{revision.commit[:12] or 'no-commit'}{'-dirty' * bool(revision.dirty)}{'-tiny' * setting.tiny}"
    return setting.project / "runs/bench" / f"accuracy-{name}"


# ---------------------------------------------------------------- the part


def accuracy(setting: Setting) -> Part:
    """Final test accuracies of 20 seeds each, and whether they are alike within `MARGIN_PP`."""
    num_seeds, epochs = (3, 1) if setting.tiny else (20, 10)
    kept = Kept(folder_of(setting))
    by_hand(setting, kept=kept, seeds=range(num_seeds), epochs=epochs)
    for name, precision in ((FLOAT32, "float32"), (BFLOAT16, "bfloat16")):
        by_us(setting, name, kept=kept, seeds=range(num_seeds), epochs=epochs, precision=precision)
    series = {
        name: Series(name=name, unit="percent", values=tuple(kept.of(name)[seed] for seed in range(num_seeds)))
        for name in (ARTICLE_LOOP, FLOAT32, BFLOAT16)
    }
    pairs = ((FLOAT32, ARTICLE_LOOP), (BFLOAT16, FLOAT32))
    compared = {pair: compare(series[pair[0]].values, series[pair[1]].values) for pair in pairs}
    return Part(
        name="accuracy",
        question=f"Are the article's net's accuracies alike after {epochs} epochs? Final test accuracy of each seed",
        series=tuple(series.values()),
        ratios=tuple(_p_value(*pair, found=found) for pair, found in compared.items()),
        remarks=tuple(remark(*pair, found=found) for pair, found in compared.items()),
    )


def by_hand(setting: Setting, *, kept: Kept, seeds: Sequence[int], epochs: int) -> None:
    """The article's loop, in one process of one thread on each core."""
    if not (missing := kept.missing(ARTICLE_LOOP, seeds=seeds)):
        return
    root = pytorch_loops.unpack(setting.data_root, root=setting.scratch / "torchvision")
    given: dict[str, Any] = {"root": root, "epochs": epochs, "num_images": sizes_of(setting).num_images, "scored": True}
    with own_process(threads=1, num=num_workers(place_of(setting))) as processes:
        seed_of = {processes.submit(pytorch_loops.article_loop, **given, seed=seed): seed for seed in missing}
        for future in as_completed(seed_of):
            accuracy_percent = future.result().accuracy_percent
            assert accuracy_percent is not None
            kept.add(ARTICLE_LOOP, seed=seed_of[future], accuracy_percent=accuracy_percent)


def by_us(setting: Setting, name: str, *, kept: Kept, seeds: Sequence[int], epochs: int, precision: str) -> None:
    """This project, on the workers of a campaign. Raises ArithmeticError if a seed diverged."""
    if not (missing := kept.missing(name, seeds=seeds)):
        return
    overrides = ["model=article_mlp", f"recipe.epochs_total={epochs}", f"precision={precision}"]
    spec = ours.compose_spec(*overrides, *held_back(sizes_of(setting)), data_root=setting.data_root)

    def keep(outcome: Outcome) -> Outcome:
        record = outcome.record
        if record.accuracy_percent is None:
            raise ArithmeticError(f"{name}: seed {record.seed} diverged")
        kept.add(name, seed=record.seed, accuracy_percent=record.accuracy_percent)
        return outcome

    with Workers(place_of(setting)) as workers:
        workers.run(ours.tasks(spec, seeds=missing), keep=keep)


def _p_value(first: str, second: str, *, found: Comparison) -> Ratio:
    """TOST's p-value with its target; `low` and `high` equal it, as it has no spread."""
    return Ratio(
        name=f"p-value of TOST, {first} and {second} within ±{MARGIN_PP:.2f} points",
        value=found.p_tost,
        low=found.p_tost,
        high=found.p_tost,
        target=f"at most {1 - CONFIDENCE:.2g}",
        met=found.alike,
    )


def remark(first: str, second: str, *, found: Comparison) -> str:
    """The comparison as a sentence."""
    verdict = "alike" if found.alike else "not shown to be alike"
    return (
        f"{first} minus {second}: {found.difference:+.3f} points, {100 * CONFIDENCE:.0f} % interval {found.low:+.3f} "
        f"to {found.high:+.3f} (Welch, p = {found.p_welch:.3f}); two one-sided tests with a margin of "
        f"{MARGIN_PP:.2f} points: p = {found.p_tost:.2g}; Kolmogorov-Smirnov: p = {found.p_ks:.3f}. They are {verdict}."
    )
