"""remeasure as a library: a run in five lines, the table, in the project of the working directory, also in threads."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.measured import LEDGER, ROW, group
from tests.support.project import CHECKOUT

import remeasure
from remeasure.cli.workspace import new
from remeasure.judging.publish import publish
from remeasure.spec.base import InputError

SHORT = ("model=my_net", "recipe.epochs_total=1", "observer=[terminal]")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the user's, which is the working directory."""
    monkeypatch.setenv("REMEASURE_CONF", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    new.main([str(tmp_path / "mine")])
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_run_takes_the_five_lines_of_the_docs(root: Path) -> None:
    example = (CHECKOUT / "docs/own_table.md").read_text().partition("## A library\n")[2].split("```")[1]
    lines = [line for line in example.removeprefix("python\n").splitlines() if line]
    assert len(lines) == 5
    names = dict[str, Any]()
    exec("\n".join(lines), names)
    config, outcome, network = (names[name] for name in ("config", "outcome", "network"))
    assert outcome.directory.is_relative_to(root / "runs")
    assert outcome.record.num_params == sum(each.numel() for each in network.parameters()) == 2730
    assert remeasure.run(config).record == outcome.record, "it is reused"


@pytest.mark.usefixtures("root")
def test_threads_get_configs_of_their_own() -> None:
    widths = range(4, 12)
    with ThreadPoolExecutor(4) as threads:
        configs = list(threads.map(lambda n: remeasure.compose([*SHORT, f"model.options.channels={n}"]), widths))
    assert [config.model.options["channels"] for config in configs] == list(widths)


@pytest.mark.usefixtures("root")
def test_runs_of_several_threads_are_those_of_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with MLflow, whose export of a network allows one at a time."""
    configs = [remeasure.compose([*SHORT[:2], f"seed={seed}"]) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = [outcome.record.predicted_sha256 for outcome in threads.map(remeasure.run, configs)]
    alone = [remeasure.run(remeasure.compose([*SHORT, f"seed={seed}", "fresh=true"])) for seed in range(3)]
    assert together == [outcome.record.predicted_sha256 for outcome in alone]
    assert len(set(together)) == 3
    assert "tracking is behind" not in capsys.readouterr().err


@pytest.mark.usefixtures("root")
def test_one_override_may_be_a_string() -> None:
    assert remeasure.compose("seed=3").seed == 3


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=nope", "model: there is no 'nope'"),
        ("seed=-1", "seed: expected 0 or more"),
        ("sede=1", "sede: no such key"),
    ],
)
def test_what_is_wrong_is_an_input_error(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        remeasure.compose([override])


def test_the_table_is_the_ledger_s_with_the_records_of_a_folder(root: Path) -> None:
    (root / "conf/benchmark.yaml").write_text(LEDGER)
    publish(root / "results", row=ROW, files=group().to_files())
    tiny, other = remeasure.table()
    assert (tiny.row, tiny.mean_percent, tiny.num_seeds, other.verdict) == (ROW, pytest.approx(94.0), 5, "not measured")
    assert remeasure.table(os.fspath(root / "results")) == [tiny, other]
