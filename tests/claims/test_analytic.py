"""Computed experiments give the answers that are known from elsewhere, and find what is planted."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.measured import ROW, group

from remeasure.claims import analytic, filters
from remeasure.claims.context import Lab
from remeasure.claims.ledger import (
    SIX,
    Activations,
    Committed,
    DepthVariance,
    DropoutExpectation,
    Filters,
    InitialisationName,
    LinearMap,
    Losses,
)
from remeasure.models.scratch.activations import ACTIVATIONS
from remeasure.models.scratch.layers import Dense
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec
from remeasure.system.formats import encode_npz

VERTICAL = np.tile([-1.0, 0.0, 0.0, 1.0, 1.0], (1, 1, 5, 1))  # (1, 1, 5, 5), an edge
SPOT = np.exp(-(np.arange(-2.0, 3.0) ** 2)[:, None] - np.arange(-2.0, 3.0) ** 2)[None, None]


def no_training(wanted: list[tuple[RunSpec, int]]) -> list[Outcome]:
    raise AssertionError(wanted)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    place = Place(runs=tmp_path / "runs", project=tmp_path, data_root=tmp_path, device_kind="cpu")
    return Lab(place=place, results=tmp_path, train=no_training)


def test_the_minima_of_gelu_and_silu_are_those_of_the_literature(lab: Lab) -> None:
    """GELU's is -0.16997 at -0.7518, SiLU's -0.27846 at -1.2785: Φ(z) + z·φ(z) = 0 and 1 + z·(1 - σ(z)) = 0."""
    numbers = analytic.activations(Activations(), seed=0, lab=lab)
    assert list(numbers) == Activations().numbers()
    lowest = {name: numbers[f"{name}.lowest"] for name in SIX}
    expected = {"sigmoid": 0, "tanh": -1, "relu": 0, "leaky_relu": -0.4, "gelu": -0.16997, "silu": -0.27846}
    assert lowest == pytest.approx(expected, abs=1e-5)  # leaky ReLU's at -40, the end of the range
    assert all(numbers[f"{name}.formula_error"] < 1e-12 for name in SIX)
    assert [name for name in SIX if numbers[f"{name}.can_die"]] == ["relu"]


def test_a_wrong_formula_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    approximate = dataclasses.replace(  # GELU's tanh form, which torch has as another option
        ACTIVATIONS["gelu"],
        function=lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        derivative=lambda z: np.maximum(z, 0),
    )
    monkeypatch.setitem(ACTIVATIONS, "gelu", approximate)
    numbers = analytic.activations(Activations(), seed=0, lab=lab)
    assert numbers["gelu.formula_error"] > 1e-4
    assert numbers["gelu.can_die"] == 1


def test_linear_layers_are_one_map_and_relus_are_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = LinearMap(sizes=[6, 5, 4, 3])
    numbers = analytic.linear_map(parameters, seed=0, lab=lab)
    assert list(numbers) == parameters.numbers()
    assert numbers["linear.relative_error"] < 1e-12
    assert numbers["relu.relative_error"] > 0.01
    bent = Dense.forward
    monkeypatch.setattr(Dense, "forward", lambda layer, inputs: np.abs(bent(layer, inputs)))
    assert analytic.linear_map(parameters, seed=0, lab=lab)["linear.relative_error"] > 0.01


def test_scales_over_depth_are_what_arithmetic_says(lab: Lab) -> None:
    """A ReLU layer multiplies the mean square by width·std²/2: He's 1, Xavier's ½, 0.1 a tenth of 5, 1 by 50."""
    parameters = DepthVariance(num_layers=6, width=100, num_inputs=100, small_std=0.1 / math.sqrt(5), large_std=1.0)
    each = [analytic.depth_variance(parameters, seed=seed, lab=lab) for seed in range(8)]
    assert list(each[0]) == parameters.numbers()
    mean = {
        name: np.mean([numbers[f"{name}.decades"] for numbers in each]) for name in ("he", "xavier", "small", "large")
    }
    expected = {
        name: 5 * math.log10(factor) for name, factor in (("he", 1), ("xavier", 0.5), ("small", 0.1), ("large", 50))
    }
    assert mean == pytest.approx(expected, abs=0.4)


def test_the_articles_scale_is_hes_and_for_unequal_fans_not_xaviers(lab: Lab) -> None:
    """√(2/400) over √(2/(400 + 100)) is √1.25 = 1.118."""
    parameters = InitialisationName(fan_in=400, fan_out=100)
    numbers = analytic.initialisation_name(parameters, seed=0, lab=lab)
    assert list(numbers) == parameters.numbers()
    assert numbers["article_over_he"] == pytest.approx(1, abs=0.02)
    assert numbers["article_over_xavier"] == pytest.approx(math.sqrt(1.25), abs=0.02)


def test_both_forms_of_dropout_agree_in_expectation_and_none_does_not(lab: Lab) -> None:
    parameters = DropoutExpectation(num_units=5, keep=0.4)
    numbers = analytic.dropout_expectation(parameters, seed=0, lab=lab)
    assert list(numbers) == parameters.numbers()
    errors = (numbers["scaled_error"], numbers["inverted_error"], numbers["torch_factor_error"])
    assert max(errors) < 1e-12
    assert numbers["unscaled_error"] > 0.1


def test_losses_are_what_hand_arithmetic_says(lab: Lab) -> None:
    """Huber's with δ = 1: (10 - ½) / ½ = 19. At logit -10 for label 1: 1 - σ(-10), and 2·(1 - σ)·σ·(1 - σ)."""
    numbers = analytic.loss_values(Losses(), seed=0, lab=lab)
    assert list(numbers) == Losses().numbers()
    assert [numbers[f"mse.{kind}_ratio"] for kind in ("cost", "slope")] == pytest.approx([100, 10])
    assert [numbers[f"huber.{kind}_ratio"] for kind in ("cost", "slope")] == pytest.approx([19, 1])
    low = 1 / (1 + math.exp(10))
    assert numbers["wrong.cross_entropy_slope"] == pytest.approx(1 - low)
    assert numbers["wrong.mse_slope"] == pytest.approx(2 * low * (1 - low) ** 2)
    assert numbers["cross_entropies.difference"] < 1e-12


def test_committed_records_are_read_seed_by_seed(lab: Lab) -> None:
    """Of 40 test items 2, 3 and 2 were wrong."""
    for name, content in group().to_files().items():
        (lab.results / name).parent.mkdir(exist_ok=True)
        (lab.results / name).write_bytes(content)
    found = [analytic.committed(Committed(rows=[ROW]), seed=seed, lab=lab) for seed in range(3)]
    assert found == [{f"{ROW}.score_percent": value} for value in (95.0, 92.5, 95.0)]
    with pytest.raises(InputError, match="no committed record of seed 5"):
        analytic.committed(Committed(rows=[ROW]), seed=5, lab=lab)


# ---------------------------------------------------------------- filters


def test_an_edge_is_coherent_and_a_round_spot_is_not() -> None:
    both = np.concatenate([VERTICAL, VERTICAL.swapaxes(2, 3), 7 * VERTICAL, SPOT, np.ones((1, 1, 5, 5))])
    assert filters.coherence(both) == pytest.approx([1, 1, 1, 0, 0], abs=1e-9)


def test_shuffling_keeps_each_channels_weights() -> None:
    kernels = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
    mixed = filters.shuffled(kernels, rng=np.random.default_rng(1))
    assert not np.array_equal(mixed, kernels)
    assert np.array_equal(np.sort(mixed.reshape(3, 2, 16)), np.sort(kernels.reshape(3, 2, 16)))


def test_edges_are_told_from_noise_and_drawn(lab: Lab) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((8, 1, 5, 5))
    edges = np.repeat(VERTICAL, 8, axis=0) + 0.3 * rng.standard_normal((8, 1, 5, 5))
    (lab.results / "filters").mkdir()
    for row, kernels in (("edges-x", edges), ("noise-x", noise)):
        content = encode_npz({"weights": kernels.astype(np.float16)})
        (lab.results / f"filters/{row}.npz").write_bytes(content)
    parameters = Filters(rows=["edges-x", "noise-x"], num_shuffles=199)
    numbers = filters.filters(parameters, seed=0, lab=lab)
    assert list(numbers) == parameters.numbers()
    assert numbers["edges-x.p_value"] == 1 / 200  # no shuffled one was as coherent
    assert numbers["noise-x.p_value"] > 0.05
    assert lab.pictures == ["edges-x-filters.png", "noise-x-filters.png"]
    size = 5 * filters.SCALE + 2
    with Image.open(lab.results / "claims/edges-x-filters.png") as picture:
        assert picture.size == (3 * size, 3 * size)  # 8 filters in 3 rows of 3
        left, right = (picture.getpixel((x, 5)) for x in (3, size - 4))
    assert left < right  # the edge is dark on its left
