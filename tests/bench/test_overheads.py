"""What a run costs beside its training: the right things are timed and weighed, and nothing is left behind."""

import json
import os
import sqlite3
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.support.measured import snapshot
from tests.support.project import CHECKOUT
from torch import nn

from remeasure.bench import memory, overheads
from remeasure.bench.memory import Footprint
from remeasure.bench.series import Series, Setting
from remeasure.config.compose import compose
from remeasure.data import mnist

GENERATED = ("README.md", "mlflow.db", "results", "runs", "data", "mlartifacts")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The rehearsal, once, on a data root that is empty."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Setting(project=CHECKOUT, data_root=tmp_path / "data", scratch=tmp_path, num_rounds=1, tiny=True)


def of_the_project() -> dict[str, float]:
    """Everything that a command could leave behind in the checkout, with its time."""
    roots = [CHECKOUT / name for name in GENERATED]
    paths = [path for root in roots if root.exists() for path in (root, *root.rglob("*"))]
    assert CHECKOUT / "README.md" in paths
    return {str(path): path.stat().st_mtime for path in paths}


# ---------------------------------------------------------------- commands


def test_commands_work_on_a_copy_and_leave_nothing_in_the_project(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = overheads.command_lines(tiny=True)
    chosen = {name: lines[name] for name in ("train.py --help", "reproduce.py table")}
    home = "import sys; sys.path.insert(0, 'src'); from remeasure.system import paths; home = paths.project_root()"
    chosen["writes"] = ("-c", f"{home}; (home / 'README.md').touch()")
    monkeypatch.setattr(overheads, "command_lines", lambda *, tiny: chosen)  # noqa: ARG005
    monkeypatch.setattr(overheads, "imports", lambda: {"import json": ("-c", "import json")})
    before = of_the_project()
    part = overheads.commands(setting)
    assert of_the_project() == before
    assert [each.name for each in part.series] == [*chosen, "import json"]
    targets = [(each.name, each.target) for each in part.ratios]
    assert targets == [
        ("train.py --help, in seconds", "at most 1"),
        ("reproduce.py table, in seconds", "at most 3"),
    ]
    assert (setting.scratch / "project/results/table.csv").is_file()


def test_every_target_of_a_command_is_of_a_command_that_is_timed() -> None:
    for tiny in (False, True):
        assert overheads.LIMITS.keys() < overheads.command_lines(tiny=tiny).keys()


def test_the_copy_holds_the_project_and_finds_itself_at_home(setting: Setting) -> None:
    project = overheads.copied(CHECKOUT, to=setting.scratch / "project")
    assert snapshot(project / "conf") == snapshot(CHECKOUT / "conf")
    code = "import sys; sys.path.insert(0, 'src'); from remeasure.system import paths; print(paths.project_root())"
    assert overheads.python(["-c", code], cwd=project, setting=setting).strip() == str(project)


def test_a_command_that_fails_is_an_error_with_its_last_line_and_no_time(setting: Setting) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such row')"
    with pytest.raises(RuntimeError, match=r"ended with 1: no such row$"):
        overheads.python(["-c", code], cwd=setting.scratch, setting=setting)


def test_seconds_are_held_against_a_limit_in_seconds() -> None:
    found = overheads.seconds_at_most(Series(name="help", unit="s", values=(3.0, 1.0, 4.0)), limit=2.5)
    assert (found.value, found.low, found.high) == (3.0, 1.0, 4.0)
    assert (found.target, found.met) == ("at most 2.5", False)


def test_each_call_is_made_once_before_it_is_timed() -> None:
    calls = {"a": 0, "b": 0}

    def call(name: str) -> None:
        calls[name] += 1

    found = overheads.rounds({name: lambda name=name: call(name) for name in calls}, num_rounds=3)
    assert calls == {"a": 4, "b": 4}
    assert {name: (each.unit, len(each.values)) for name, each in found.items()} == {"a": ("s", 3), "b": ("s", 3)}


# ---------------------------------------------------------------- loading, table, verify


def test_data_that_are_not_here_are_named_and_not_downloaded(setting: Setting) -> None:
    full = Setting(project=CHECKOUT, data_root=setting.data_root, scratch=setting.scratch, num_rounds=1, tiny=False)
    part = overheads.loading(full)
    assert part.series == ()
    assert [remark.partition(":")[0] for remark in part.remarks[1:]] == [
        "MNIST, the official files",
        "CIFAR-10, the official files",
    ]
    assert not setting.data_root.exists()


def test_mnist_is_read_from_the_same_files_by_torchvision(data_root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime for path in data_root.rglob("*")}
    full = Setting(project=CHECKOUT, data_root=data_root, scratch=tmp_path, num_rounds=1, tiny=False)
    part = overheads.loading(full)
    assert "mnist, unpacked: load_split / torchvision" in [each.name for each in part.ratios]
    assert sorted(path.name for path in (tmp_path / "MNIST/raw").iterdir()) == sorted(mnist.ALL)
    assert {path: path.stat().st_mtime for path in data_root.rglob("*")} == before


def test_table_and_verify_are_timed_on_the_committed_results_and_change_nothing(setting: Setting) -> None:
    before = of_the_project()
    part = overheads.scoring(setting)
    assert [each.name for each in part.series] == ["ledger.read", "table.render", "verify.verify"]
    assert of_the_project() == before


# ---------------------------------------------------------------- tracking


def test_tracked_runs_reach_mlflow_and_plain_ones_do_not(setting: Setting) -> None:
    """Two models, each warmed up once and timed once: one run, and two seeds for each worker."""
    # MLflow's own tables raise SQLAlchemy's deprecation warnings when they are first used in a process.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        part = overheads.tracking(setting)
    expected = 2 * 2 * (1 + 2 * len(os.sched_getaffinity(0)))
    with closing(sqlite3.connect(setting.scratch / "mlflow.db")) as store:
        statuses = [status for (status,) in store.execute("select status from runs")]
    assert statuses == ["FINISHED"] * expected
    assert len(list((setting.scratch / "runs").glob("*/record.json"))) == 2 * expected
    assert {each.target for each in part.ratios} == {"at most 1.02"}
    assert len(part.ratios) == 4


# ---------------------------------------------------------------- memory


class Tiny(nn.Module):
    """4-3-2, with a buffer of 5 float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        self.register_buffer("five", torch.zeros(5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(images)
        return out


def test_the_bytes_of_a_data_set_are_its_pixels_and_eight_for_each_label() -> None:
    assert memory.data_bytes(60_000, image_shape=(1, 28, 28)) == 60_000 * 784 + 60_000 * 8


def test_the_bytes_of_a_net_are_weights_gradients_moments_and_buffers() -> None:
    num_params = 4 * 3 + 3 + 3 * 2 + 2
    kept = {torch.optim.Adam: 2, torch.optim.AdamW: 2, torch.optim.SGD: 0, torch.optim.RMSprop: 1}  # moments
    for optimizer, num_kept in kept.items():
        net = Tiny()
        found = memory.net_bytes(net, optimizer=optimizer(net.parameters(), lr=0.1))
        assert found == (2 + num_kept) * (num_params * 4) + 5 * 4, optimizer
    net = Tiny()
    momentum = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    assert memory.net_bytes(net, optimizer=momentum) == 3 * (num_params * 4) + 5 * 4


def test_what_a_forward_pass_saves_is_counted_once_and_without_images_and_weights() -> None:
    """ReLU's output (6, 3) float32 is saved by ReLU and by the second layer; the first layer saves the images."""
    assert memory.saved_bytes(Tiny(), torch.zeros(6, 4)) == 6 * 3 * 4


def test_a_batch_is_float32_pixels_and_what_is_saved_of_it() -> None:
    """mlp2 on the digits, batch 64: 8x8 pixels in, 256 ReLUs saved."""
    config = compose(["model=mlp2", "data=digits"])
    spec = config.spec(data_sha256="")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    assert memory.batch_bytes(network, spec=spec) == 64 * 64 * 4 + 64 * 256 * 4


def test_what_is_unaccounted_is_what_training_held_less_code_data_net_and_batch() -> None:
    found = Footprint(imported=900.0, built=50.0, trained=60.0, scored=70.0, code=4.0, data=45.0, net=3.0, batch=2.0)
    series = overheads.memory_series("m", found)
    assert series["accounted for"].values == (54.0,)
    assert series["unaccounted"].values == (6.0,)
    assert [each.name for each in series.values()][:2] == ["m: imports", "m: built"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_run_of_another_process_is_weighed_stage_by_stage(setting: Setting) -> None:
    """The data of 1,297 digits and the net by hand, of which the kernel knows nothing."""
    digits = ("model=mlp2", "data=digits", "recipe.epochs_total=1")
    found = overheads._footprint(digits, folder=setting.scratch / "small", setting=setting)
    num_params = 64 * 256 + 256 + 256 * 10 + 10
    by_hand = 1297 * (64 + 8) + 4 * 4 * num_params + 64 * (64 + 256) * 4
    assert found.accounted - found.code == pytest.approx(by_hand / 2**20)
    assert 1 < found.code < 200  # scikit-learn, which reads the digits, is in it
    assert found.imported > 100  # torch and Lightning are in it
    assert found.trained > found.accounted


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_peak_is_seen_although_it_has_passed_and_is_forgotten_when_told(setting: Setting) -> None:
    """100 MiB come and go: seen in the peak by at least 90, and gone from a peak that begins anew."""
    code = """
import json
from remeasure.bench import memory
before = memory._peak()
bytearray(100 * 2**20)
high = memory._peak()
memory._forget_peak()
print(json.dumps([before, high, memory._peak()]))
"""
    before, high, after = json.loads(overheads.python(["-c", code], cwd=setting.scratch, setting=setting))
    assert high - before > 90
    assert high - after > 90
