"""Evaluation on photographs: to the float what timm makes of them, resumable, strict about files that are broken."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image
from tests.support.photographed import SYNSETS, imagenet, killed_loader, make_archive, make_folder, photographs
from torch import Tensor, nn

import remeasure.runs.splits
import remeasure.training.inference
import remeasure.training.photographs.evaluate
from remeasure.cli.models import open_run, score
from remeasure.config.compose import compose
from remeasure.data import catalog, fingerprint
from remeasure.data.listing import Listing
from remeasure.runs.execute import execute
from remeasure.runs.folder import Outcome, Place, read_record
from remeasure.runs.journal import read
from remeasure.spec.base import InputError
from remeasure.spec.photographs import Transform
from remeasure.spec.recipe import Evaluation, Normalisation
from remeasure.spec.record import Event
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.training.augment import normalise
from remeasure.training.inference import Forward
from remeasure.training.photographs import decode, evaluate
from remeasure.training.photographs.decode import Photographs
from remeasure.training.photographs.evaluate import Tally, paced, stream

CPU = torch.device("cpu")
RECIPES = ("deit_b_eval", "deit_b_timm_eval", "vit_in21k_eval")
TINY = ("model.options.architecture=test_vit", "recipe.transform.crop_pixels=160", "recipe.batch_size=3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _recipe(name: str) -> Evaluation:
    recipe = compose(["model=vit_b16", f"recipe={name}"]).recipe
    assert isinstance(recipe, Evaluation)
    return recipe


def _listing(folder: Path, files: dict[str, bytes]) -> Listing:
    """A listing of these files, all of class 0."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    labels = np.zeros(len(files), np.int64)
    return Listing(names=tuple(files), labels=labels, place=folder, spans=None, md5=None)


def _timms_transform(transform: Transform, *, normalisation: Normalisation) -> Callable[[Image.Image], Tensor]:
    """timm's own evaluation transform, which normalises."""
    composed: Callable[[Image.Image], Tensor] = timm.data.create_transform(
        input_size=(3, transform.crop_pixels, transform.crop_pixels),
        is_training=False,
        interpolation=transform.interpolation,
        crop_pct=transform.crop_pct,
        mean=normalisation.mean,
        std=normalisation.std,
    )
    return composed


# ---------------------------------------------------------------- transforms


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(500, 375), (224, 331), (106, 500), (256, 256)])
def test_each_recipes_transform_is_timms_to_the_float(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer, recipe = io.BytesIO(), _recipe(name)
    Image.fromarray(pixels).save(buffer, "PNG")
    item = Photographs(_listing(tmp_path, {"a.png": buffer.getvalue()}), transform=recipe.transform)[0]
    assert isinstance(item, Tensor)
    assert item.dtype == torch.uint8
    ours = normalise(item[None], normalisation=recipe.normalisation)[0]
    theirs = _timms_transform(recipe.transform, normalisation=recipe.normalisation)(Image.fromarray(pixels))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_the_recipes_are_those_of_their_sources() -> None:
    deit, deit_timm, in21k = (_recipe(name) for name in RECIPES)
    assert deit.weights == deit_timm.weights == "deit_base_patch16_224.fb_in1k"
    assert in21k.weights == "vit_base_patch16_224.orig_in21k_ft_in1k"
    assert 224 / deit.transform.crop_pct == 256  # DeiT's datasets.py: int(256 / 224 * 224)
    for recipe in (deit_timm, in21k):
        theirs = timm.get_pretrained_cfg(recipe.weights)
        assert (3, *(recipe.transform.crop_pixels,) * 2) == theirs.input_size
        assert recipe.transform.crop_pct == theirs.crop_pct
        assert recipe.transform.interpolation == theirs.interpolation
        assert (recipe.normalisation.mean, recipe.normalisation.std) == (theirs.mean, theirs.std)
    assert replace(deit, name="", transform=deit_timm.transform) == replace(deit_timm, name="")


def test_every_key_of_a_transform_changes_what_the_net_sees(tmp_path: Path) -> None:
    listing = _listing(tmp_path, {"a.JPEG": next(iter(photographs().values()))})
    transform = Transform(crop_pixels=32, crop_pct=0.875, interpolation="bicubic")
    seen = Photographs(listing, transform=transform)[0]
    for change in ({"crop_pct": 0.9}, {"interpolation": "bilinear"}, {"crop_pixels": 40}):
        other = Photographs(listing, transform=replace(transform, **change))[0]
        assert isinstance(seen, Tensor)
        assert isinstance(other, Tensor)
        assert seen.shape != other.shape or not torch.equal(seen, other), change


# ---------------------------------------------------------------- the whole path against timm's own


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's own data set leaves them to Python
@pytest.mark.parametrize(("architecture", "num_images"), [("vit_tiny_patch16_224", 50), ("vit_base_patch16_224", 4)])
def test_logits_and_predictions_are_timms_image_by_image(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, num_images: int
) -> None:
    """timm's own model, data set, loader and config beside ours, with the same random weights."""
    torch.manual_seed(0)
    theirs = timm.create_model(architecture).eval()
    for parameter in theirs.parameters():  # as drawn, all logits are nearly equal, and any answer would do
        parameter.data.mul_(1.5)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "random.safetensors")
    spec = _sample_spec(sample, "recipe=deit_b_timm_eval", f"model.options.architecture={architecture}")
    expected = _timms_logits(theirs, root=sample / "imagenet-sample/val", num_images=num_images)
    listing = _first(catalog.load_listing(spec.data, "test", root=sample), num=num_images)
    assert isinstance(spec.recipe, Evaluation)
    network = _loaded(spec, path=tmp_path / "random.safetensors")
    kept, add = list[Tensor](), Tally.add
    monkeypatch.setattr(
        Tally, "add", lambda self, logits, labels: (kept.append(logits), add(self, logits, labels=labels))
    )
    predictions = _evaluate(spec, network=network, listing=listing, folder=tmp_path)
    torch.testing.assert_close(torch.cat(kept), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(predictions.predicted, expected.argmax(dim=1))
    assert len(set(predictions.predicted.tolist())) > num_images // 10  # not one answer for all
    torch.testing.assert_close(predictions.confidence, expected.softmax(dim=1).amax(dim=1), rtol=1e-3, atol=1e-5)
    loss = nn.functional.cross_entropy(expected, torch.tensor(listing.labels)).item()
    assert predictions.loss == pytest.approx(loss, rel=1e-4)


def _timms_logits(network: nn.Module, *, root: Path, num_images: int) -> Tensor:
    """What timm's validation script does, with the classes of ImageNet's config of these weights."""
    config = timm.data.resolve_data_config({}, model=network)
    assert config["crop_pct"] == 0.9
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(root)),
        batch_size=4,
        use_prefetcher=False,
        num_workers=0,
        device=CPU,
        **{key: config[key] for key in keys},
    )
    with torch.inference_mode():
        logits = [network(images) for images, _ in islice(loader, -(-num_images // 4))]
        return torch.cat(logits)[:num_images]


def _sample_spec(root: Path, *overrides: str) -> RunSpec:
    """A spec on the sample in float32; recipes of 224 pixels that timm's config of these nets agrees with."""
    means = "[0.5,0.5,0.5]"
    config = compose(
        [
            *("model=vit_b16", "data=imagenet_sample", "precision=float32", *overrides),
            *(f"recipe.normalisation.mean={means}", f"recipe.normalisation.std={means}"),
        ]
    )
    return config.spec(data_sha256=fingerprint.fingerprint(config.data, root=root).data_sha256)


def _loaded(spec: RunSpec, *, path: Path) -> nn.Module:
    from remeasure.models import pretrained, registry

    network = registry.build(spec.model, image_shape=spec.input_shape, num_classes=1000, generator_seed=9)
    pretrained.load(network, path)
    return network


def _first(listing: Listing, *, num: int) -> Listing:
    return replace(listing, names=listing.names[:num], labels=listing.labels[:num])


def _evaluate(spec: RunSpec, *, network: nn.Module, listing: Listing, folder: Path, **more: Any) -> Any:
    assert isinstance(spec.recipe, Evaluation)
    options: dict[str, Any] = {"checkpoint": folder / "checkpoint.ckpt", "report": lambda _: None, **more}
    return evaluate.evaluate(Forward(network, spec=spec, device=CPU), listing, **options)[1]


def _tiny_on_r(folder: Path) -> tuple[RunSpec, nn.Module, Listing]:
    """The spec of an evaluation on ImageNet-R, a small net with random weights, and seven photographs."""
    config = compose(["model=vit_b16", "data=imagenet_r", "precision=float32", *TINY])
    spec = config.spec(data_sha256="0" * 64)
    torch.manual_seed(0)
    network = timm.create_model("test_vit").eval()
    whole = _listing(folder, photographs())
    return spec, network, whole


def test_a_net_that_chooses_among_some_classes_gives_no_other_answer(tmp_path: Path) -> None:
    spec, network, whole = _tiny_on_r(tmp_path)
    among = (0, 3, 500, 7, 999, 20, 21)
    free, bound = (
        _evaluate(spec, network=network, listing=replace(whole, among=each), folder=tmp_path) for each in (None, among)
    )
    assert not set(free.predicted.tolist()) <= set(among)
    assert set(bound.predicted.tolist()) <= set(bound.top5.ravel().tolist()) <= set(among)
    images = torch.stack([Photographs(whole, transform=spec.transform)[index] for index in range(len(whole))])
    with torch.inference_mode():
        logits = network(normalise(images, normalisation=spec.recipe.normalisation))[:, list(among)]
    assert bound.predicted.tolist() == [among[index] for index in logits.argmax(1).tolist()]
    torch.testing.assert_close(bound.confidence, logits.softmax(1).amax(1))
    assert bound.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(whole), dtype=int)).item()
    )


def test_a_photograph_with_several_right_labels_is_right_where_the_net_names_one_of_them(tmp_path: Path) -> None:
    spec, network, whole = _tiny_on_r(tmp_path)
    num = len(whole)
    images = torch.stack([Photographs(whole, transform=spec.transform)[index] for index in range(num)])
    with torch.inference_mode():
        logits = network(normalise(images, normalisation=spec.recipe.normalisation))
    ranked = logits.argsort(1, descending=True)
    # Photograph by photograph, the ranks of its right labels: the best is first, fifth, sixth or last.
    ranks = torch.tensor([[(3, 0), (7, 4), (5, 900), (999, 999)][index % 4] for index in range(num)])
    right = ranked.gather(1, ranks)
    labels, also = right[:, 0].numpy(), right.numpy()
    found = _evaluate(spec, network=network, listing=replace(whole, labels=labels, also=also), folder=tmp_path)
    best = ranks.amin(1)
    assert ((found.predicted == right[:, 0]) == (best == 0)).all()
    assert ((found.top5 == right[:, :1]).any(1) == (best < 5)).all()
    assert (found.predicted == ranked[:, 0])[best > 0].all(), "a wrong answer is stored as it was"
    alone = _evaluate(spec, network=network, listing=replace(whole, labels=labels), folder=tmp_path)
    assert found.loss < alone.loss


# ---------------------------------------------------------------- odd and broken files


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _odd_files() -> dict[str, bytes]:
    rgb = Image.open(io.BytesIO(next(iter(photographs().values()))))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    palette = rgb.quantize(16)
    return {
        "grey.JPEG": _saved(rgb.convert("L"), "JPEG"),
        "cmyk.JPEG": _saved(rgb.convert("CMYK"), "JPEG"),
        "rotated.JPEG": _saved(rgb, "JPEG", exif=exif),
        "png_called.JPEG": _saved(rgb, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=bytes(range(16))),
        "alpha.png": _saved(rgb.convert("RGBA"), "PNG"),
        "sixteen_bits.png": _saved(Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20), "PNG"),
        "progressive.JPEG": _saved(rgb, "JPEG", progressive=True),
    }


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, in timm's own data set
@pytest.mark.parametrize("name", _odd_files())
def test_odd_files_are_decoded_exactly_as_timms_data_set_does(tmp_path: Path, name: str) -> None:
    (tmp_path / "class").mkdir()
    listing = _listing(tmp_path / "class", {name: _odd_files()[name]})
    transform = Transform(crop_pixels=32, crop_pct=0.875, interpolation="bicubic")
    theirs, _ = timm.data.create_dataset("", root=str(tmp_path))[0]
    (ours,) = stream(listing, transform=transform, indices=[0], batch_size=1, pinned=False)
    assert torch.equal(ours[0], decode.compose(transform)(theirs))
    decoded = np.asarray(decode.decode(listing.read(0)))
    assert np.array_equal(decoded, np.asarray(theirs))
    if name == "rotated.JPEG":
        assert decoded.shape == (50, 70, 3)  # as it lies in the file: nobody turns it


def _broken_files() -> dict[str, bytes]:
    whole = next(iter(photographs().values()))
    return {
        "truncated.JPEG": whole[: len(whole) // 2],
        "header_only.JPEG": whole[:20],
        "empty.JPEG": b"",
        "text.JPEG": b"<html>not found</html>",
    }


def test_broken_files_are_named_all_of_a_batch_and_never_skipped(tmp_path: Path) -> None:
    listing = _listing(tmp_path, {"good.JPEG": next(iter(photographs().values())), **_broken_files()})
    transform = Transform(crop_pixels=32, crop_pct=0.875, interpolation="bicubic")
    with pytest.raises(InputError) as error:
        list(stream(listing, transform=transform, indices=range(5), batch_size=5, pinned=False))
    assert [fault.partition(": ")[0] for fault in error.value.faults] == [
        str(tmp_path / name) for name in _broken_files()
    ]
    assert all("cannot be decoded (" in fault and "\n" not in fault for fault in error.value.faults)
    assert "truncated" in error.value.faults[0]


def test_a_photograph_that_vanished_is_named(tmp_path: Path) -> None:
    listing = _listing(tmp_path, {"a.JPEG": next(iter(photographs().values()))})
    (tmp_path / "a.JPEG").unlink()
    transform = Transform(crop_pixels=32, crop_pct=0.875, interpolation="bicubic")
    with pytest.raises(InputError, match=r"a.JPEG: cannot be read \(No such file or directory\)"):
        list(stream(listing, transform=transform, indices=[0], batch_size=1, pinned=False))


def test_a_broken_photograph_fails_the_run_by_name_and_leaves_no_record(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    path = root / "imagenet/val" / SYNSETS[1] / "ILSVRC2012_val_00000005.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"{path}: cannot be decoded"):
        _run(root, tmp_path)
    (directory,) = (tmp_path / "runs").iterdir()
    assert not (directory / "record.json").exists()
    assert read(directory)[-1]["event"] == "failed"


# ---------------------------------------------------------------- a run


def _run(root: Path, folder: Path, *overrides: str, fresh: bool = False, sink: Any = None) -> Outcome:
    """Evaluate a random net of timm's for tests on the seven photographs under `root`."""
    path = folder / "random.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
    config = compose(["model=vit_b16", *TINY, f"model.weights={path}", *overrides])
    config = replace(config, data=imagenet(root))
    from remeasure.models import pretrained

    spec = config.spec(
        data_sha256=fingerprint.fingerprint(config.data, root=root).data_sha256,
        weights_sha256=pretrained.fingerprint(config),
    )
    place = Place(runs=folder / "runs", project=folder, data_root=root, device_kind="cpu")
    return execute(spec, seed=0, row="", place=place, sink=sink or (lambda *_: None), fresh=fresh, keeps=[0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_published_weights_are_named_and_not_copied_and_score_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = _run(root, tmp_path)
    saved = json.loads((outcome.directory / "model.json").read_text())
    path = tmp_path / "random.safetensors"
    assert saved["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert saved["published"] == "deit_base_patch16_224.fb_in1k"
    assert not (outcome.directory / "model.safetensors").exists()
    monkeypatch.setenv("REMEASURE_DATA", str(root))
    again, _ = score(open_run(outcome.directory), device_kind="cpu")
    with np.load(outcome.directory / "predictions.npz") as kept:
        assert again.predicted.tolist() == kept["predicted"].tolist()
    path.unlink()
    with pytest.raises(InputError, match="there is no file"):
        open_run(outcome.directory)


def test_a_run_scores_each_photograph_by_the_label_of_its_synset(root: Path, tmp_path: Path) -> None:
    outcome = _run(root, tmp_path)
    record = outcome.record
    with np.load(outcome.directory / "predictions.npz") as kept:
        predicted, confidence = kept["predicted"], kept["confidence"]
    num_correct = sum(int(a == b) for a, b in zip(predicted, [0, 0, 1, 217, 217, 999, 999], strict=True))
    assert (record.num_correct, record.num_test) == (num_correct, 7)
    assert record.accuracy_percent == pytest.approx(100 * num_correct / 7)
    num_params = sum(parameter.numel() for parameter in timm.create_model("test_vit").parameters())
    assert (record.epochs, record.seed, record.num_params) == (0, 0, num_params)
    assert confidence.shape == (7,)
    assert np.load(outcome.directory / "filters.npz")["weights"].shape[1:] == (3, 16, 16)
    assert read(outcome.directory)[-1]["record"] == asdict(read_record(outcome.directory))


def test_the_loss_and_accuracy_of_right_answers_are_0_and_100_percent(root: Path, tmp_path: Path) -> None:
    """A net that answers with the class that a photograph's bytes stand for, whatever it sees."""
    listing = catalog.load_listing(imagenet(root), "test", root=root)
    answers = iter(listing.labels.tolist())

    class Oracle(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 100 * nn.functional.one_hot(torch.tensor([next(answers) for _ in images]), 1000).float()

    spec = replace(compose(["model=vit_b16", *TINY]), data=imagenet(root)).spec(data_sha256="")
    predictions = _evaluate(spec, network=Oracle(), listing=listing, folder=tmp_path)
    assert predictions.predicted.tolist() == listing.labels.tolist()
    assert predictions.loss == pytest.approx(0, abs=1e-9)


def test_archive_and_folder_give_the_same_run(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = _run(root, tmp_path), _run(make_archive(tmp_path / "packed"), tmp_path, fresh=True)
    assert first.record.spec_sha256 == second.record.spec_sha256
    assert first.record.predicted_sha256 == second.record.predicted_sha256
    assert first.record.loss == second.record.loss
    assert (first.record.data_official, second.record.data_official) == ("unknown", "yes")


def test_a_run_is_repeated_to_the_bit_and_a_finished_one_is_not_repeated(root: Path, tmp_path: Path) -> None:
    first = _run(root, tmp_path)
    assert _run(root, tmp_path).reused
    again = _run(root, tmp_path, fresh=True)
    assert not again.reused
    assert (first.record.loss, first.record.predicted_sha256) == (again.record.loss, again.record.predicted_sha256)


@pytest.mark.parametrize(
    "override",
    ["precision=bfloat16", "recipe.transform.crop_pct=0.5", "recipe.normalisation.mean=[0.1,0.1,0.1]"],
)
def test_whatever_can_move_an_answer_makes_another_run(root: Path, tmp_path: Path, override: str) -> None:
    first, other = _run(root, tmp_path, "precision=float32"), _run(root, tmp_path, "precision=float32", override)
    assert first.record.spec_sha256 != other.record.spec_sha256
    assert first.record.loss != other.record.loss


def test_other_weights_make_another_run_and_their_path_does_not(root: Path, tmp_path: Path) -> None:
    first = _run(root, tmp_path)
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "random.safetensors").rename(moved)
    assert _run(root, tmp_path, f"model.weights={moved}").reused
    torch.manual_seed(5)
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), tmp_path / "random.safetensors")
    assert _run(root, tmp_path).record.spec_sha256 != first.record.spec_sha256


@pytest.mark.parametrize("cut_after", [1, 2])
def test_an_evaluation_cut_short_goes_on_at_its_checkpoint_to_the_same_numbers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_after: int
) -> None:
    unbroken = _run(root, tmp_path)
    (tmp_path / "again").mkdir()
    monkeypatch.setenv("REMEASURE_CHECKPOINT_SECONDS", "0.0")
    original, batches = remeasure.training.inference.Forward.__call__, list[int]()

    def cut(self: Any, images: Tensor) -> Tensor:
        if len(batches) == cut_after:
            raise KeyboardInterrupt
        batches.append(len(images))
        return original(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(remeasure.training.inference.Forward, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            _run(root, tmp_path / "again")
    assert batches == [3] * cut_after
    cut_after += 99
    monkeypatch.setattr(remeasure.training.inference.Forward, "__call__", cut)
    resumed = _run(root, tmp_path / "again")
    assert batches == [3, 3, 1]  # none was computed twice
    assert resumed.record.predicted_sha256 == unbroken.record.predicted_sha256
    assert resumed.record.loss == pytest.approx(unbroken.record.loss, rel=1e-12)
    assert [event["event"] for event in read(resumed.directory)][-3:] == ["resumed", "epoch", "finished"]
    assert not list(resumed.directory.glob("checkpoint.*"))


def test_a_decoding_process_that_is_killed_ends_the_evaluation_and_the_journal_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Forward.__call__

    def slow(self: Forward, images: Tensor) -> Tensor:
        time.sleep(5.0)  # so long that the kill comes first on a loaded machine, too
        return original(self, images)

    monkeypatch.setattr(Forward, "__call__", slow)
    with killed_loader(), pytest.raises(ChildProcessError, match=r"SIGKILL \(out of memory\?\)"):
        _run(root, tmp_path, "recipe.batch_size=1")
    (journal,) = tmp_path.rglob("journal.jsonl")
    last = read(journal.parent)[-1]
    assert last["event"] == "failed"
    assert "SIGKILL" in last["reason"]


def test_progress_says_how_many_of_how_many_and_how_fast(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remeasure.training.photographs.evaluate, "REPORT_SECONDS", 0.0)
    seen: list[Event] = []
    outcome = _run(root, tmp_path, sink=lambda _, event: seen.append(event))
    images = [event for event in seen if event["event"] == "images"]
    assert [(event["done"], event["total"]) for event in images] == [(3, 7), (6, 7), (7, 7)]
    assert all(event["images_per_second"] > 0 for event in images)
    assert not any(event["event"] == "images" for event in read(outcome.directory))  # for who waits, not for later


def test_photographs_that_changed_since_the_plan_are_not_scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = fingerprint.fingerprint
    monkeypatch.setattr(fingerprint, "fingerprint", lambda *_, **named: replace(planned(*_, **named), data_sha256="0"))
    config = replace(compose(["model=vit_b16", *TINY]), data=imagenet(root))
    other = planned(config.data, root=root).data_sha256
    place = Place(runs=tmp_path / "runs", project=tmp_path, data_root=root, device_kind="cpu")
    with pytest.raises(InputError, match="its files have changed since the run was planned"):
        remeasure.runs.splits.Splits(config.spec(data_sha256=other), place=place).official()


def test_weights_that_blow_up_are_a_fault_and_no_result(root: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_vit")
    network.head.weight.data.fill_(3e38)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "random.safetensors")
    with pytest.raises(InputError, match="the net's answers are not finite in bfloat16"):
        _run(root, tmp_path)


# ---------------------------------------------------------------- the pieces


def test_results_stay_on_the_device_until_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, copies = Tally(), list[int]()
    original = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (copies.append(1), original(self))[1])
    for _ in range(3):
        tally.add(torch.eye(4), labels=torch.arange(4))
    assert not copies
    assert tally.arrays()["predicted"].tolist() == [0, 1, 2, 3] * 3
    assert len(copies) == 1


def test_a_slow_device_is_never_more_than_a_few_batches_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clockwork in place of CUDA's events: a batch counts as done once its event was waited for."""
    begun, finished = list[int](), list[int]()

    class Clockwork:
        def record(self) -> None:
            self.number = len(begun)

        def synchronize(self) -> None:
            finished.append(self.number)

    def steps() -> Any:
        for number in range(10):
            begun.append(number)
            yield number

    monkeypatch.setattr(torch.cuda, "Event", Clockwork)
    lead = [len(begun) - len(finished) for _ in paced(steps(), device=torch.device("cuda"))]
    assert max(lead) == evaluate.QUEUED
    assert finished == list(range(1, 11))


def test_another_net_with_other_weights_and_another_transform_is_only_a_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(paths.conf_dir(), tmp_path / "conf")
    (tmp_path / "conf/model/resnet_test.yaml").write_text(
        """# @package _global_
defaults: [override /data: imagenet, override /recipe: published_eval]
model:
  name: resnet_test
  builder: timm_net
  options: {architecture: test_resnet}
  published:
    weights: test_resnet.r160_in1k
    batch_size: 2
    transform: {crop_pixels: 160, crop_pct: 0.95, interpolation: bilinear}
    normalisation: {mean: [0.5], std: [0.25]}
"""
    )
    monkeypatch.setattr(paths, "conf_dirs", lambda: (tmp_path / "conf",))
    monkeypatch.setattr(paths, "conf_dir", lambda: tmp_path / "conf")
    config = compose(["model=resnet_test"])
    assert config.recipe == Evaluation(
        name="published_eval",
        mode="evaluate",
        weights="test_resnet.r160_in1k",
        batch_size=2,
        transform=Transform(crop_pixels=160, crop_pct=0.95, interpolation="bilinear"),
        normalisation=Normalisation(mean=(0.5,), std=(0.25,)),
    )
    assert config.input_shape == (3, 160, 160)
    assert compose(["model=resnet_test", "recipe=deit_b_eval"]).recipe == _recipe("deit_b_eval")
