"""The determinism report says what was seen: promises that hold, one that is broken, other specs that differ."""

import itertools
from pathlib import Path

import pytest
from tests.support import trained

import remeasure.training.seeding
from remeasure.cli import determinism
from remeasure.cli.determinism import Finding, Runs, findings, to_markdown
from remeasure.config.compose import compose

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


def test_the_table_has_a_line_a_case() -> None:
    cases = [Finding(run="a", case="again", promised=True, same=None, note="its data are not here")]
    assert "| a | again | yes | not tried (its data are not here) |" in to_markdown(cases, device="x", when="today")


@pytest.mark.parametrize("name", determinism.RUNS)
def test_every_run_of_the_report_is_a_config_that_trains(name: str) -> None:
    assert compose([*determinism.RUNS[name]]).spec(data_sha256="").mode == "train"
