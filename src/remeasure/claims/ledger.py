"""The ledger of claims, conf/claims.yaml: what is said, where, the experiment, and the rule, written before measuring.

Read as strictly as the benchmark's ledger: faults are named together. Each experiment's parameters are a dataclass
here, which also lists the names of the experiment's numbers; a rule about any other number is a fault.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from remeasure.judging import ledger
from remeasure.spec.base import Strict, canonical_sha256, gathered, refuse
from remeasure.system.validation import convert, did_you_mean

MEASURES_VERSION = 1  # raise it whenever an experiment measures something else
VerdictName = Literal["holds", "does not hold", "undecided", "not measured"]
SIX = ("sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu")
_NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


# ---------------------------------------------------------------- the experiments' parameters


@dataclass(frozen=True, kw_only=True)
class Parameters(Strict):
    """An experiment's parameters. `draws`: whether its numbers depend on the seed; else it is measured once.

    `gives`: the names of its numbers, where they do not depend on the parameters.
    """

    draws: ClassVar[bool] = False
    gives: ClassVar[Sequence[str]] = ()

    def numbers(self) -> list[str]:
        """The names of the numbers that the experiment gives for each seed."""
        return list(self.gives)


@dataclass(frozen=True, kw_only=True)
class Activations(Parameters):
    """The six activations against torch's, extremes by minimisation, and whether the slope is 0 on a half-line."""

    gives: ClassVar = [f"{name}.{kind}" for name in SIX for kind in ("formula_error", "lowest", "highest", "can_die")]


@dataclass(frozen=True, kw_only=True)
class LinearMap(Parameters):
    """Dense layers of these sizes against the product of their matrices; `relu`: the same with ReLUs between."""

    draws: ClassVar = True
    gives: ClassVar = ("linear.relative_error", "relu.relative_error")
    sizes: list[int]


@dataclass(frozen=True, kw_only=True)
class DepthVariance(Parameters):
    """Mean square of the activations after the last of `num_layers` layers over that after the first, in decades."""

    draws: ClassVar = True
    gives: ClassVar = [f"{scale}.decades" for scale in ("he", "xavier", "small", "large", "he_tanh", "xavier_tanh")]
    num_layers: int
    width: int
    num_inputs: int
    small_std: float
    large_std: float

    def _faults(self) -> Iterable[str]:
        if self.num_layers < 2:
            yield f"num_layers: expected 2 or more, got {self.num_layers}"


@dataclass(frozen=True, kw_only=True)
class InitialisationName(Parameters):
    """The article's scale √(2/fan_in) over the standard deviation of the weights that torch draws by each name."""

    draws: ClassVar = True
    gives: ClassVar = ("article_over_he", "article_over_xavier")
    fan_in: int
    fan_out: int


@dataclass(frozen=True, kw_only=True)
class DropoutExpectation(Parameters):
    """A dense layer's expected outputs over all masks of its inputs, which are enumerated."""

    draws: ClassVar = True
    gives: ClassVar = ("scaled_error", "inverted_error", "unscaled_error", "torch_factor_error")
    num_units: int
    keep: float

    def _faults(self) -> Iterable[str]:
        if not 1 <= self.num_units <= 16:
            yield f"num_units: expected 1 to 16, as all masks are enumerated, got {self.num_units}"
        if not 0 < self.keep < 1:
            yield f"keep: expected a probability in (0, 1), got {self.keep}"


@dataclass(frozen=True, kw_only=True)
class Losses(Parameters):
    """Losses and slopes at errors of 10 and 1; two classes by both cross-entropies; slopes of a wrong answer."""

    gives: ClassVar = (
        *("mse.cost_ratio", "mse.slope_ratio", "huber.cost_ratio", "huber.slope_ratio"),
        *("cross_entropies.difference", "wrong.cross_entropy_slope", "wrong.mse_slope"),
    )


@dataclass(frozen=True, kw_only=True)
class Committed(Parameters):
    """Accuracies of committed records, seed by seed."""

    draws: ClassVar = True
    rows: list[str]

    def numbers(self) -> list[str]:
        return [f"{row}.score_percent" for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Filters(Parameters):
    """How oriented the committed first-layer filters are, against the same weights in random order."""

    rows: list[str]
    num_shuffles: int

    def numbers(self) -> list[str]:
        return [f"{row}.{kind}" for row in self.rows for kind in ("coherence", "shuffled_coherence", "p_value")]


@dataclass(frozen=True, kw_only=True)
class _Arms(Parameters):
    """Settings to compare, by name."""

    draws: ClassVar = True
    measures: ClassVar[tuple[str, ...]] = ()
    arms: Mapping[str, object]

    def numbers(self) -> list[str]:
        return [f"{arm}.{measure}" for arm in self.arms for measure in self.measures]

    def _faults(self) -> Iterable[str]:
        if not self.arms:
            yield "arms: expected one or more"
        for arm in self.arms:
            if not _NAME.fullmatch(arm):
                yield f"arms.{arm}: expected a name of a-z, 0-9, '_' and single '-'"


@dataclass(frozen=True, kw_only=True)
class Trainings(_Arms):
    """`python src/train.py <common> <arm's overrides>` for each arm and seed.

    `choose`: overrides; each arm takes the one that is best on the validation split, with a tuning seed.
    """

    measures: ClassVar[tuple[str, ...]] = (
        *("score_percent", "train_percent", "gap_pp", "dead_share", "diverged", "num_params", "chosen"),
    )
    common: list[str]
    arms: dict[str, list[str]]
    choose: list[str]


@dataclass(frozen=True, kw_only=True)
class ScratchArm(Strict):
    """How the network from scratch is trained: dense layers of `hidden_sizes`, SGD at `lr` without momentum.

    `std_factor`: multiplies He's standard deviation. `clip_norm`: null for none. `clears_gradients`: false adds each
    step's gradients to those of all earlier steps, as without optimizer.zero_grad().
    """

    hidden_sizes: list[int]
    activation: Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu"]
    std_factor: float
    loss: Literal["cross_entropy", "mse"]
    lr: float
    clip_norm: float | None
    clears_gradients: bool


@dataclass(frozen=True, kw_only=True)
class ScratchTrainings(_Arms):
    """Trainings of the network from scratch, on the first `num_images` training images.

    `choose_lr`: rates; each arm takes the one that is best on the last `num_validation` training images.
    """

    measures: ClassVar[tuple[str, ...]] = ("score_percent", "diverged", "first_norm_decades", "lr")
    data: str
    num_images: int
    num_validation: int
    batch_size: int
    epochs_total: int
    choose_lr: list[float]
    arms: dict[str, ScratchArm]


PARAMETERS: dict[str, type[Parameters]] = {
    "activations": Activations,
    "linear_map": LinearMap,
    "depth_variance": DepthVariance,
    "initialisation_name": InitialisationName,
    "dropout_expectation": DropoutExpectation,
    "losses": Losses,
    "committed": Committed,
    "filters": Filters,
    "trainings": Trainings,
    "scratch_trainings": ScratchTrainings,
}


# ---------------------------------------------------------------- the claims


@dataclass(frozen=True, kw_only=True)
class Check(Strict):
    """The mean over seeds of `number` minus that of `minus` is in [at_least, at_most]; null: no bound."""

    number: str
    minus: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def _faults(self) -> Iterable[str]:
        if self.at_least is None and self.at_most is None:
            yield "at_least and at_most: expected at least one of them"
        elif self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            yield f"at_least: {self.at_least} lies above at_most, {self.at_most}"


@dataclass(frozen=True, kw_only=True)
class Claim(Strict):
    """One entry. The claim holds if every check does, with `confidence`, over `num_seeds` seeds."""

    name: str
    claim: str
    where: str
    experiment: str
    parameters: dict[str, Any]
    num_seeds: int
    confidence: float
    checks: tuple[Check, ...]
    notes: str

    def _faults(self) -> Iterable[str]:
        for key in ("claim", "where", "notes"):
            if not getattr(self, key).strip():
                yield f"{key}: must not be empty"
        if not 0.5 < self.confidence < 1:
            yield f"confidence: expected a fraction in (0.5, 1), got {self.confidence}"
        if not self.checks:
            yield "checks: a claim without a rule is refused; expected one or more"
        if self.experiment not in PARAMETERS:
            near = did_you_mean(self.experiment, PARAMETERS)
            yield f"experiment: no such experiment {self.experiment!r}{near}; valid: {', '.join(PARAMETERS)}"
        elif PARAMETERS[self.experiment].draws and self.num_seeds < 2:
            yield f"num_seeds: {self.experiment} needs 2 or more, as it draws, got {self.num_seeds}"
        elif not PARAMETERS[self.experiment].draws and self.num_seeds != 1:
            yield f"num_seeds: {self.experiment} needs 1, as it draws nothing, got {self.num_seeds}"

    def typed(self) -> Parameters:
        """The parameters as the experiment's dataclass. Raises InputError."""
        return convert(PARAMETERS[self.experiment], self.parameters, where=f"claims.{self.name}.parameters")

    @property
    def measured_with(self) -> str:
        """SHA-256 over what affects the numbers: not the rule, wording and notes."""
        identity = [self.experiment, self.parameters, self.num_seeds, MEASURES_VERSION]
        return canonical_sha256(identity)


def read(path: Path) -> dict[str, Claim]:
    """The claims of the ledger at `path`, in file order. Raises InputError with one line for each fault."""
    document, faults = ledger.plain_document(path, top="claims")
    claims: dict[str, Claim] = {}
    for name, entry in document["claims"].items():
        if not _NAME.fullmatch(name):
            faults.append(f"claims.{name}: expected a name of a-z, 0-9 and '_', parted by single '-'")
        with gathered(faults):
            claims[name] = claim = convert(Claim, ledger.with_name(entry, name), where=f"claims.{name}")
            faults += _unknown_numbers(claim)
    refuse(f"{path}: {fault}" for fault in faults)
    return claims


def _unknown_numbers(claim: Claim) -> Iterable[str]:
    """Faults of the rule's numbers that the experiment does not give. Raises InputError for wrong parameters."""
    valid = claim.typed().numbers()
    for index, check in enumerate(claim.checks):
        for key in ("number", "minus"):
            name = getattr(check, key)
            if name is not None and name not in valid:
                near = did_you_mean(name, valid)
                yield f"claims.{claim.name}.checks.{index}.{key}: {claim.experiment} gives no {name!r}{near}"


def select(claims: Mapping[str, Claim], names: Sequence[str]) -> dict[str, Claim]:
    """The claims with these names; all if `names` is empty. InputError for an unknown name."""
    return ledger.select(claims, names, kind="claim")
