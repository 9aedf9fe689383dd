"""A finished run's network, as a person uses it: remeasure.load, evaluate=, predict=; each wrong input is exit 2."""

import csv
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.project import Command, Ended, Project, copy_project
from tests.support.trained import spec

import remeasure
from remeasure.cli.models import open_run
from remeasure.data import catalog
from remeasure.runs.folder import read_record, write_record
from remeasure.spec.base import InputError
from remeasure.system import paths

SHORT = ("model=logreg", "data=digits", "recipe=article", "recipe.epochs_total=2", "observer=[]", "device=cpu")
DIGITS = catalog.load_split(spec().data, "test", root=Path("nowhere"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(tmp_path_factory.mktemp("models"))


@pytest.fixture
def command(here: Command, project: Project) -> Command:
    return partial(here, project, "train.py")


@pytest.fixture
def run(command: Command, project: Project) -> Path:
    """The folder of a run that is trained once."""
    assert command(*SHORT).status == 0
    (directory,) = project.runs.glob("logreg-digits-*-s0-a1")
    return directory


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the first three test digits: as a PNG, twice as wide, and as a JPEG in colours; and a text."""
    folder = tmp_path / "images, (mine)"
    folder.mkdir()
    first, second, third = (Image.fromarray(image[0]) for image in DIGITS.images[:3])
    first.save(folder / "0.png")
    second.resize((16, 8), Image.Resampling.NEAREST).save(folder / "1.gif")
    third.convert("RGB").save(folder / "2.JPG", quality=100, subsampling=0)
    (folder / "README.txt").write_text("no image")
    return folder


def refused(ended: Ended) -> str:
    """What is said on stderr: one or two lines, exit 2."""
    assert (ended.status, ended.stdout) == (2, "")
    assert 1 <= len(ended.stderr.splitlines()) <= 2, ended.stderr
    return ended.stderr


def test_a_loaded_network_scores_the_test_split_to_the_record_s_predictions(run: Path) -> None:
    network = remeasure.load(run)
    with torch.inference_mode():
        predicted = network(torch.from_numpy(DIGITS.images)).argmax(dim=1)
    with np.load(run / "predictions.npz") as kept:
        assert predicted.tolist() == kept["predicted"].tolist()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, remeasure; assert callable(remeasure.load); sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(remeasure.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_run_is_named_by_its_folder_its_record_or_its_mlflow_id(run: Path, command: Command) -> None:
    tracked = command(*SHORT, "seed=1", "observer=[mlflow]")
    mlflow_run_id = dict(part.split("=", 1) for part in tracked.stdout.splitlines()[-1].split())["mlflow_run_id"]
    assert open_run(run).directory == open_run(run / "record.json").directory == run
    assert open_run(mlflow_run_id).record.seed == 1


def test_evaluate_scores_it_again_and_compares_each_prediction(run: Path, command: Command) -> None:
    record = json.loads((run / "record.json").read_text())
    ended = command(f"evaluate={run}")
    assert ended.status == 0, ended.stderr
    score, same, last = ended.stdout.splitlines()
    accuracy = f"{record['accuracy_percent']:.3f}"
    right = record["num_correct"]
    assert score == f"test accuracy {accuracy} % ({right} of 500); the record has {accuracy} %"
    assert same == "all 500 predictions equal the record's"
    assert last.startswith(f"test_accuracy_percent={accuracy} num_correct={right} num_differing=0 record=")


@pytest.mark.parametrize("edited", [False, True])
def test_where_predictions_differ_the_changed_code_is_named(
    run: Path, command: Command, tmp_path: Path, *, edited: bool
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / run.name))
    with np.load(run / "predictions.npz") as kept:
        arrays = {**kept}
    arrays["predicted"][:3] = (arrays["predicted"][:3] + 1) % 10
    np.savez(copy / "predictions.npz", **arrays)
    if edited:
        files = json.loads((run / "code.json").read_text())["files"] | {"models/mlp.py": "2" * 64}
        (copy / "code.json").write_text(json.dumps({"code_sha256": "2" * 64, "files": files}))
    write_record(copy, read_record(run))
    told = command(f"evaluate={copy}").stdout.splitlines()[1]
    assert told.startswith("3 of 500 predictions differ from the record's, which was made on ")
    assert told.endswith(f"(cpu){' by other code (models/mlp.py differs)' * edited}; here it is cpu")


def test_predict_prints_five_classes_an_image_and_writes_them_as_csv(
    run: Path, command: Command, images: Path, project: Project
) -> None:
    ended = command(f"evaluate={run}", f'predict="{images}"')
    assert ended.status == 0, ended.stderr
    first, second, third, last = ended.stdout.splitlines()
    assert second.endswith("(resized from 16x8 to 8x8)")
    assert "resized" not in first + third
    path = dict(part.split("=", 1) for part in last.split())["csv"]
    lines = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert len(lines) == 3 * 5
    with np.load(run / "predictions.npz") as kept:
        best = [int(line["class_index"]) for line in lines if line["rank"] == "1"]
        assert best[:2] == kept["predicted"][:2].tolist()  # a JPEG is not the same image
    assert {line["image"] for line in lines} == {str(images / name) for name in ("0.png", "1.gif", "2.JPG")}
    for name in ("0.png", "2.JPG"):
        shares = [float(line["probability"]) for line in lines if line["image"].endswith(name)]
        assert shares == sorted(shares, reverse=True)
    assert Path(path).resolve().parent == project.runs / "predictions"


def test_a_16_bit_image_is_what_it_is_with_8_bits(run: Path, command: Command, tmp_path: Path) -> None:
    Image.fromarray(DIGITS.images[0, 0]).save(tmp_path / "0.png")
    Image.fromarray(DIGITS.images[0, 0].astype(np.uint16) * 257).save(tmp_path / "1.png")
    ended = command(f"evaluate={run}", f"predict={tmp_path}")
    plain, deep, _ = ended.stdout.splitlines()
    assert deep.removeprefix(f"{tmp_path}/1.png") == plain.removeprefix(f"{tmp_path}/0.png")


def test_an_inverted_image_is_remarked_upon(run: Path, command: Command, tmp_path: Path) -> None:
    Image.fromarray(255 - DIGITS.images[0, 0] // 8).save(tmp_path / "0.png")
    ended = command(f"evaluate={run}", f"predict={tmp_path}/0.png")
    assert "far brighter than the training images" in ended.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{images}/README.txt", "README.txt: cannot be read as an image (not an image)"),
        ("{images}/cut.png", "cut.png: cannot be read as an image"),
        ("{images}/deep.tif", "deep.tif: cannot be read as an image (its pixels are 32-bit floats, mode F"),
        ("{images}/empty", "empty: there is no image in this folder"),
        ("{images}/nothing", "nothing: there is no such file or folder"),
    ],
)
def test_what_is_no_image_is_refused(run: Path, command: Command, images: Path, given: str, fault: str) -> None:
    (images / "empty").mkdir()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(images / "deep.tif")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:60])
    assert fault in refused(command(f"evaluate={run}", f'predict="{given.format(images=images)}"'))


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("model=mlp2",), "model=mlp2: {run} is a run of model=logreg"),
        (("seed=3",), "seed=3: the run is scored as it was trained"),
    ],
)
def test_what_the_run_is_not_is_refused(run: Path, command: Command, overrides: tuple[str, ...], fault: str) -> None:
    assert fault.format(run=run) in refused(command(f"evaluate={run}", *overrides))


def test_predict_needs_a_run(command: Command) -> None:
    assert "predict: needs the run" in refused(command("predict=a.png"))


def test_a_run_that_cannot_be_used_is_refused_with_the_reason(
    run: Path, command: Command, project: Project, tmp_path: Path
) -> None:
    assert command(*SHORT, "seed=2", "keep=none").status == 0
    wild = ("recipe.optimizer={name: sgd, lr_peak: 1e30}", "recipe.clip_norm=null")
    assert command("model=mlp2", *SHORT[1:], "seed=3", *wild).status == 1
    (without,) = project.runs.glob("*-s2-a1")
    (diverged,) = project.runs.glob("*-s3-a1")
    unfinished, damaged = tmp_path / "unfinished", tmp_path / "damaged"
    shutil.copytree(run, unfinished)
    (unfinished / "record.json").unlink()
    (unfinished / "journal.jsonl").write_text((unfinished / "journal.jsonl").read_text().splitlines()[0] + "\n")
    shutil.copytree(run, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    for folder, fault in (
        (without, "kept no model; train it again with keep=all fresh=true"),
        (diverged, "this run diverged, so it has no network"),
        (unfinished, "this run is not finished"),
        (damaged, "model.safetensors: damaged"),
        (tmp_path / "none", "neither the folder of a run nor the MLflow run id"),
    ):
        assert fault in refused(command(f"evaluate={folder}"))
        with pytest.raises(InputError, match=fault.partition(";")[0]):
            remeasure.load(folder)


def test_on_mnist_a_run_is_scored_again_image_by_image(
    here: Command, project: Project, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEASURE_DATA", str(data_root))
    monkeypatch.setattr(paths, "_CHECKOUT", project.root)
    short = ("model=mlp2", "recipe.epochs_total=1", "recipe.batch_size=2000", "observer=[]", "device=cpu")
    assert here(project, "train.py", *short).status == 0
    (directory,) = project.runs.glob("mlp2-mnist-*-s0-a1")
    ended = here(project, "train.py", f"evaluate={directory}")
    assert ended.stdout.splitlines()[1] == "all 10000 predictions equal the record's"
