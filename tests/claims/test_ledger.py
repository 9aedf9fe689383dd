"""The ledger of claims: it says what issue and article name, it composes, and its faults are told together."""

from pathlib import Path

import pytest

from remeasure.claims import ledger
from remeasure.claims.ledger import Claim, Trainings
from remeasure.config import compose
from remeasure.models import registry
from remeasure.spec.base import InputError
from remeasure.system import paths

CLAIMS = ledger.read(paths.conf_dir() / "claims.yaml")
ENTRY = """\
claims:
  mse-outliers:
    claim: Large errors cost more.
    where: somewhere
    experiment: losses
    parameters: {}
    num_seeds: 1
    confidence: 0.95
    checks:
      - {number: mse.cost_ratio, at_least: 100}
    notes: made up
"""
# What the article is to be held to, and the claims that do.
ASKED = {
    "one linear map": ("linear-product", "linear-accuracy"),
    "six activations": ("activation-formulas", "activation-can-die", "dead-units"),
    "which trains best where": ("activations-shallow", "activations-deep"),
    "initialisation": ("initialisation-scale", "initialisation-name"),
    "regularisation": ("dropout-gap", "weight-decay-gap", "batch-norm-gap", "batch-norm-rates"),
    "dropout at inference": ("dropout-inference",),
    "losses": ("mse-outliers", "cross-entropies-agree", "mse-saturates", "cross-entropy-trains-better"),
    "gradients": ("exploding-gradients", "forgotten-zero-grad"),
    "the jump": ("depth-jump", "depth-earns-it"),
    "filters": ("first-layers-edges",),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "claims.yaml"
    path.write_text(text)
    return path


def faults(folder: Path, *changes: tuple[str, str]) -> str:
    """What is said of the entry above with these changes."""
    text = ENTRY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(InputError) as refusal:
        ledger.read(written(folder, text))
    return "\n".join(refusal.value.faults)


def test_the_committed_ledger_holds_every_claim_that_was_asked_for() -> None:
    assert set(CLAIMS) == {name for names in ASKED.values() for name in names}


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS.values() if claim.experiment == "trainings"], ids=lambda each: each.name
)
def test_every_arm_is_a_config_that_trains(claim: Claim) -> None:
    parameters = claim.typed()
    assert isinstance(parameters, Trainings)
    for overrides in parameters.arms.values():
        config = compose.compose([*parameters.common, *overrides, *parameters.choose[:1]])
        assert list(registry.faults(config.model)) == []
        assert config.data.split == "test"


def test_arms_of_depth_have_equally_many_parameters() -> None:
    """784·w + w + (w·w + w)·(layers - 1) + 10·w + 10 for widths of 842, 512 and 358."""
    arms = CLAIMS["depth-earns-it"].typed().arms
    assert arms == {
        "wide": ["model.options.hidden_sizes=[842]"],
        "deep": ["model.options.hidden_sizes=[512,512]"],
        "deeper": ["model.options.hidden_sizes=[358,358,358,358]"],
    }
    counts = [785 * w + (w * w + w) * (layers - 1) + 10 * w + 10 for w, layers in ((842, 1), (512, 2), (358, 4))]
    assert counts == [669_400, 669_706, 670_186]


def test_a_sound_entry_is_read(tmp_path: Path) -> None:
    (claim,) = ledger.read(written(tmp_path, ENTRY)).values()
    assert (claim.name, claim.checks[0].at_least, claim.checks[0].at_most) == ("mse-outliers", 100, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("losses", "looses"), "experiment: no such experiment 'looses' (did you mean 'losses'?)"),
        (
            ("mse.cost_ratio", "mse.cost"),
            "checks.0.number: losses gives no 'mse.cost' (did you mean 'mse.cost_ratio'?)",
        ),
        ((", at_least: 100", ""), "checks.0.at_least and at_most: expected at least one of them"),
        (("at_least: 100", "at_least: 100, at_most: 99"), "checks.0.at_least: 100.0 lies above at_most, 99.0"),
        (("num_seeds: 1", "num_seeds: 3"), "num_seeds: losses needs 1, as it draws nothing, got 3"),
        (("0.95", "1"), "confidence: expected a fraction in (0.5, 1), got 1.0"),
        (("{}", "{margin: 3}"), "parameters.margin: no such key"),
        (("notes: made up", "notes: ''"), "notes: must not be empty"),
        (("claim: Large", "claims: Large"), "claims: no such key"),
        (("  mse-outliers:", "  Mse outliers:"), "claims.Mse outliers: expected a name of a-z"),
        (("claims:\n", "rows:\n"), "rows: line 1: no such key; valid: claims"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    assert told in faults(tmp_path, change)


def test_faults_come_together(tmp_path: Path) -> None:
    told = faults(tmp_path, ("0.95", "2"), ("num_seeds: 1", "num_seeds: 0"), ("where: somewhere", "where: ' '"))
    for part in ("confidence: expected", "num_seeds: losses needs", "where: must not be empty"):
        assert part in told


def test_a_rule_can_be_mended_and_an_experiment_cannot_be_changed_unseen(tmp_path: Path) -> None:
    def measured_with(text: str) -> str:
        return ledger.read(written(tmp_path, text))["mse-outliers"].measured_with

    before = measured_with(ENTRY)
    assert measured_with(ENTRY.replace("at_least: 100", "at_least: 99")) == before
    drawn = ENTRY.replace("losses", "initialisation_name").replace("{}", "{fan_in: 5, fan_out: 6}")
    drawn = drawn.replace("mse.cost_ratio", "article_over_he").replace("num_seeds: 1", "num_seeds: 3")
    assert measured_with(drawn) != measured_with(drawn.replace("fan_in: 5", "fan_in: 7"))
    assert measured_with(drawn) != measured_with(drawn.replace("num_seeds: 3", "num_seeds: 4"))


def test_an_unknown_claim_is_named() -> None:
    with pytest.raises(InputError, match=r"no claim 'dropout' .did you mean 'dropout-gap'"):
        ledger.select(CLAIMS, ["dropout"])
    assert list(ledger.select(CLAIMS, ["dropout-gap", "linear-product"])) == ["linear-product", "dropout-gap"]
