"""An exported folder: loaded by the card's own lines in a process that has torch and not this package."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from tests.support import trained

from remeasure.campaign.collect import from_run
from remeasure.campaign.export import export
from remeasure.data import catalog
from remeasure.judging import ledger
from remeasure.judging.publish import publish, recover
from remeasure.judging.records import put_together
from remeasure.runs import code
from remeasure.runs.code import CODE_FILE
from remeasure.runs.folder import Outcome, write_record
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.system import paths

SPEC = ("model=mlp2", "model.options.hidden_sizes=[16]", "recipe.epochs_total=1")


@pytest.fixture(scope="module")
def row() -> Row:
    return next(iter(ledger.read(paths.conf_dir() / "demo.yaml").values()))


@pytest.fixture(scope="module")
def made(row: Row, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The exported folder, and the outcome of the row's seed 0; seed 1 keeps its network, too."""
    home = tmp_path_factory.mktemp("exported")
    trained.run(trained.spec(*SPEC), home, seed=1, row=row.name, keeps=[1])
    outcome = trained.run(trained.spec(*SPEC), home, row=row.name, keeps=[0])
    return export(row, runs=home / "runs", results=home / "results", into=home / "exports"), outcome


def front_matter(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_card_s_lines_load_it_where_this_package_cannot_be_imported(made: tuple[Path, Outcome]) -> None:
    folder, outcome = made
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(lines.splitlines()) == 5
    split = catalog.load_split(trained.spec().data, "test", root=Path("nowhere"))
    np.save(folder / "images.npy", split.images)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = (
        f"import sys; sys.path.append({site!r}); sys.modules['remeasure'] = None\n{lines}\n"
        "import numpy\nlogits = network(torch.from_numpy(numpy.load('images.npy')))\n"
        "print(*logits.argmax(dim=1).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(outcome.directory / "predictions.npz") as kept:
        assert done.stdout.splitlines()[-1].split() == list(map(str, kept["predicted"]))


def test_the_model_index_names_metric_data_set_and_verdict(made: tuple[Path, Outcome], row: Row) -> None:
    folder, outcome = made
    (entry,) = front_matter(folder)["model-index"]
    (result,) = entry["results"]
    (metric,) = result["metrics"]
    assert (entry["name"], result["task"]["type"]) == (f"remeasure-{row.name}", "image-classification")
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("digits", "test")
    assert metric["type"] == "accuracy"
    assert metric["value"] == pytest.approx(outcome.record.accuracy_percent / 100)
    assert metric["args"]["verdict"] == "not measured"
    text = (folder / "README.md").read_text()
    assert f"{outcome.record.num_correct} of 500 test images" in text
    for fact in (outcome.record.spec_sha256, outcome.record.data_sha256, outcome.record.commit):
        assert fact in text


def test_it_has_the_weights_and_what_rebuilds_the_network(made: tuple[Path, Outcome]) -> None:
    folder, outcome = made
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in weights.items()}["1.weight"] == (16, 64)
    config = json.loads((folder / "config.json").read_text())
    assert (config["builder"], config["options"]["hidden_sizes"], config["seed"]) == ("mlp", [16], 0)
    assert config["id2label"]["9"] == "9"
    assert config["record"]["predicted_sha256"] == outcome.record.predicted_sha256
    names = {path.name for path in folder.iterdir()} - {"images.npy"}
    assert names == {"README.md", "config.json", "model.pt2", "model.safetensors"}


def test_the_network_of_the_row_s_record_is_exported_and_no_file_of_another_stays(row: Row, tmp_path: Path) -> None:
    """Seed 1 is in the record; seed 0, trained later, is not."""
    done = trained.run(trained.spec(*SPEC), tmp_path, seed=1, row=row.name, keeps=[1])
    other = trained.run(trained.spec(*SPEC), tmp_path, row=row.name, keeps=[0])
    results, folder = tmp_path / "results", tmp_path / "exports" / row.name
    recover(results)
    publish(results, row=row.name, files=put_together(row.name, seeds=[from_run(done, row=row.name)]).to_files())
    (folder.parent / f".{row.name}-killed").mkdir(parents=True)
    folder.mkdir()
    (folder / "of-another").write_text("")
    exported = export(row, runs=tmp_path / "runs", results=results, into=tmp_path / "exports")
    assert exported == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["record"]["predicted_sha256"] == done.record.predicted_sha256 != other.record.predicted_sha256
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.pt2", "model.safetensors"}
    assert list(folder.parent.iterdir()) == [folder]


def test_the_mean_of_one_seed_is_over_one_seed(row: Row, tmp_path: Path) -> None:
    spec, results = trained.spec(*SPEC), tmp_path / "results"
    row = dataclasses.replace(row, model=spec.model.name, recipe=spec.recipe.name)
    done = trained.run(spec, tmp_path, row=row.name, keeps=[0])
    recover(results)
    publish(results, row=row.name, files=put_together(row.name, seeds=[from_run(done, row=row.name)]).to_files())
    folder = export(row, runs=tmp_path / "runs", results=results, into=tmp_path / "exports")
    assert "% over 1 seed |" in (folder / "README.md").read_text()


def test_a_row_without_a_network_is_refused(row: Row, tmp_path: Path) -> None:
    trained.run(trained.spec(*SPEC), tmp_path, row=row.name)
    with pytest.raises(InputError, match="no trained network is here; `make reproduce ROWS="):
        export(row, runs=tmp_path / "runs", results=tmp_path / "results", into=tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def exported_as_by(files: dict[str, str] | None, *, row: Row, outcome: Outcome, folder: Path) -> Path:
    """Export a copy of the run, with these files in its code.json."""
    copy = Path(shutil.copytree(outcome.directory, folder / "runs" / outcome.directory.name))
    (copy / CODE_FILE).write_text(json.dumps({"code_sha256": "2" * 64, "files": files}))
    write_record(copy, outcome.record)
    return export(row, runs=copy.parent, results=folder / "results", into=folder / "exports")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"models/mlp.py": "2" * 64, "training/losses.py": "2" * 64}, r"other code \(models/mlp\.py differs\)"),
        ({"my_net.py": "2" * 64}, r"other code \(my_net\.py differs\)"),
        (None, "an earlier version, which kept no hashes of it"),
    ],
)
def test_a_network_that_other_code_would_build_is_not_exported(
    changed: dict[str, str] | None,
    told: str,
    made: tuple[Path, Outcome],
    row: Row,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = {**code.files(trained.spec(*SPEC)), "my_net.py": "1" * 64}
    monkeypatch.setattr(code, "files", lambda _: now)
    with pytest.raises(InputError, match=told):
        exported_as_by(changed and now | changed, row=row, outcome=made[1], folder=tmp_path)
    assert not (tmp_path / "exports").exists()


def test_other_changes_since_the_training_do_not_matter(made: tuple[Path, Outcome], row: Row, tmp_path: Path) -> None:
    files = code.files(trained.spec(*SPEC)) | {"training/losses.py": "2" * 64}
    before = {name: sha256 for name, sha256 in files.items() if name != "models/vit.py"}  # which came later
    assert exported_as_by(before, row=row, outcome=made[1], folder=tmp_path).name == row.name


def test_published_weights_are_not_exported(tmp_path: Path) -> None:
    row = ledger.read(paths.conf_dir() / "benchmark.yaml")["vit_b16-imagenet"]
    with pytest.raises(InputError, match="evaluates published weights, which are not exported"):
        export(row, runs=tmp_path, results=tmp_path, into=tmp_path)


def test_a_damaged_network_is_refused(row: Row, tmp_path: Path) -> None:
    outcome = trained.run(trained.spec(*SPEC), tmp_path, row=row.name, keeps=[0])
    (outcome.directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        export(row, runs=tmp_path / "runs", results=tmp_path / "results", into=tmp_path / "exports")
