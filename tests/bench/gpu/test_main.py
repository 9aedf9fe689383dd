"""The one command for a GPU, rehearsed on the CPU: what it measures, that it goes on, and that its rows can be kept."""

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.support import borrowed
from tests.support.project import Project, write_all

from remeasure.bench.gpu import __main__ as gpu
from remeasure.bench.gpu import graphs, rows, speeds, timing
from remeasure.bench.gpu.sizes import FULL, TINY
from remeasure.bench.gpu.timing import Apart, modes
from remeasure.cli import reproduce
from remeasure.judging.reader import read_row, read_runs
from remeasure.spec.base import InputError
from remeasure.spec.config import Config
from remeasure.system import signals

STEPS = [
    "matrix products",
    "graph check",
    "rows logreg-digits --demo --seeds 2",
    "rows mlp2-digits --demo --seeds 2 --together 2",
    "ViT from memory",
    "ResNet-18 ways",
    "ViT from files",
    "ResNet-18 by batch",
    "MLP by batch and width",
    "seeds together",
]


@pytest.fixture(scope="module", autouse=True)
def handlers_and_environment() -> Iterator[None]:
    """The command handles signals and sets variables of its process; tests that follow find both as they were."""
    environment = dict(os.environ)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def sample_root(data_root: Path) -> Path:
    assert (data_root / "imagenet-sample/val").is_dir()
    return data_root


@pytest.fixture(scope="module")
def rehearse(
    sample_root: Path, tmp_path_factory: pytest.TempPathFactory, project: Project
) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """`rehearse(out)`: the rehearsal as on a borrowed machine, without git and without other packages than it needs."""
    python = borrowed.make_environment(tmp_path_factory.mktemp("environment"))
    environment = project.environment(PATH=str(python.parent), REMEASURE_DATA=str(sample_root))

    def call(out: Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "remeasure.bench.gpu", "--tiny", "--out", out]
        return subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="module")
def out(rehearse: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the rehearsal leaves behind."""
    folder = tmp_path_factory.mktemp("out")
    done = rehearse(folder)
    assert done.returncode == 0, done.stderr
    return folder


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())["figures"]
    return found


def test_every_step_is_measured_and_shown(out: Path) -> None:
    assert list(figures(out)) == STEPS
    text = (out / "gpu.md").read_text()
    assert all(f"## {name}\n" in text for name in STEPS)
    assert "host" not in text.lower()
    assert not [line for name in STEPS for line in figures(out)[name]["lines"] if "fault" in line]


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


def test_the_sizes_for_a_gpu_are_configs_that_the_row_s_recipe_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the steps themselves."""
    configs = list[Config]()

    def seconds(config: Config, **_: object) -> tuple[float, float]:
        configs.append(config)
        return 0.1, 0.1

    monkeypatch.setattr(graphs, "way_seconds", seconds)
    monkeypatch.setattr(speeds, "_training_speed", lambda config, **_: {"seconds": seconds(config)})
    monkeypatch.setattr(graphs, "Apart", lambda: nullcontext(timing.here))
    ways = graphs.resnet_ways(FULL, kind="cuda")
    assert len(ways) == 3 * len(graphs.WAYS)
    assert not [line for line in ways if "fault" in line]
    assert len(speeds.resnet_by_batch(FULL, device=torch.device("cuda"))) == 2 * len(FULL.batches)
    assert len(speeds.mlp_by_size(FULL, device=torch.device("cuda"))) == len(FULL.batches) + len(FULL.hidden)
    resnets = [config for config in configs if config.model.name == "resnet18"]
    assert {config.recipe.name for config in resnets} == {"resnet18_muon"}
    sizes = [config.recipe.resolution.pixels if config.recipe.resolution else None for config in resnets[: len(ways)]]
    assert sizes[:: len(graphs.WAYS)] == [(16,), (24,), None]


def test_what_a_step_of_so_many_seeds_costs_is_shown_for_each_seed(out: Path) -> None:
    lines = figures(out)["seeds together"]["lines"]
    assert [(line["model"], line["seeds"]) for line in lines] == [
        ("mlp2", 1),
        ("mlp2", 2),
        ("lenet5", 1),
        ("lenet5", 2),
    ]
    for line in lines:
        assert line["milliseconds_per_seed"] == pytest.approx(line["milliseconds"] / line["seeds"], rel=2e-3)
        assert line["milliseconds"] > 0


def test_a_step_that_cannot_be_captured_is_told_and_nothing_is_captured_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captures = []

    def seconds(*_: object, captured: bool, **__: object) -> float:
        captures.append(captured)
        if captured:
            raise RuntimeError("operation not permitted when stream is capturing")
        return 0.004

    monkeypatch.setattr(graphs, "seconds_per_step", seconds)
    monkeypatch.setattr(graphs, "Apart", lambda: nullcontext(timing.here))
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    lines = graphs.seeds_together(TINY, kind="cuda")
    assert captures == [False, True, False, False, False]
    assert [line.get("milliseconds_per_seed") for line in lines] == [4.0, None, 2.0, 4.0, 2.0]
    assert lines[1]["fault"] == "RuntimeError: operation not permitted when stream is capturing"
    assert os.environ["REMEASURE_CAPTURE"] == "0", "for the rows that follow, in their own processes"


def test_the_same_command_measures_nothing_twice(
    out: Path, rehearse: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    before = (out / "gpu.json").read_bytes()
    done = rehearse(out)
    assert done.returncode == 0, done.stderr
    assert (out / "gpu.json").read_bytes() == before
    assert done.stderr.count("done before") == len(STEPS)


def test_a_step_that_fails_leaves_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def steps(*_: object, **__: object) -> list[tuple[str, Any]]:
        return [("bad", lambda: 1 / 0), ("good", lambda: [{"speed": 2.0}])]

    monkeypatch.setattr(gpu, "steps", steps)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 1
    assert list(figures(tmp_path)) == ["good"]
    assert "bad failed: ZeroDivisionError" in capfd.readouterr().err


def measured(monkeypatch: pytest.MonkeyPatch, *, records: dict[str, int], end: Callable[[], int]) -> None:
    """Have `reproduce.py measure` publish so many seeds of each row, then end so."""

    def main(arguments: list[str], **_: object) -> int:
        folder = Path(arguments[arguments.index("--results") + 1])
        contents = {f"runs/{row}.csv": "published\n" if num else "header\n" for row, num in records.items()}
        write_all(folder, contents | {f"sums/{row}.sha256": "sealed\n" for row, num in records.items() if num})
        return end()

    def read(_: Path, *, row: str) -> list[Any]:
        return [SimpleNamespace(accuracy_percent=90.0, wall_seconds=1.0)] * records.get(row, 0)

    monkeypatch.setattr(reproduce, "main", main)
    monkeypatch.setattr(rows, "read_runs", read)


def packed(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return sorted(name for name in opened.getnames() if name.endswith(".csv"))


def test_without_a_seed_there_is_no_archive_that_could_replace_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "rows-none.tar.gz"
    step = partial(rows.measure_rows, ("none", "--seeds", "2"), archive=archive, deadline=0.0)
    monkeypatch.setattr(gpu, "steps", lambda *_, **__: [("rows none", step)])
    measured(monkeypatch, records={"none": 0}, end=lambda: 0)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 1
    assert not archive.exists()


def test_a_row_without_data_or_time_is_not_done_and_what_is_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One row whole, one cut off by the budget, one whose data are not there: `measure` calls that well."""
    arguments = ("whole", "short", "none", "--seeds", "2")
    archive = tmp_path / "rows-whole.tar.gz"
    step = partial(rows.measure_rows, arguments, archive=archive, deadline=0.0)
    monkeypatch.setattr(gpu, "steps", lambda *_, **__: [("rows", step)])
    measured(monkeypatch, records={"whole": 2, "short": 1, "none": 0}, end=lambda: 0)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 1
    entry = figures(tmp_path)["rows"]
    assert entry["lacks"] == "short has 1 of 2 seeds; none has 0 of 2 seeds"
    assert [line["row"] for line in entry["lines"]] == ["all of them, from shell to shell", "whole", "short"]
    assert "Not complete: short has 1 of 2 seeds" in (tmp_path / "gpu.md").read_text()
    assert packed(archive) == ["results/runs/short.csv", "results/runs/whole.csv"]
    measured(monkeypatch, records={"whole": 2, "short": 2, "none": 2}, end=lambda: 0)
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "lacks" not in figures(tmp_path)["rows"]
    assert "done before" not in capfd.readouterr().err


def test_an_interrupted_step_leaves_its_archive_and_the_tables_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGTERM, as a machine's time limit sends it."""
    signals.handle()  # as the command does

    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    archive = tmp_path / "rows-some.tar.gz"
    step = partial(rows.measure_rows, ("some", "--seeds", "2"), archive=archive, deadline=0.0)
    monkeypatch.setattr(gpu, "steps", lambda *_, **__: [("good", lambda: [{"speed": 2.0}]), ("rows", step)])
    measured(monkeypatch, records={"some": 1}, end=interrupted)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--tiny", "--out", str(tmp_path)])
    assert ended.value.code == 128 + signal.SIGTERM
    assert packed(archive) == ["results/runs/some.csv"]
    assert "## good\n" in (tmp_path / "gpu.md").read_text()
    assert list(figures(tmp_path)) == ["good"]


def named_steps(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Have these steps; returns the names of those that are measured."""
    taken: list[str] = []

    def take(name: str) -> list[dict[str, Any]]:
        taken.append(name)
        return [{"captured": True, "identical": False}]

    monkeypatch.setattr(gpu, "steps", lambda *_, **__: [(name, partial(take, name)) for name in names])
    return taken


def test_steps_are_chosen_by_their_beginnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = named_steps(monkeypatch, "graph check", "rows resnet18 --seeds 5", "rows mlp2", "ViT from files", "MLP")
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--only", "ViT", "resnet18"]) == 0
    assert taken == ["rows resnet18 --seeds 5", "ViT from files"]
    with pytest.raises(InputError) as refused:
        gpu.main(["--tiny", "--out", str(tmp_path), "--only", "MLP", "vit"])
    names = "graph check, rows resnet18 --seeds 5, rows mlp2, ViT from files, MLP"
    assert refused.value.faults == (f"--only: no step begins with 'vit'; valid: {names}",)
    assert len(taken) == 2


def test_a_check_that_failed_in_an_earlier_call_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the parts of docs/gpu.md are copied and measured one after the other."""
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    taken = named_steps(monkeypatch, "graph check", "rows mlp2")
    assert gpu.main(["--tiny", "--out", str(tmp_path / "never"), "--only", "rows"]) == 0
    assert os.environ["REMEASURE_CAPTURE"] == "1"
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--only", "graph check"]) == 0
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--only", "rows"]) == 0
    assert os.environ["REMEASURE_CAPTURE"] == "0"
    assert taken == ["rows mlp2", "graph check", "rows mlp2"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"head": {}, "figures"'])
def test_a_damaged_file_is_named_before_anything_is_measured(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu.json").write_text(content)
    taken = named_steps(monkeypatch, "ViT")
    with pytest.raises(InputError, match=r"gpu\.json: damaged; remove it, or give another --out"):
        gpu.main(["--tiny", "--out", str(tmp_path)])
    assert taken == []


def test_figures_of_a_rehearsal_do_not_stand_for_measured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = named_steps(monkeypatch, "ViT")
    assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.md").read_text().startswith("# A rehearsal on ")
    with pytest.raises(InputError, match=r"or a rehearsal \(rehearsal\); give another --out"):
        gpu.main(["--out", str(tmp_path)])
    assert taken == ["ViT"]


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = named_steps(monkeypatch, "ViT")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be written \(File exists\)"):
        gpu.main(["--tiny", "--out", str(tmp_path / "file")])
    assert taken == []


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([{"captured": False}, {"captured": True, "identical": True}], "1"),
        ([{"captured": False}, {"captured": True, "identical": False}], "0"),
        ([{"captured": False}, {"captured": True, "fault": "RuntimeError"}], "0"),
        ([], "0"),
    ],
)
def test_rows_are_captured_only_where_the_check_holds(
    lines: list[dict[str, Any]], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the check was done before."""
    monkeypatch.setenv("REMEASURE_CAPTURE", "1")
    seen: list[str | None] = []
    monkeypatch.setattr(
        gpu, "steps", lambda *_, **__: [("graph check", lambda: lines), (f"rows {len(seen)}", lambda: look())]
    )

    def look() -> list[dict[str, Any]]:
        seen.append(os.environ["REMEASURE_CAPTURE"])
        os.environ["REMEASURE_CAPTURE"] = "1"
        return [{}]

    for _ in range(2):
        assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert seen == [wanted, wanted]


def test_captured_steps_that_differ_are_told_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of norm 5 and 5.5 in one direction: 0.1."""

    def trained(*_: object, captured: bool, **__: object) -> graphs.Trained:
        weights = [torch.tensor([3.0, 4.0]) * (1.1 if captured else 1.0)]
        return graphs.Trained(weights=weights, seconds_per_step=0.002, num_graphs=int(captured))

    monkeypatch.setattr(graphs, "trained", trained)
    monkeypatch.setattr(graphs, "Apart", lambda: nullcontext(timing.here))
    first, second = graphs.graph_check(TINY, kind="cuda")[:2]
    assert first == {"model": "mlp2", "seeds": 2, "captured": False, "milliseconds": 2.0, "graphs": 0}
    assert second["captured"]
    assert (second["identical"], second["largest_relative_difference"]) == (False, 0.1)
    assert not graphs.holds([first, second])


def fail_or_tell(what: str) -> int:
    if what == "fail":
        raise RuntimeError("offset increment outside graph capture")
    return os.getpid()


def test_a_process_apart_is_kept_until_something_fails_in_it() -> None:
    with Apart() as apart:
        first = apart(fail_or_tell, "tell")
        assert first == apart(fail_or_tell, "tell") != os.getpid()
        with pytest.raises(RuntimeError, match="outside graph capture"):
            apart(fail_or_tell, "fail")
        assert apart(fail_or_tell, "tell") != first


def test_the_modes_of_a_run_are_left_as_they_were() -> None:
    with modes(deterministic=True):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_net_is_compiled_for_each_size_after_what_came_before_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    network = torch.nn.Linear(2, 2)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: seen.append("reset"))
    monkeypatch.setattr(network, "compile", lambda **options: seen.append(options))
    speeds.compiled_alone(network, mode="some")
    assert seen == ["reset", {"dynamic": False, "mode": "some"}]


def test_named_steps_alone_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ViT from memory", "ViT from files", "graph check", "seeds together"]
    monkeypatch.setattr(gpu, "steps", lambda *_, **__: [(name, lambda: [{"speed": 2.0}]) for name in names])
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--only", "ViT", "graph check"]) == 0
    assert list(figures(tmp_path)) == names[:3]


def test_no_step_begins_after_the_time_is_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--minutes", "-1"]) == 0
    assert "no time left; the same command goes on" in capfd.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_figures_of_another_machine_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = named_steps(monkeypatch, "ViT")
    for _ in range(2):  # the second time with figures that are this machine's
        assert gpu.main(["--tiny", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    content["head"]["environment"]["device"] = "another"
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is of another machine.* \(environment\)"):
        gpu.main(["--tiny", "--out", str(tmp_path)])
    assert taken == ["ViT"]


def test_flop_are_those_of_the_products() -> None:
    """A batch of 3 through 4 -> 5: 2·3·4·5; backward, the weights' gradient as much again (the input needs none)."""
    layer, images = torch.nn.Linear(4, 5), torch.randn(3, 4)
    assert speeds.flop_of(lambda: layer(images)) == 2 * 3 * 4 * 5
    assert speeds.flop_of(lambda: layer(images).sum().backward()) == 2 * 2 * 3 * 4 * 5


def test_the_command_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "--out" in capsys.readouterr().err
