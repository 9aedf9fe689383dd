"""Precision auto is settled by what the device computes in; tests/cli/test_commands.py has the choice of the device."""

import pytest
import torch

from remeasure.cli.train import _prepared
from remeasure.config.compose import compose
from remeasure.config.resolve import settled
from remeasure.training.device import native_precision


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_only_where_the_device_computes_in_it(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native or including_emulation)
    assert native_precision("cpu") == native_precision("cuda") == precision
    _, spec = _prepared(compose(["model=resnet18", "data=digits", "device=cpu"]))
    assert spec.precision == precision


def test_a_precision_that_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    config = compose(["model=resnet18", "precision=bfloat16"])
    assert settled(config, device_kind="cpu") is config
