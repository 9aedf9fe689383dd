"""Published weights: the right file, fingerprinted, loaded whole or refused, and nothing in it ever executed."""

import hashlib
import pickle
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from tests.support.project import Command, Project
from torch import Tensor, nn

from remeasure.config.compose import compose
from remeasure.models import pretrained
from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.config import Config
from remeasure.system import paths

DEIT = "deit_base_patch16_224.fb_in1k"


@pytest.fixture(autouse=True)
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root and a hub's cache of the test's own, and no network."""
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def _other_weights() -> dict[str, Tensor]:
    """Weights of `_network`, none as it is drawn: 0.0, 0.1, …"""
    return {
        name: (torch.arange(value.numel()) / 10).reshape(value.shape).to(value.dtype)
        for name, value in _network().state_dict().items()
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(_other_weights(), path)
    return path


def _config(*overrides: str) -> Config:
    return compose(["model=vit_b16", *overrides])


# ---------------------------------------------------------------- which file


def test_a_config_that_trains_has_no_weights() -> None:
    assert pretrained.fingerprint(compose(["model=mlp2"])) is None


def test_the_fingerprint_is_the_sha256_of_the_named_file(file: Path) -> None:
    config = replace(_config(), model=replace(_config().model, weights=str(file)))
    assert pretrained.fingerprint(config) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_named_file_wins_over_the_data_roots_and_that_over_the_hubs(file: Path, tmp_path: Path) -> None:
    blob = _into_hub_cache(tmp_path / "hub", content=b"hub")
    assert pretrained.locate(_config()) == blob
    own = tmp_path / "data/weights" / f"{DEIT}.pth"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    assert pretrained.locate(_config()) == own
    named = replace(_config(), model=replace(_config().model, weights=str(file)))
    assert pretrained.locate(named) == file


def test_other_weights_of_the_hub_are_not_taken_for_these(tmp_path: Path) -> None:
    _into_hub_cache(tmp_path / "hub", content=b"hub")
    with pytest.raises(DataMissingError, match=r"weights: vit_base_patch16_224.orig_in21k_ft_in1k is missing"):
        pretrained.locate(_config("recipe=vit_in21k_eval"))


def _into_hub_cache(cache: Path, *, content: bytes) -> Path:
    """DeiT-B's file as the hub's client keeps it."""
    home = cache / "models--timm--deit_base_patch16_224.fb_in1k"
    path = home / "snapshots/0123abc/model.safetensors"
    for each, text in ((home / "refs/main", b"0123abc"), (path, content)):
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_bytes(text)
    return path


def test_missing_weights_say_what_is_wanted_where_it_goes_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as error:
        pretrained.fingerprint(_config())
    text = str(error.value)
    assert "model.safetensors of timm/deit_base_patch16_224.fb_in1k in the hub's cache" in text
    assert str(tmp_path / "data/weights" / f"{DEIT}.safetensors") in text
    command = "python src/train.py model=vit_b16 data=imagenet recipe=deit_b_eval model.weights=PATH"
    assert command in text
    assert "no network in tests" in text
    assert len(error.value.faults) <= 6


def test_offline_by_the_hubs_own_switch_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataMissingError, match="HF_HUB_OFFLINE is set"):
        pretrained.fingerprint(_config())


def test_a_named_file_that_is_not_there_is_a_fault() -> None:
    config = replace(_config(), model=replace(_config().model, weights="/nowhere/a.pth"))
    with pytest.raises(InputError, match=r"^model.weights: there is no file /nowhere/a.pth$"):
        pretrained.fingerprint(config)


def test_a_misspelt_name_of_weights_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=rf"timm knows no weights 'deit_base_patch16_224.fb_in1'.*mean '{DEIT}'"):
        pretrained.fingerprint(_config("recipe.weights=deit_base_patch16_224.fb_in1"))


# ---------------------------------------------------------------- what is in it

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "as DeiT's own": lambda state: {"model": state},
    "as timm's": lambda state: {"state_dict": state, "epoch": 3},
    "of several devices": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_torch_files_load_however_they_are_wrapped(tmp_path: Path, wrapper: str) -> None:
    network, path = _network(), tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](_other_weights()), path)
    pretrained.load(network, path)
    _assert_same(network.state_dict(), _other_weights())


def test_safetensors_load_as_the_library_that_wrote_them_reads_them(file: Path) -> None:
    network = _network()
    pretrained.load(network, file)
    _assert_same(network.state_dict(), safetensors.torch.load_file(file))


def _assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_every_weight_that_does_not_fit_is_named_and_none_is_loaded(tmp_path: Path) -> None:
    state = _other_weights()
    del state["0.bias"]
    state |= {"0.weight": torch.zeros(3, 5), "head.bias": torch.zeros(2), "1.bias": torch.tensor([0.0, torch.nan, 0.0])}
    torch.save(state, tmp_path / "other.pth")
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as error:
        pretrained.load(network, tmp_path / "other.pth")
    assert sorted(error.value.faults[1:]) == [
        "  0.bias: missing",
        "  0.weight: expected shape [3, 4], got [3, 5]",
        "  1.bias: holds values that are not finite",
        "  head.bias: the net has no such weight",
    ]
    _assert_same(network.state_dict(), before)


def test_weights_of_quite_another_net_fill_few_lines(tmp_path: Path) -> None:
    torch.save({f"layer{index}": torch.zeros(1) for index in range(300)}, tmp_path / "other.pth")
    with pytest.raises(InputError) as error:
        pretrained.load(_network(), tmp_path / "other.pth")
    assert len(error.value.faults) == 10
    assert error.value.faults[-1] == "  and 299 more"  # 7 of the net's are missing and 300 unknown; 8 are shown


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch", "beside weights"])
def test_nothing_in_a_malicious_file_is_executed(tmp_path: Path, how: str) -> None:
    path, trap = tmp_path / "evil.pth", _Malicious(tmp_path / "executed")
    if how == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif how == "beside weights":
        torch.save({"model": _other_weights(), "args": trap}, path)
    else:
        torch.save({"model": trap}, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"evil.pth: not a file of weights, or more than that: nothing in it was run"):
        pretrained.load(_network(), path)
    assert not trap.marker.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.marker.exists()  # the trap works


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(_other_weights(), path)
    else:
        safetensors.torch.save_file(_other_weights(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=rf"cut{suffix}: not a"):
        pretrained.load(_network(), path)


@pytest.mark.parametrize("content", [3, [1, 2], None, {"model": 3}, {1: torch.zeros(2)}, {"0.weight": "text"}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt: "):
        pretrained.load(_network(), tmp_path / "other.pt")


def test_a_text_called_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"page.pth: not a file of weights"):
        pretrained.load(_network(), tmp_path / "page.pth")


def test_a_file_that_changed_since_the_plan_is_refused(file: Path) -> None:
    planned = hashlib.sha256(file.read_bytes()).hexdigest()
    pretrained.load(_network(), file, sha256=planned)
    safetensors.torch.save_file({**_other_weights(), "0.bias": torch.ones(3)}, file)
    with pytest.raises(InputError, match="it has changed since the run was planned"):
        pretrained.load(_network(), file, sha256=planned)


# ---------------------------------------------------------------- from the command line

TINY = ("model=vit_b16", "model.options.architecture=test_vit", "recipe.transform.crop_pixels=160")


@pytest.mark.parametrize("bad", ["missing", "truncated", "another net's"])
def test_bad_weights_exit_2_in_a_few_lines_before_any_evaluation(
    project: Project, here: Command, file: Path, bad: str
) -> None:
    if bad == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    named = () if bad == "missing" else (f"model.weights={file}",)
    ended = here(project, "train.py", *TINY, "device=cpu", *named)
    assert ended.status == 2
    assert 1 <= len(ended.stderr.splitlines()) <= 12
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert not list(project.runs.glob("vit_b16-*"))


def test_the_data_roots_weights_are_found_by_their_published_name(tmp_path: Path, file: Path) -> None:
    place = paths.data_root() / "weights" / f"{DEIT}.safetensors"
    assert place == tmp_path / "data/weights/deit_base_patch16_224.fb_in1k.safetensors"
    place.parent.mkdir(parents=True)
    shutil.copy(file, place)
    assert pretrained.fingerprint(_config()) == hashlib.sha256(file.read_bytes()).hexdigest()
