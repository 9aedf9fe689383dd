"""`python -m remeasure.claims` measures what is missing, once; judges from the file alone; refuses a wrong ledger."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from remeasure.claims import __main__ as command
from remeasure.claims.context import Lab
from remeasure.claims.ledger import Claim
from remeasure.config import errors
from remeasure.system import paths
from remeasure.tracking import mlflow_observer

LEDGER = """\
claims:
  formulas:
    claim: An error of 10 costs 100 times an error of 1.
    where: losses
    experiment: losses
    parameters: {}
    num_seeds: 1
    confidence: 0.95
    checks: [{number: mse.cost_ratio, at_least: 100, at_most: 100}]
    notes: exact
  dropout:
    claim: Dropout needs no scaling.
    where: dropout
    experiment: dropout_expectation
    parameters: {num_units: 3, keep: 0.5}
    num_seeds: 3
    confidence: 0.95
    checks: [{number: unscaled_error, at_most: 0.001}]
    notes: It does.
"""
TRAINED = """\
  trained:
    claim: The net learns the digits.
    where: nowhere
    experiment: trainings
    parameters:
      common: [model=mlp2, data=digits, recipe.epochs_total=3]
      arms: {small: ["model.options.hidden_sizes=[32]"]}
      choose: []
    num_seeds: 2
    confidence: 0.95
    checks: [{number: small.score_percent, at_least: 10}]
    notes: It does.
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configs, with a ledger of claims of two computed ones; nothing is tracked."""
    folder = tmp_path / "conf"
    folder.mkdir()
    for path in paths.conf_dir().iterdir():
        if path.name != "claims.yaml":
            (folder / path.name).symlink_to(path)
    (folder / "claims.yaml").write_text(LEDGER)
    monkeypatch.setattr(paths, "conf_dirs", lambda: (folder,))
    monkeypatch.setattr(paths, "conf_dir", lambda: folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one worker: each imports torch and Lightning
    monkeypatch.setattr(mlflow_observer, "_tracker", lambda project: None)  # noqa: ARG005
    return folder


def call(folder: Path, *arguments: str) -> int:
    places = ("--results", str(folder / "results"), "--runs", str(folder / "runs"))
    return errors.guarded(lambda: command.main([*arguments, *places]))


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "results/claims.json").read_bytes(), (folder / "results/claims.md").read_bytes()


def test_what_is_missing_is_measured_once(
    conf: Path,  # noqa: ARG001
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(tmp_path, "formulas") == 0
    assert json.loads(results(tmp_path)[0]).keys() == {"formulas"}
    assert call(tmp_path) == 0
    out, err = capsys.readouterr()
    assert "1/1 dropout …" in err
    verdicts = [line.split(maxsplit=1) for line in out.splitlines()[-2:]]
    assert [name for name, _ in verdicts] == ["formulas", "dropout"]
    assert [text.startswith(verdict) for (_, text), verdict in zip(verdicts, ("holds", "does not hold"), strict=True)]
    before = results(tmp_path)
    assert call(tmp_path) == 0
    assert capsys.readouterr().err == ""
    assert results(tmp_path) == before


def test_a_measurement_names_what_it_was_made_of(conf: Path, tmp_path: Path) -> None:
    (conf / "claims.yaml").write_text(LEDGER + TRAINED)
    assert call(tmp_path, "trained") == 0
    entry = json.loads(results(tmp_path)[0])["trained"]
    assert [seed["small.num_params"] for seed in entry["seeds"]] == [64 * 32 + 32 + 320 + 10] * 2
    assert entry["seeds"][0] != entry["seeds"][1]
    assert list(entry["specs"]) == ["small"]
    assert len(entry["specs"]["small"]) == len(entry["data_sha256"]["digits"]) == 64
    assert entry["environment"]["packages"]["torch"]
    runs = sorted(path.name for path in (tmp_path / "runs").glob("mlp2-digits-*"))
    assert [name.partition("-cpu-")[2] for name in runs] == ["s0-a1", "s1-a1"]
    assert all(name.split("-")[2] == entry["specs"]["small"][:12] for name in runs)
    assert call(tmp_path, "trained", "--fresh") == 0  # what is trained here already is not trained again
    assert sorted(path.name for path in (tmp_path / "runs").glob("mlp2-digits-*")) == runs
    assert json.loads(results(tmp_path)[0])["trained"]["seeds"] == entry["seeds"]


def test_another_rule_is_judged_on_the_same_numbers_and_another_experiment_is_measured(
    conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tmp_path)
    capsys.readouterr()
    (conf / "claims.yaml").write_text(LEDGER.replace("at_most: 0.001", "at_most: 1000"))
    assert call(tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "dropout                      holds" in out
    (conf / "claims.yaml").write_text(LEDGER.replace("num_units: 3", "num_units: 4"))
    assert call(tmp_path) == 0
    assert "1/1 dropout …" in capsys.readouterr().err


@pytest.mark.usefixtures("conf")
def test_what_another_process_has_measured_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(tmp_path, "dropout") == 0
    path = tmp_path / "results/claims.json"
    others, measure = path.read_bytes(), command.measure
    path.unlink()

    def beside_another(claim: Claim, *, lab: Lab) -> dict[str, Any]:
        path.write_bytes(others)
        return measure(claim, lab=lab)

    monkeypatch.setattr(command, "measure", beside_another)
    assert call(tmp_path, "formulas") == 0
    found = json.loads(results(tmp_path)[0])
    assert found.keys() == {"formulas", "dropout"}
    assert found["dropout"] == json.loads(others)["dropout"]
    assert call(tmp_path, "--check") == 0


def test_the_measurement_of_a_claim_that_is_not_in_the_ledger_is_kept_and_named(
    conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tmp_path)
    before, report = results(tmp_path)
    (conf / "claims.yaml").write_text(LEDGER.partition("  dropout:")[0])
    capsys.readouterr()
    assert call(tmp_path) == 0
    assert capsys.readouterr().err == f"not in the ledger, kept in {tmp_path / 'results/claims.json'}: dropout\n"
    assert results(tmp_path)[0] == before
    assert b"dropout" not in results(tmp_path)[1]
    assert call(tmp_path, "--check") == 0
    (conf / "claims.yaml").write_text(LEDGER)
    assert call(tmp_path) == 0
    assert results(tmp_path) == (before, report)


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("commit", ["1" * 40, ""])
def test_the_commit_is_that_of_the_start_and_an_unknown_one_is_warned_of(
    commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = command.experiments()["losses"]

    def committing(*arguments: Any, **more: Any) -> list[dict[str, float | None]]:
        monkeypatch.setenv("REMEASURE_COMMIT", "2" * 40)
        return losses(*arguments, **more)

    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr(command, "experiments", lambda: {"losses": committing})
    monkeypatch.setenv("REMEASURE_COMMIT", commit)
    assert call(tmp_path, "formulas") == 0
    assert json.loads(results(tmp_path)[0])["formulas"]["commit"] == (commit or "unknown")
    assert ("commit unknown" in capsys.readouterr().err) == (commit == "")


def test_check_tells_a_report_that_was_edited(conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "--check") == 0
    assert "nothing is measured yet" in capsys.readouterr().out
    call(tmp_path)
    assert call(tmp_path, "--check") == 0
    report = tmp_path / "results/claims.md"
    report.write_text(report.read_text().replace("**does not hold**", "**holds**"))
    assert call(tmp_path, "--check") == 1
    call(tmp_path)
    assert call(tmp_path, "--check") == 0
    (conf / "claims.yaml").write_text(LEDGER.replace("at_most: 0.001", "at_most: 1000"))
    assert call(tmp_path, "--check") == 1


def test_wrong_input_ends_with_2_before_anything_is_measured(
    conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, "droput") == 2
    assert "no claim 'droput' (did you mean 'dropout'?)" in capsys.readouterr().err
    (conf / "claims.yaml").write_text(
        LEDGER.replace("keep: 0.5", "keep: 2").replace("losses\n    parameters", "x\n    parameters")
    )
    assert call(tmp_path) == 2
    err = capsys.readouterr().err
    assert "claims.formulas.experiment: no such experiment 'x'" in err
    assert "claims.dropout.parameters.keep: expected a probability in (0, 1), got 2.0" in err
    assert not (tmp_path / "results").exists()
    (conf / "claims.yaml").write_text(LEDGER)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/claims.json").write_text('{"formulas": {}}')
    assert call(tmp_path) == 2
    assert "claims.json: formulas: expected the keys" in capsys.readouterr().err


@pytest.mark.usefixtures("conf")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file")
    assert call(tmp_path) == 2
    told = capsys.readouterr().err
    assert "results: " in told
    assert "1/" not in told.replace(str(tmp_path), "")  # the first claim's turn


def test_numbers_that_were_taken_out_are_missed(
    conf: Path,  # noqa: ARG001
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(tmp_path)
    path = tmp_path / "results/claims.json"
    path.write_text(path.read_text().replace("unscaled_error", "other_error"))
    capsys.readouterr()
    assert call(tmp_path, "--check") == 2
    assert "claims.json: dropout: not the numbers that its experiment gives" in capsys.readouterr().err
