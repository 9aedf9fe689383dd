"""The determinism report says what was seen: promises that hold, one that is broken, other specs that differ."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from tests.support import trained

import remeasure.training.seeding
from remeasure.cli import determinism
from remeasure.cli.determinism import Finding, Runs, findings, to_markdown
from remeasure.config.compose import compose
from remeasure.spec.base import DataMissingError
from remeasure.spec.config import Config
from remeasure.spec.run import RunSpec

SPEC = trained.spec("model=mlp4", "model.options.hidden_sizes=[16,16]", "recipe.epochs_total=2")


def test_every_promise_holds_on_a_net_with_dropout_and_other_specs_are_other_numbers(tmp_path: Path) -> None:
    found = list(findings("mlp4", SPEC, runs=Runs(trained.place(tmp_path))))
    assert [each.case for each in found if each.promised] == [
        "again in the same process",
        "in a process of its own",
        "beside and after other seeds, one process a core",
        "cut short in every epoch and resumed",
        "seeds as one (engine=batched), twice",
    ]
    assert all(each.same for each in found if each.promised)
    assert {each.case: each.same for each in found}["the other precision"] is False


def test_numbers_that_move_break_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()

    def unseeded(seed: int, *, purpose: str, step: int) -> int:  # noqa: ARG001
        return next(counter)

    monkeypatch.setattr(remeasure.training.seeding, "derive", unseeded)
    runs = Runs(trained.place(tmp_path))
    assert runs.alone(SPEC) != runs.alone(SPEC)


def test_a_resumed_run_was_really_cut(tmp_path: Path) -> None:
    runs = Runs(trained.place(tmp_path))
    runs.cut_short(SPEC)
    (journal,) = (tmp_path / "runs").glob("*/*/journal.jsonl")
    assert journal.read_text().count('"resumed"') == 2


@pytest.mark.parametrize(("same", "status", "line"), [(True, 0, "No promise was broken."), (False, 1, "1 promises")])
def test_a_broken_promise_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, same: bool, status: int, line: str
) -> None:
    cases = [
        Finding(run="a", case="again", promised=True, same=same),
        Finding(run="a", case="b", promised=False, same=False),
    ]
    monkeypatch.setattr(determinism, "RUNS", {"logreg, L-BFGS": determinism.RUNS["logreg, L-BFGS"]})
    monkeypatch.setattr(determinism, "findings", lambda *_, **__: iter(cases))
    assert determinism.main(["--results", str(tmp_path)]) == status
    assert line in (tmp_path / "determinism.md").read_text()


def report_of(folder: Path, *, monkeypatch: pytest.MonkeyPatch, lacks: tuple[str, ...] = ()) -> int:
    """The command's exit status, where all that is tried holds. `lacks`: data sets that are not here."""

    def identified(config: Config, **_: object) -> RunSpec:
        if config.data.name in lacks:
            raise DataMissingError("not here")
        return config.spec(data_sha256="")

    def tried(name: str, spec: RunSpec, *, runs: Runs) -> list[Finding]:  # noqa: ARG001
        return [dataclasses.replace(each, same=True) for each in determinism.untried(name, spec, note="")]

    monkeypatch.setattr(determinism, "identified", identified)
    monkeypatch.setattr(determinism, "findings", tried)
    return determinism.main(["--results", str(folder)])


def test_a_report_without_the_data_counts_what_was_not_tried_and_never_replaces_a_fuller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "determinism.md"
    assert report_of(tmp_path, monkeypatch=monkeypatch, lacks=("mnist", "cifar10")) == 0
    less = path.read_text()
    assert "No promise was broken; 9 of 18 were not tried." in less
    assert less.count("| yes | not tried (its data are not here) |") == 9
    assert report_of(tmp_path, monkeypatch=monkeypatch) == 0
    whole = path.read_text()
    assert whole.endswith("\nNo promise was broken.\n")
    assert report_of(tmp_path, monkeypatch=monkeypatch, lacks=("cifar10",)) == 1
    assert path.read_text() == whole
    assert f"{path} stays: it tried 18 promises, this call 14\n" in capsys.readouterr().err


def test_the_table_has_a_line_a_case() -> None:
    cases = [Finding(run="a", case="again", promised=True, same=None, note="its data are not here")]
    assert "| a | again | yes | not tried (its data are not here) |" in to_markdown(cases, device="x", when="today")


@pytest.mark.parametrize("name", determinism.RUNS)
def test_every_run_of_the_report_is_a_config_that_trains(name: str) -> None:
    assert compose([*determinism.RUNS[name]]).spec(data_sha256="").mode == "train"
