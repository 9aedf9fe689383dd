"""A trained network is kept as it was scored, and comes back as a module from pixels to logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.support import trained
from torch import Tensor

from remeasure.data import catalog
from remeasure.models import saved
from remeasure.runs.folder import Outcome
from remeasure.spec.base import InputError
from remeasure.spec.run import RunSpec

SMALL = "model.options.hidden_sizes=[16]"
ACTS = "model.options.dropout=[0.2]"
TRAININGS = {
    "batch normalisation and dropout": (SMALL, ACTS, "model.options.batch_norm=true"),
    "averaged weights": (SMALL, "+recipe.averaging={from_epoch: 1, decay: 0.9}"),
    "bfloat16": (SMALL, "precision=bfloat16"),
    "numpy": (SMALL, "engine=numpy"),
    "another normalisation than in training": (SMALL, "control=other_normalisation"),
    "convolutions, channels last": (
        *(
            "model=resnet18",
            "precision=float32",
            "recipe=article",
            "recipe.batch_size=43",
            "control=tenth_of_data",
            "channels_last=true",
        ),
    ),
    "batched": (SMALL, "engine=batched", "engine_width=2"),
}


def test_split(spec: RunSpec) -> tuple[Tensor, Tensor]:
    split = catalog.load_split(spec.data, "test", root=Path("nowhere"))
    return torch.from_numpy(split.images), torch.from_numpy(split.labels)


test_split.__test__ = False


def kept(folder: Path, *overrides: str, seed: int = 0) -> tuple[RunSpec, Outcome]:
    spec = trained.spec("recipe.epochs_total=1", *overrides)
    return spec, trained.run(spec, folder, seed=seed, keeps=[seed])


@pytest.mark.parametrize("overrides", TRAININGS.values(), ids=TRAININGS)
def test_a_kept_network_predicts_as_it_was_scored(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Image by image; in numpy and in batches, the logits of the record's own forward pass differ by rounding."""
    spec, outcome = kept(tmp_path, *overrides, seed=1)
    images, labels = test_split(spec)
    classifier = saved.load(outcome.directory)
    with torch.inference_mode():
        logits = classifier(images)
    with np.load(outcome.directory / "predictions.npz") as arrays:
        assert logits.argmax(dim=1).tolist() == arrays["predicted"].tolist()
    assert int((logits.argmax(dim=1) == labels).sum()) == outcome.record.num_correct
    assert logits.dtype == torch.float32
    assert {value.dtype for value in classifier.network.parameters()} == {torch.float32}
    assert classifier.classes == tuple("0123456789")
    assert not any(module.training for module in classifier.modules())


def test_of_seeds_that_train_together_only_the_asked_one_is_kept(tmp_path: Path) -> None:
    spec = trained.spec("recipe.epochs_total=1", *TRAININGS["batched"])
    first, second = trained.run_together(spec, tmp_path, keeps=[1])
    assert not (first.directory / "model.json").exists()
    assert (second.directory / "model.safetensors").exists()
    with pytest.raises(InputError, match="kept no model; train it again with keep=all fresh=true"):
        saved.load(first.directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(tmp_path_factory.mktemp("plain"), SMALL)[1].directory


def test_weights_have_the_names_of_the_plain_module(plain: Path) -> None:
    weights = safetensors.torch.load_file(plain / "model.safetensors")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes == {"1.weight": (16, 64), "1.bias": (16,), "3.weight": (10, 16), "3.bias": (10,)}


def test_images_of_another_type_or_shape_are_refused(plain: Path) -> None:
    classifier = saved.load(plain)
    for images in (torch.zeros(2, 1, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, 1).byte()):
        with pytest.raises(ValueError, match=r"expected images \(N, 1, 8, 8\) uint8, got \("):
            classifier(images)
    assert classifier(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 10)


def test_pixels_are_normalised_by_hand_arithmetic(plain: Path) -> None:
    classifier, pixels = saved.load(plain), torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)
    (mean,), (std,) = classifier.saved.normalisation.mean, classifier.saved.normalisation.std
    by_hand = torch.full((1, 1, 8, 8), (0.2 - mean) / std)
    torch.testing.assert_close(classifier(pixels), classifier.network(by_hand))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seed": "zero"}, "seed: expected a valid integer"),
        ({"classes": ["a", "b"]}, "not weights of this net"),
        ({"builder": "gone"}, "model.builder: there is no 'gone'"),
        ({"weights_sha256": "0" * 64}, r"model\.safetensors: damaged"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: dict[str, object], fault: str, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(json.loads((plain / "model.json").read_text()) | change))
    with pytest.raises(InputError, match=fault):
        saved.load(tmp_path)


def test_an_exported_program_takes_any_number_of_images_and_gives_the_same_bits(plain: Path, tmp_path: Path) -> None:
    classifier = saved.load(plain)
    torch.export.save(saved.export(classifier), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for num in (1, 3, 100):
        images = torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8)
        assert torch.equal(program(images), classifier(images))
