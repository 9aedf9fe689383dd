"""One run on several devices: which processes there are, and how a batch is divided."""

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from tests.support.photographed import imagenet, make_folder
from tests.support.trained import quiet

from remeasure.config.compose import compose
from remeasure.data import fingerprint
from remeasure.models import pretrained
from remeasure.runs.execute import execute
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.base import DeviceKind, InputError
from remeasure.spec.config import Config
from remeasure.spec.run import RunSpec
from remeasure.training.engines.base import engine_of
from remeasure.training.photographs.world import World, connected, find, gathered, joined, refuse_uneven

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},
    **{"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
}
SRUN = {
    **{"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"},
    **{"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_JOB_ID": "123456"},
}
LEFT_BEHIND = {"WORLD_SIZE": "2", "RANK": "1", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}


def world(
    environment: Mapping[str, str],
    *,
    devices: int | None = None,
    num_nodes: int | None = None,
    device_kind: DeviceKind = "cuda",
    gpus: int = 8,
) -> World:
    return find(
        devices=devices, num_nodes=num_nodes, device_kind=device_kind, gpus=lambda: gpus, environment=environment
    )


@pytest.mark.parametrize(("environment", "launcher", "port"), [(TORCHRUN, "torchrun", 29500), (SRUN, "srun", 18456)])
@pytest.mark.parametrize("asked", [{}, {"devices": 8, "num_nodes": 2}])
def test_the_processes_are_those_that_torchrun_or_srun_has_started(
    environment: Mapping[str, str], launcher: str, port: int, asked: Mapping[str, int]
) -> None:
    found = world(environment, **asked)
    assert found == World(devices=8, num_nodes=2, rank=9, local_rank=1, launcher=launcher, address="node1", port=port)
    assert (found.size, str(found)) == (16, f"8 devices of each of 2 machines, as {launcher} says")


@pytest.mark.parametrize("environment", [{}, LEFT_BEHIND, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}])
def test_else_they_are_one_for_each_gpu_of_this_machine_whatever_a_job_has_left_behind(
    environment: Mapping[str, str],
) -> None:
    assert world(environment) == World(devices=8)
    assert world(environment, devices=2) == World(devices=2)
    assert world(environment, device_kind="cpu") == World()
    assert world(environment, device_kind="cpu", devices=2).size == 2


@pytest.mark.parametrize(
    ("environment", "asked", "fault"),
    [
        ({}, {"devices": 9}, "devices: expected at most the 8 GPUs of this machine, got 9"),
        ({}, {"devices": 2, "device_kind": "mps"}, "devices: expected at most the 1 mps of this machine, got 2"),
        (
            {},
            {"num_nodes": 2},
            "num_nodes: 2 machines need a process for each of their devices; start this command by ",
        ),
        (TORCHRUN, {"devices": 4}, "devices: got 4, but torchrun has started 8 processes on each of 2 machines; start"),
        (SRUN, {"num_nodes": 3}, "num_nodes: got 3, but srun has started 8 processes on each of 2 machines; start"),
        ({**TORCHRUN, "WORLD_SIZE": "15"}, {}, "devices: 15 processes were started, not as many on each machine"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "15"}, {}, "devices: 15 processes were started, not as many on each machine"),
        (TORCHRUN, {"gpus": 4}, "devices: expected at most the 4 GPUs of this machine, got 8"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    environment: Mapping[str, str], asked: Mapping[str, int], fault: str
) -> None:
    with pytest.raises(InputError) as refused:
        world(environment, **asked)
    assert refused.value.faults[0].startswith(fault)


# ---------------------------------------------------------------- DeiT-B's recipe


def deit(*overrides: str) -> Config:
    return compose(["model=vit_b16", "recipe=deit_b", *overrides])


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_deit_b_runs_on_8_gpus_of_any_number_of_machines_with_its_batch_of_1024_or_8_times_64_a_machine(
    num_nodes: int,
) -> None:
    """Touvron et al. 2021, section 6: a rate of 5e-4 for each 512 images of a batch, of 1024 in their Table 9."""
    config = deit("devices=8", f"num_nodes={num_nodes}")
    assert (config.devices, config.num_nodes, config.recipe.batch_size) == (8, num_nodes, 1024)
    devices = World(devices=8, num_nodes=num_nodes)
    refuse_uneven(config.spec(data_sha256=""), world=devices)
    batch = 64 * devices.size
    scaled = deit(f"recipe.batch_size={batch}")
    refuse_uneven(scaled.spec(data_sha256=""), world=devices)
    assert scaled.recipe.optimizer.lr_peak == pytest.approx(5e-4 * batch / 512)
    assert config.spec(data_sha256="").spec_sha256 == deit().spec(data_sha256="").spec_sha256


def test_a_batch_that_does_not_divide_says_what_to_set() -> None:
    devices = World(devices=8, num_nodes=3)
    with pytest.raises(
        InputError,
        match=r"even number of images for each of 24 devices .*got 1024 for all; set "
        r"recipe\.batch_size=1008 or 1056, or other devices and num_nodes",
    ):
        refuse_uneven(deit().spec(data_sha256=""), world=devices)
    plain = ("recipe.streaming.mixup_alpha=0", "recipe.streaming.cutmix_alpha=0", "recipe.batch_size=1032")
    refuse_uneven(deit(*plain).spec(data_sha256=""), world=devices)


def test_engines_for_images_in_memory_take_one_device() -> None:
    serial = engine_of(compose(["model=mlp2"]).spec(data_sha256=""))
    assert list(serial.device_faults("cpu", devices=1, num_nodes=1)) == []
    assert list(serial.device_faults("cuda", devices=2, num_nodes=3)) == [
        "devices: the serial engine computes on one device, got devices=2; leave it out",
        "num_nodes: the serial engine computes on one device, got num_nodes=3; leave it out",
    ]


# ---------------------------------------------------------------- runs on two processes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven photographs."""
    return make_folder(tmp_path)


def evaluation(root: Path, *overrides: str) -> RunSpec:
    """Of a random net of timm's for tests, two photographs a batch."""
    path = root / "random.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
    tiny = ("model.options.architecture=test_vit", "recipe.transform.crop_pixels=160", "recipe.batch_size=2")
    config = compose(["model=vit_b16", "precision=float32", *tiny, f"model.weights={path}", *overrides])
    config = replace(config, data=imagenet(root))
    return config.spec(
        data_sha256=fingerprint.fingerprint(config.data, root=root).data_sha256,
        weights_sha256=pretrained.fingerprint(config),
    )


def measured(spec: RunSpec, root: Path, *, devices: int) -> Outcome:
    place = Place(runs=root / f"runs{devices}", project=root, data_root=root, device_kind="cpu", devices=devices)
    return execute(spec, seed=0, row="", place=place, sink=quiet)


def test_two_devices_evaluate_seven_photographs_as_one_does_image_by_image(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = evaluation(root)
    one, two = (measured(spec, root, devices=devices) for devices in (1, 2))
    arrays = [np.load(each.directory / "predictions.npz") for each in (one, two)]
    for name in ("predicted", "confidence", "top5"):
        assert arrays[0][name].shape[0] == 7
        assert np.array_equal(arrays[0][name], arrays[1][name])
    assert len(set(arrays[0]["confidence"].tolist())) == 7, "no two photographs have the same answer"
    assert two.record.num_correct == one.record.num_correct
    assert two.record.loss == pytest.approx(one.record.loss, rel=1e-12)
    assert [path.name for path in two.directory.glob("checkpoint*")] == []
    assert capfd.readouterr().err.count("on 2 devices\n") == 1


def test_a_photograph_that_the_second_device_cannot_decode_is_named_by_the_first(root: Path) -> None:
    spec = evaluation(root)
    third = sorted((root / "imagenet/val").glob("*/*.JPEG"))[2]  # in the second batch
    third.write_bytes(third.read_bytes()[:300])
    spec = replace(spec, data_sha256=fingerprint.fingerprint(spec.data, root=root).data_sha256)
    with pytest.raises(InputError, match=f"{third.name}: cannot be decoded"):
        measured(spec, root, devices=2)


def test_a_device_without_a_batch_of_its_own_has_all_answers_too(root: Path) -> None:
    """Seven photographs are one batch."""
    spec = evaluation(root, "recipe.batch_size=8")
    one, two = (measured(spec, root, devices=devices) for devices in (1, 2))
    assert (two.record.num_correct, two.record.predicted_sha256) == (
        one.record.num_correct,
        one.record.predicted_sha256,
    )


def no_photograph(world: World) -> None:
    with connected(world, device_kind="cpu"):
        raise InputError("photograph 3 cannot be decoded")


def test_a_device_that_fails_ends_the_others_with_a_line_and_not_with_its_connection_s_error() -> None:
    with (
        pytest.raises(ChildProcessError, match="a process of another device has failed"),
        joined(World(devices=2), device_kind="cpu", share=no_photograph) as world,
    ):
        gathered(0, world=world)


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        here = World(devices=2, launcher="torchrun", port=port)
        with (
            pytest.raises(InputError, match=f"process 0 of 2 cannot use tcp://127.0.0.1:{port}"),
            connected(here, device_kind="cpu"),
        ):
            pass
