"""The page's figures, drawn by matplotlib as SVG. Colours are the page's CSS variables; text is text in its font.

The same arguments give the same bytes. Each function is cached: verify draws the same page again.
"""

import io
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from remeasure.spec.claim import VerdictName
from remeasure.spec.record import CurvePoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for CSS variables until the SVG is written.
PAPER, INK, QUIET, RULE, BAND, SEED, CURVE = (f"#0000{number:02x}" for number in range(1, 8))
COLOURS = {PAPER: "paper", INK: "ink", QUIET: "quiet", RULE: "rule", BAND: "band", SEED: "seed", CURVE: "curve"}
VERDICTS: dict[VerdictName, tuple[str, str]] = {  # colour, and a marker of its own
    "reproduced": ("#000011", "o"),
    "exceeds": ("#000012", "^"),
    "falls short": ("#000013", "v"),
    "undecided": ("#000014", "D"),
}
COLOURS |= {colour: name.replace(" ", "-") for name, (colour, _) in VERDICTS.items()}
PX = 1 / 72  # a point of the figure is a CSS pixel of the page
FONT = 12.0
TIMES_MARGIN = 3.0  # the forest plot ends at so many times the widest margin
MOST_LETTERS = 40  # of a row's name in the forest plot
_NAMED = re.compile(r' id="[A-Za-z0-9.]+_[0-9]+"')  # ids that matplotlib gives each group, the same in each figure
_COLOUR = re.compile("|".join(COLOURS))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A line of the forest plot; numbers are measured minus published, in percentage points."""

    row: str
    title: str
    verdict: VerdictName
    mean: float
    margin: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]


@cache
def forest(gaps: tuple[Gap, ...], *, narrow: bool) -> str:
    """Mean, interval, margin and seeds of each row. `narrow`: names above the lines, for a phone's width.

    Where a mean or an end of an interval lies beyond `TIMES_MARGIN` times the widest margin, there is an arrow at the
    edge; the number says how far the mean is. A long name is cut off by an ellipsis.
    """
    limit = TIMES_MARGIN * max(gap.margin for gap in gaps)
    width, pitch, left, right, top = (350, 46, 8, 52, 26) if narrow else (960, 34, 280, 70, 26)
    height = pitch * len(gaps) + top + 6
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, 6 / height, 1 - (left + right) / width, pitch * len(gaps) / height))
    axes.set(xlim=(-limit, limit), ylim=(len(gaps) - 0.5, -0.5), yticks=[])
    low = 0.72 if narrow else 0.5  # where in its strip a row's line lies, from its top
    marks = ticks(-limit, limit, most=4 if narrow else 10)
    axes.set_xticks(marks, [f"{mark:+g}" if mark else "published" for mark in marks])
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelcolor=QUIET)
    axes.grid(axis="x", color=RULE)
    axes.axvline(0, color=QUIET, linewidth=1)
    for number, gap in enumerate(gaps):
        y, (colour, marker) = number - 0.5 + low, VERDICTS[gap.verdict]
        half = 7 / pitch
        axes.fill_between([-gap.margin, gap.margin], y - half, y + half, color=BAND, linewidth=0)
        inside = [seed for seed in gap.seeds if abs(seed) <= limit]
        axes.plot(inside, [y] * len(inside), "o", color=SEED, markersize=4, alpha=0.5, markeredgewidth=0)
        ends = gap.interval or ()
        bar = [max(-limit, min(end, limit)) for end in ends]
        axes.plot(bar, [y] * len(bar), color=colour, linewidth=3, solid_capstyle="butt")
        reached = (gap.mean, *ends)
        at_x = [(gap.mean, marker)] if abs(gap.mean) <= limit else []
        at_x += [(-limit, "<")] if min(reached) < -limit else []
        at_x += [(limit, ">")] if max(reached) > limit else []
        for x, shape in at_x:
            axes.plot(
                [x],
                [y],
                marker=shape,
                color=colour,
                markersize=9,
                markeredgewidth=1.6,
                fillstyle="none" if gap.verdict == "undecided" else "full",
                clip_on=False,
            )
        at, align, offset = ((-limit, number - 0.26), "left", 0) if narrow else ((-limit, y), "right", -14)
        label: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": FONT, "parse_math": False}
        name = gap.title if len(gap.title) <= MOST_LETTERS else f"{gap.title[: MOST_LETTERS - 1].rstrip()}…"
        title = axes.annotate(name, at, xytext=(offset, 0), ha=align, color=INK, url=f"#{gap.row}", **label)
        title.set_bbox({"facecolor": PAPER, "linewidth": 0, "pad": 1})
        axes.annotate(f"{gap.mean:+.2f}", (limit, y), xytext=(12, 0), ha="left", color=colour, **label)
    return _svg(figure, salt=f"forest-{narrow}", label="Measured minus published accuracy of each row, in points")


@cache
def curve(points: tuple[CurvePoint, ...], *, published_percent: float | None, margin_pp: float, row: str) -> str:
    """Training accuracy over the epochs, mean and range of the seeds; at the end each seed's test accuracy as a dot.
    Published weights have the dot alone.

    Height goes with the logarithm of the error, so that 99.0 and 99.5 % are as far apart as 98 and 99 %.
    `published_percent` None: the claim is about another metric.
    """
    trained, tested = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for point in points:
        if point.accuracy_percent is not None and point.split != "validation":
            (trained if point.split == "train" else tested)[point.epoch].append(point.accuracy_percent)
    figure = _figure(400, 260)
    axes = figure.add_axes((0.14, 0.17, 0.83, 0.8))
    if published_percent is not None:
        margin = [_height(published_percent + side * margin_pp) for side in (-1, 1)]
        axes.axhspan(margin[0], margin[1], color=BAND, linewidth=0)
        axes.axhline(_height(published_percent), color=QUIET, linewidth=1, linestyle="--")
    epochs = sorted(trained)
    low, high, mean = (
        [_height(reduced(trained[epoch])) for epoch in epochs] for reduced in (min, max, lambda x: sum(x) / len(x))
    )
    axes.fill_between(epochs, low, high, color=CURVE, alpha=0.25, linewidth=0)
    axes.plot(epochs, mean, color=CURVE, linewidth=1.6)
    last, spread = max([*epochs, *tested, 1]), 0.03 * max([*epochs, *tested, 1])
    for epoch, values in tested.items():
        shifts = [spread * (1 + (number % 5) / 2) for number in range(len(values))]
        at = [epoch + shift for shift in shifts] if epoch == last else [epoch] * len(values)
        dots = [_height(value) for value in values]
        axes.plot(at, dots, "o", color=INK, markersize=3.5, alpha=0.6, markeredgewidth=0)
    bottom, top = axes.get_ylim()
    marks = error_ticks(10**-top, min(10**-bottom, 100))
    axes.set_yticks([_height(100 - error) for error in marks], [f"{100 - error:g}" for error in marks])
    steps = [step for step in ticks(0, last, most=8) if step == int(step)]
    axes.set_xticks(steps, [f"{step:g}" for step in steps])
    _plain(axes, x="epoch", y="accuracy, %")
    shown = "Training accuracy of {} by epoch, and each seed's test accuracy" if epochs else "Test accuracy of {}"
    return _svg(figure, salt=f"curve-{row}", label=shown.format(row))


@cache
def calibration(bins: tuple[tuple[float, float, float], ...], *, row: str) -> str:
    """Accuracy over confidence, a dot a bin, larger for a larger share of the test images; on the diagonal is ideal."""
    figure = _figure(280, 260)
    axes = figure.add_axes((0.2, 0.17, 0.76, 0.8))
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--")
    axes.plot([each[0] for each in bins], [each[1] for each in bins], color=CURVE, linewidth=1)
    for sure, right, share in bins:
        axes.plot([sure], [right], "o", color=CURVE, markersize=4 + 8 * math.sqrt(share), markeredgewidth=0)
    axes.set(xlim=(0, 1.04), ylim=(0, 1.04))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    _plain(axes, x="confidence", y="accuracy")
    return _svg(figure, salt=f"calibration-{row}", label=f"Accuracy of {row} over its confidence")


# ---------------------------------------------------------------- how they look


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of so many CSS pixels."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width * PX, height * PX))


def _plain(axes: Any, *, x: str, y: str) -> None:
    axes.set_xlabel(x, color=QUIET, fontsize=FONT)
    axes.set_ylabel(y, color=QUIET, fontsize=FONT)
    axes.tick_params(length=0, labelsize=FONT - 1, labelcolor=QUIET)
    axes.grid(color=RULE, linewidth=0.8)


def _height(accuracy_percent: float) -> float:
    """-log10 of the error in percent, which is taken as 0.01 % at least."""
    return -math.log10(max(100 - accuracy_percent, 0.01))


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers from low to high, in steps of 1, 2 or 5 times a power of ten; at most one more than `most`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * power for size in (1, 2, 5, 10) if (high - low) / (size * power) <= most)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def error_ticks(low: float, high: float) -> list[float]:
    """Errors in percent to mark on a logarithmic axis: 1, 2 and 5 times powers of ten, or, if fewer than 3 of these lie
    from low to high, round numbers in equal steps.
    """
    usual = [size * 10.0**power for power in range(-2, 3) for size in (1, 2, 5)]
    inside = [error for error in usual if low <= error <= high]
    return inside if len(inside) >= 3 else ticks(low, high, most=8)


def _svg(figure: "Figure", *, salt: str, label: str) -> str:
    """The figure as an element of the page. `salt`: makes the ids in it the figure's own."""
    import matplotlib

    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    text = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify": False}
    with matplotlib.rc_context(settings):
        nothing: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    source = _NAMED.sub("", text.getvalue()[text.getvalue().index("<svg") :])
    source = _COLOUR.sub(lambda found: f"var(--{COLOURS[found[0]]})", source)
    width, height = figure.get_size_inches() / PX
    view = (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width: {width:.0f}px" role="img" aria-label="{label}">'
    )
    return view + source[source.index(">") + 1 :].strip()
