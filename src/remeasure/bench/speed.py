"""Contests of speed: this project beside the loops that a user would write, timed in turn, one at a time.

`CONTESTS` lists them by name. Each contestant keeps a separate process for the whole contest and starts with an untimed
training; this project's campaigns run on the workers of a campaign.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from remeasure.bench.baselines import lightning_template, ours, pytorch_loops, roofline
from remeasure.bench.baselines.processes import own_process
from remeasure.bench.baselines.pytorch_loops import Timed
from remeasure.bench.series import Measure, Part, Series, Setting, interleaved, ratio
from remeasure.campaign.executors.local import Workers, num_workers
from remeasure.runs.folder import Place
from remeasure.spec.recipe import Recipe
from remeasure.spec.run import RunSpec

ARTICLE_SIZES = (784, 256, 128, 64, 10)
NUM_TRAIN = 60_000
WARM_IMAGES = 640
FIRST_SEED = 100  # of timed runs; any number, as long as no seed is trained twice
ROWS = {"logreg": "logreg-mnist", "mlp2": "mlp2-mnist", "mlp4": "mlp4-mnist", "lenet5": "lenet5-mnist"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Amounts of training. `epochs`: of a rival in one round; `num_seeds` and `campaign_epochs`: of our campaigns."""

    num_images: int = NUM_TRAIN
    epochs: int = 2
    num_seeds: int = 10
    campaign_epochs: int = 10
    iterations: int = 100
    matrix: int = 2048
    matrix_seconds: float = 1.0


FULL = Sizes()
TINY = Sizes(num_images=2_000, epochs=1, num_seeds=2, campaign_epochs=1, iterations=5, matrix=256, matrix_seconds=0.05)


class Contest(ExitStack):
    """Contestants by name, with their processes and workers, which end with the context.

    `seeds`: the seeds of timed runs, each used once.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.sizes = setting, sizes_of(setting)
        self.place = place_of(setting)
        self.seeds: Iterator[int] = itertools.count(FIRST_SEED)
        self.contestants: dict[str, Callable[[], float]] = {}
        self.warming: list[Future[Any]] = []
        self.root = pytorch_loops.unpack(setting.data_root, root=setting.scratch / "torchvision")

    def spec(self, *overrides: str) -> RunSpec:
        """The spec of a command line; in the rehearsal, with the first training images only."""
        return ours.compose_spec(*overrides, *held_back(self.sizes), data_root=self.setting.data_root)

    def add(
        self, name: str, loop: Callable[..., Timed], *, threads: int | None, times: int = 1, **arguments: Any
    ) -> None:
        """Add a rival in a separate process; its value is `times` the mean seconds of an epoch."""
        process = self.enter_context(own_process(threads=threads))
        given = {"root": self.root, "epochs": self.sizes.epochs, "num_images": self.sizes.num_images, **arguments}
        self.warming.append(process.submit(loop, **{**given, "epochs": 1, "num_images": WARM_IMAGES}, seed=0))

        def seconds() -> float:
            timed: Timed = process.submit(loop, **given, seed=next(self.seeds)).result()
            return times * timed.mean_seconds

        self.contestants[name] = seconds

    def add_ours(
        self, name: str, process: ProcessPoolExecutor, loop: Callable[..., list[float]], *, spec: RunSpec
    ) -> None:
        """Add this project's training of one seed in `process`; its value is the mean seconds of an epoch."""
        train = partial(process.submit, loop, spec=spec, place=self.place)
        self.warming.append(train(seed=0))
        self.contestants[name] = lambda: statistics.fmean(train(seed=next(self.seeds)).result())

    def workers(self, *, warm: RunSpec) -> Workers:
        """The workers of a campaign, after an untimed training of `warm`."""
        workers = self.enter_context(Workers(self.place))
        ours.warm_up(workers, spec=warm, seeds=self.seeds)
        return workers

    def campaign_seconds(self, workers: Workers, *, spec: RunSpec, epochs: int) -> float:
        """Wall seconds of a campaign of `num_seeds` new seeds at `epochs` epochs."""
        seeds = list(itertools.islice(self.seeds, self.sizes.num_seeds))
        return ours.campaign_seconds(workers, spec=spec, seeds=seeds, epochs=epochs)

    def run(self, *, times: int = 1, notes: Mapping[str, str] | None = None) -> dict[str, Series]:
        """The values of all contestants, timed in turn once all are warm, in `times` the rounds of the setting."""
        for future in self.warming:
            future.result()
        values, notes = interleaved(self.contestants, num_rounds=times * self.setting.num_rounds), notes or {}
        return {
            name: Series(name=name, unit="s", values=tuple(taken), note=notes.get(name, ""))
            for name, taken in values.items()
        }


def sizes_of(setting: Setting) -> Sizes:
    return TINY if setting.tiny else FULL


def place_of(setting: Setting) -> Place:
    """The benchmark's own place: its scratch folder, on the CPU."""
    runs = setting.scratch / "runs"
    return Place(runs=runs, project=setting.project, data_root=setting.data_root, device_kind="cpu")


def held_back(sizes: Sizes) -> list[str]:
    """The override that leaves only the first `num_images` training images."""
    return [f"data.num_validation={NUM_TRAIN - sizes.num_images}"]


# ---------------------------------------------------------------- the article's net

ARTICLE_LOOP = "(a) the article's loop"
TEMPLATE = "(b) Lightning + DataLoader template"
SKLEARN = "(c) scikit-learn MLPClassifier"
HAND_1, HAND_2 = "(d) hand-written loop, one thread", "(d) hand-written loop, two threads"
OURS, OURS_BF16 = "(e) this project, float32", "(e) this project, bfloat16"
FLOOR, FLOOR_STRICT = "matrix products alone, 6·weights·images", "matrix products alone, those that are needed"
RATE = "float32 matrix products, all cores"


def article(setting: Setting) -> Part:
    """The article's net: seconds of an epoch; for this project, of a seed and epoch in a campaign of ten seeds."""
    with Contest(setting) as contest:
        sizes = contest.sizes
        contest.add(ARTICLE_LOOP, pytorch_loops.article_loop, threads=None)
        contest.add(TEMPLATE, lightning_template.lightning_template, threads=None)
        contest.add(SKLEARN, pytorch_loops.sklearn_mlp, threads=None)
        contest.add(HAND_1, pytorch_loops.hand_article, threads=1)
        contest.add(HAND_2, pytorch_loops.hand_article, threads=2)
        workers = contest.workers(warm=contest.spec("model=article_mlp", "recipe.epochs_total=1"))
        epochs = f"recipe.epochs_total={sizes.campaign_epochs}"
        for name, precision in ((OURS, "float32"), (OURS_BF16, "bfloat16")):
            spec = contest.spec("model=article_mlp", epochs, f"precision={precision}")
            contest.contestants[name] = partial(_seconds_of_seed_and_epoch, contest, workers, spec=spec)
        cores = [contest.enter_context(own_process(threads=1)) for _ in range(num_workers(contest.place))]
        measure = partial(roofline.machine_rate, cores, size=sizes.matrix, min_seconds=sizes.matrix_seconds)
        contest.contestants[RATE] = measure
        series = contest.run(notes=ARTICLE_NOTES)
    rate = Series(name=RATE, unit="GFLOP/s", values=series.pop(RATE).values)
    for name, first_inputs in ((FLOOR, True), (FLOOR_STRICT, False)):
        series[name] = floor_series(name, rate=rate, num_images=sizes.num_images, first_inputs=first_inputs)
    return Part(
        name="article",
        question="How long does an epoch of the article's net (784-256-128-64-10, batch 64) take?",
        series=(*series.values(), rate),
        ratios=(
            ratio("article's loop / this project", series[ARTICLE_LOOP], series[OURS], at_least=6),
            ratio("Lightning template / this project", series[TEMPLATE], series[OURS]),
            ratio("scikit-learn / this project", series[SKLEARN], series[OURS], at_least=1),
            ratio("hand loop, one thread / this project", series[HAND_1], series[OURS]),
            ratio("hand loop, two threads / this project", series[HAND_2], series[OURS]),
            ratio("this project / matrix products alone", series[OURS], series[FLOOR], at_most=2),
            ratio("this project / matrix products that are needed", series[OURS], series[FLOOR_STRICT]),
            ratio("this project, bfloat16 / float32", series[OURS_BF16], series[OURS]),
        ),
        remarks=(
            f"A rival's value is the mean of {sizes.epochs} epochs in one process, without loading and scoring.",
            f"This project's value is the wall time of a campaign of {sizes.num_seeds} seeds on its workers, "
            f"{sizes.campaign_epochs} epochs each, divided by seeds and epochs: training, journal, scoring and records "
            "included; tracking is not.",
            "(a), (b) and (c) run with the number of threads that their libraries choose.",
        ),
    )


ARTICLE_NOTES = {
    SKLEARN: "neither dropout nor clipping, which it does not have",
    OURS: "wall seconds of a campaign / (seeds x epochs), everything included; dropout_masks: uniform",
    OURS_BF16: "as float32; another spec, so another row of evidence",
}


def _seconds_of_seed_and_epoch(contest: Contest, workers: Workers, *, spec: RunSpec) -> float:
    epochs = spec.recipe.epochs_total
    seconds = contest.campaign_seconds(workers, spec=spec, epochs=epochs)
    return seconds / (contest.sizes.num_seeds * epochs)


def floor_series(name: str, *, rate: Series, num_images: int, first_inputs: bool) -> Series:
    """Seconds of the article's matrix products at the measured rates."""
    flop = roofline.products_flop(ARTICLE_SIZES, num_images=num_images, first_inputs=first_inputs)
    unneeded = "with" if first_inputs else "without"
    return Series(
        name=name,
        unit="s",
        values=tuple(flop / (value * 1e9) for value in rate.values),
        note=f"{flop / 1e9:,.1f} GFLOP an epoch, {unneeded} the first layer's input gradient",
    )


# ---------------------------------------------------------------- the rows of MNIST

SKLEARN_LOGISTIC = "(c) scikit-learn LogisticRegression, 100 iterations, one fit"


def rows(setting: Setting) -> Part:
    """Seconds of ten seeds of each MNIST row, in this project and in a hand-written loop on one thread."""
    with Contest(setting) as contest:
        workers = contest.workers(warm=_one_epoch(contest, "mlp2")[0])
        for model, row in ROWS.items():
            spec, epochs = _one_epoch(contest, model)
            measured = spec.recipe.epochs_total
            times = contest.sizes.num_seeds * epochs // measured
            contest.add(f"(d) {row}", pytorch_loops.hand_row, threads=1, spec=spec, epochs=measured, times=times)
            campaign = partial(contest.campaign_seconds, workers, spec=spec, epochs=epochs)
            contest.contestants[f"(e) {row}"] = campaign
        iterations = contest.sizes.iterations
        contest.add(SKLEARN_LOGISTIC, pytorch_loops.sklearn_logistic, threads=None, epochs=iterations)
        series = contest.run()
    ours_sum = total("(e) the four rows", [series[f"(e) {row}"] for row in ROWS.values()])
    hand_sum = total("(d) the four rows", [series[f"(d) {row}"] for row in ROWS.values()])
    each = (
        ratio(f"this project / hand loop, {row}", series[f"(e) {row}"], series[f"(d) {row}"]) for row in ROWS.values()
    )
    return Part(
        name="rows",
        question=f"How long do {contest.sizes.num_seeds} seeds of each MNIST row take?",
        series=(*series.values(), ours_sum, hand_sum),
        ratios=(ratio("this project / hand loop, the four rows", ours_sum, hand_sum, at_most=0.6), *each),
        remarks=(
            "(d) trains the same nets with the same optimisers, batches, distortions and rates in a hand-written loop "
            "on one thread: one epoch is timed, and multiplied by the row's epochs and by the seeds.",
            "(e) is the wall time of a campaign of one epoch, everything included, and the row's further epochs at "
            "what the measured one took, spread over the workers. Both make all iterations of logistic regression.",
        ),
    )


def _one_epoch(contest: Contest, model: str) -> tuple[RunSpec, int]:
    """The row's spec with its schedule scaled to one epoch, and the row's epochs; L-BFGS keeps all its iterations."""
    recipe = contest.spec(f"model={model}").recipe
    assert isinstance(recipe, Recipe)
    if recipe.optimizer.searches_lines:
        epochs = contest.sizes.iterations
        return contest.spec(f"model={model}", f"recipe.epochs_total={epochs}"), epochs
    warmup = f"recipe.schedule.epochs_warmup={recipe.schedule.epochs_warmup / recipe.epochs_total}"
    return contest.spec(f"model={model}", "recipe.epochs_total=1", warmup), recipe.epochs_total


def total(name: str, parts: Sequence[Series]) -> Series:
    """The sum of the parts, round by round."""
    sums = (sum(values) for values in zip(*(part.values for part in parts), strict=True))
    return Series(name=name, unit="s", values=tuple(sums))


# ---------------------------------------------------------------- LeNet-5, Lightning, precision


def lenet(setting: Setting) -> Part:
    """LeNet-5 as published, with distortions, beside the plain version without them."""
    published, plain, flushed = "as published, distorted (this project)", "plain", "plain, denormals flushed to zero"
    with Contest(setting) as contest:
        spec, _ = _one_epoch(contest, "lenet5")
        process = contest.enter_context(own_process(threads=1))
        contest.add_ours(published, process, ours.through_lightning, spec=spec)
        contest.add(plain, pytorch_loops.plain_lenet5, threads=1, epochs=1)
        contest.add(flushed, pytorch_loops.plain_lenet5, threads=1, epochs=1, flush_denormal=True)
        series = contest.run()
    return Part(
        name="lenet",
        question="What does LeNet-5 as published, with distortions, cost beside a plain one? Seconds of an epoch",
        series=tuple(series.values()),
        ratios=(
            ratio("as published / plain", series[published], series[plain], at_most=1.35),
            ratio("as published / plain, denormals flushed", series[published], series[flushed]),
        ),
        remarks=(
            "Plain: tanh, average pooling, dense C3, linear output, batch 64, no distortions, in a hand-written loop. "
            "Each on one thread. The published net's training flushes denormals; a plain loop does not by itself.",
        ),
    )


def lightning(setting: Setting) -> Part:
    """This project's steps in Lightning beside the same steps in a bare loop, in one process."""
    with Contest(setting) as contest:
        process = contest.enter_context(own_process(threads=1))
        for model in ("article_mlp", "mlp2"):
            spec = contest.spec(f"model={model}", "recipe.epochs_total=1")
            contest.add_ours(f"{model}, Lightning", process, ours.through_lightning, spec=spec)
            contest.add_ours(f"{model}, bare loop", process, ours.by_hand, spec=spec)
        series = contest.run(times=4)  # short turns: a disturbance hits both contestants
    return Part(
        name="lightning",
        question="What does Lightning add to a training step? Seconds of an epoch, one thread",
        series=tuple(series.values()),
        ratios=tuple(
            ratio(
                f"{model}, Lightning / bare", series[f"{model}, Lightning"], series[f"{model}, bare loop"], at_most=1.05
            )
            for model in ("article_mlp", "mlp2")
        ),
        remarks=("Both make the same steps on the same numbers: a test shows that the weights come out equal.",),
    )


def variants(setting: Setting) -> Part:
    """bfloat16 beside float32, for dense nets, one seed on one thread: speed only."""
    models = ("article_mlp", "mlp2", "mlp4")
    with Contest(setting) as contest:
        process = contest.enter_context(own_process(threads=1))
        for model, precision in itertools.product(models, ("float32", "bfloat16")):
            spec = contest.spec(f"model={model}", "recipe.epochs_total=1", f"precision={precision}")
            contest.add_ours(f"{model}, {precision}", process, ours.through_lightning, spec=spec)
        series = contest.run()
    return Part(
        name="variants",
        question="Is bfloat16 faster? Seconds of an epoch, one thread",
        series=tuple(series.values()),
        ratios=tuple(
            ratio(f"{model}, bfloat16 / float32", series[f"{model}, bfloat16"], series[f"{model}, float32"])
            for model in models
        ),
        remarks=("Another precision is another spec; the part `accuracy` compares the article's net in both.",),
    )


CONTESTS: dict[str, Measure] = {part.__name__: part for part in (article, rows, lenet, lightning, variants)}
