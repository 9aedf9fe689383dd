"""The one command for a GPU, rehearsed on the CPU: what it measures, that it goes on, and that its rows can be kept."""

import json
import os
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.project import Project

from remeasure import gpu, paths
from remeasure.records import read_row, read_runs

STEPS = [
    "matrix products",
    "rows logreg-digits --demo --seeds 2",
    "ViT from memory",
    "ViT from files",
    "ResNet-18 by batch",
    "MLP by batch and width",
    "seeds together",
    "rows mlp2-digits --demo --seeds 2 --together 2",
]


@pytest.fixture(scope="module")
def sample_root(data_root: Path) -> Path:
    assert (data_root / "imagenet-sample/val").is_dir()
    return data_root


@pytest.fixture(scope="module")
def out(sample_root: Path, tmp_path_factory: pytest.TempPathFactory, project: Project) -> Path:
    """What the rehearsal leaves behind."""
    folder = tmp_path_factory.mktemp("out")
    # MLflow's own tables raise SQLAlchemy's deprecation warnings when they are first used in a process.
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        patch.setattr(paths, "_CHECKOUT", project.root)
        patch.setenv("REMEASURE_DATA", str(sample_root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert gpu.main(["--tiny", "--out", str(folder)]) == 0
    return folder


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())["figures"]
    return found


def test_every_step_is_measured_and_shown(out: Path) -> None:
    assert list(figures(out)) == STEPS
    text = (out / "gpu.md").read_text()
    assert all(f"## {name}\n" in text for name in STEPS)
    assert "host" not in text.lower()


def test_speeds_are_positive_and_a_share_of_the_matrix_products_is_shown(out: Path) -> None:
    found = figures(out)
    (peak,) = found["matrix products"]["lines"]
    assert peak["tflops"] > 0
    for name in ("ViT from memory", "ResNet-18 by batch", "MLP by batch and width"):
        assert all(line["images_per_second"] > 0 and line["tflops"] > 0 for line in found[name]["lines"])
    assert [line["hidden"] for line in found["MLP by batch and width"]["lines"]] == [256, 256, 16, 64]
    assert "share_of_matrix_products" in (out / "gpu.md").read_text()
    (files,) = found["ViT from files"]["lines"]
    assert min(files[key] for key in files if key.endswith("_per_second")) > 0


def test_the_rows_come_back_as_results_holds_them(out: Path, tmp_path: Path) -> None:
    for row in ("mlp2-digits", "logreg-digits"):
        with tarfile.open(out / f"rows-{row}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        group = read_row(tmp_path / "results", row=row)  # checks seal, hashes and shapes
        assert group is not None
        assert [record.seed for record in group.records] == [0, 1]
        step = next(name for name in STEPS if name.startswith(f"rows {row} "))
        (line,) = [line for line in figures(out)[step]["lines"] if line["row"] == row]
        scores = [record.accuracy_percent or 0.0 for record in group.records]
        assert line["mean_percent"] == pytest.approx(sum(scores) / 2, abs=5e-4)
    assert not read_runs(tmp_path / "results", row="mlp2-digits-inflated")


def test_the_last_rows_seeds_were_trained_together_and_the_first_rows_alone(out: Path, tmp_path: Path) -> None:
    engines = {}
    for row in ("mlp2-digits", "logreg-digits"):
        with tarfile.open(out / f"rows-{row}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        engines[row] = yaml.safe_load((tmp_path / f"results/specs/{row}.yaml").read_text())["engine"]
    assert engines == {"mlp2-digits": "batched", "logreg-digits": "serial"}


def test_what_a_step_of_so_many_seeds_costs_is_shown_for_each_seed(out: Path) -> None:
    lines = figures(out)["seeds together"]["lines"]
    assert [(line["model"], line["seeds"]) for line in lines] == [
        ("mlp2", 1),
        ("mlp2", 2),
        ("lenet5", 1),
        ("lenet5", 2),
    ]
    for line in lines:
        assert line["milliseconds_per_seed"] == pytest.approx(line["milliseconds"] / line["seeds"], abs=1e-3)
        assert line["milliseconds"] > 0


def test_a_step_that_cannot_be_captured_is_told_and_nothing_is_captured_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captures = []

    def seconds(*_: object, **__: object) -> float:
        captures.append(os.environ["REMEASURE_CAPTURE"])
        if captures[-1] == "1":
            raise RuntimeError("operation not permitted when stream is capturing")
        return 0.004

    monkeypatch.setattr(gpu, "_seconds_per_step", seconds)
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    lines = gpu.seeds_together(gpu.TINY, kind="cuda")
    assert captures == ["0", "1", "0", "0", "0"]
    assert [line.get("milliseconds_per_seed") for line in lines] == [4.0, None, 2.0, 4.0, 2.0]
    assert lines[1]["fault"] == "RuntimeError: operation not permitted when stream is capturing"
    assert os.environ["REMEASURE_CAPTURE"] == "0", "for the rows that follow, in their own processes"


def test_the_same_command_measures_nothing_twice(
    out: Path, monkeypatch: pytest.MonkeyPatch, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "_CHECKOUT", project.root)
    before = (out / "gpu.json").read_bytes()
    assert gpu.main(["--tiny", "--out", str(out)]) == 0
    assert (out / "gpu.json").read_bytes() == before
    assert capfd.readouterr().err.count("done before") == len(STEPS)


def test_a_step_that_fails_leaves_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def steps(*_: object, **__: object) -> list[tuple[str, Any]]:
        return [("bad", lambda: 1 / 0), ("good", lambda: [{"speed": 2.0}])]

    monkeypatch.setattr(gpu, "_steps", steps)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 1
    assert list(figures(tmp_path)) == ["good"]
    assert "bad failed: ZeroDivisionError" in capfd.readouterr().err


def test_no_step_begins_after_the_time_is_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--minutes", "-1"]) == 0
    assert "no time left; the same command goes on" in capfd.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_figures_of_another_machine_are_never_mixed(out: Path, tmp_path: Path) -> None:
    content = json.loads((out / "gpu.json").read_text())
    content["head"]["environment"]["device"] = "another"
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another machine"):
        gpu.main(["--tiny", "--out", str(tmp_path)])


def test_flop_are_those_of_the_products() -> None:
    """A batch of 3 through 4 -> 5: 2·3·4·5; backward, the weights' gradient as much again (the input needs none)."""
    layer, images = torch.nn.Linear(4, 5), torch.randn(3, 4)
    assert gpu._flop(lambda: layer(images)) == 2 * 3 * 4 * 5
    assert gpu._flop(lambda: layer(images).sum().backward()) == 2 * 2 * 3 * 4 * 5


def test_the_command_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "--out" in capsys.readouterr().err
