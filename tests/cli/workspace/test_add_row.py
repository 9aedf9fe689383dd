"""`remeasure add-row`: the entry, its margin, and the rest of the ledger byte for byte."""

from pathlib import Path

import pytest
from tests.support.project import CHECKOUT, Command, Ended, Project

from remeasure.judging import ledger
from remeasure.spec.claim import Source

REQUIRED = {
    "--model": "mlp2",
    "--data": "digits",
    "--recipe": "article",
    "--accuracy": "98.20",
    "--params": "19,210",
    "--citation": "Somebody 2020: a paper # 1",
    "--where": "table 1",
    "--says": "98.20 %",
    "--grade": "primary",
}
ROW = """  mlp4-digits: # an example
    model: mlp4
    data: digits
    recipe: article
    mode: train
    published:
      accuracy_percent: 95.0
      num_digits: 1
      num_params_text: "300k"
      num_runs: null
      selection: null
      sources: [{citation: nobody, where: nowhere, says: nothing, grade: unsourced}]
      notes: none
    rule: {margin_pp: 2.0}
    # the end of the example
"""
LEDGERS = {
    "rows alone": ("# a comment\nrows:\n" + ROW, ""),
    "without a line's end": ("rows:\n" + ROW.rstrip("\n"), ""),
    "nothing yet": ("# a comment\nrows:\n", ""),
    "something after the rows": ("rows:\n" + ROW, "\n# where\narticle:\n  title: a\n  publisher: b\n  names: {}\n"),
}


def add(here: Command, path: Path, **changes: str) -> Ended:
    given = REQUIRED | {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    arguments = [word for pair in given.items() for word in pair]
    return here(Project(root=CHECKOUT), "remeasure", "--conf", str(path.parent), "add-row", *arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "conf/benchmark.yaml"
    path.parent.mkdir()
    path.write_text("rows:\n" + ROW)
    return path


@pytest.mark.parametrize("written", LEDGERS)
def test_an_entry_is_appended_and_the_rest_of_the_file_stays(written: str, path: Path, here: Command) -> None:
    before, after = LEDGERS[written]
    path.write_text(before + after)
    ended = add(here, path)
    assert ended.status == 0, ended.stderr
    assert "mlp2-digits added, margin 0.25 percentage points" in ended.stdout
    text = path.read_text()
    assert text.startswith(before)
    assert text.endswith(after)
    row = list(ledger.read(path).values())[-1]
    assert (row.name, row.rule.margin_pp, row.rule.looks) == ("mlp2-digits", 0.25, (5, 10, 20))
    assert (row.published.accuracy_percent, row.published.num_digits, row.published.num_runs) == (98.2, 2, None)
    said = Source(citation="Somebody 2020: a paper # 1", where="table 1", says="98.20 %", grade="primary")
    assert row.published.sources == (said,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "mlp4"}, "{path}: rows.mlp4-digits: is there already; --variant names another claim about it"),
        ({"model": "mlp5"}, "row mlp5-digits: model: no {conf}/model/mlp5.yaml (did you mean 'mlp4'?); valid: "),
        ({"accuracy": "98,2"}, "argument --accuracy: expected an accuracy as printed, such as 93.0, got '98,2'"),
        (
            {"accuracy": "982"},
            "rows.mlp2-digits.published.accuracy_percent: expected a percentage in (0, 100]",
        ),
        (
            {"accuracy": "0.93"},
            "rows.mlp2-digits.published.accuracy_percent: 0.93 looks like a fraction; expected percent, perhaps 93",
        ),
        ({"params": "many"}, "rows.mlp2-digits.published.num_params_text: expected a count like '7,850'"),
        ({"citation": ""}, "rows.mlp2-digits.published.sources.0.citation: must not be empty"),
        ({"grade": "good"}, "argument --grade: invalid choice: 'good'"),
        ({"num_runs": "-1"}, "rows.mlp2-digits.published.num_runs: expected 1 or more"),
        ({"sd": "wide"}, "argument --sd: invalid float value: 'wide'"),
        ({"looks": "10,5"}, "rows.mlp2-digits.rule.looks: expected rising numbers of seeds, got [10, 5]"),
        ({"first_seed": "990"}, "rows.mlp2-digits.rule.looks: expected seeds from 0 to 999, got 990 to 1009"),
        ({"variant": "Big One"}, "{path}: rows.mlp2-digits-Big One: expected a name <model>-<data>[-variant]"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line(changes: dict[str, str], said: str, path: Path, here: Command) -> None:
    before = path.read_bytes()
    ended = add(here, path, **changes)
    assert (ended.status, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(said.format(path=path, conf=path.parent))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"error": "1.80"}, "mlp2-digits added, margin 0.25 percentage points"),
        ({"macro_f1": "98.2", "margin": "0.5"}, "mlp2-digits added, margin 0.5 percentage points"),
        ({"macro_f1": "98.2", "sd": "0.2"}, "mlp2-digits added, margin 0.45 percentage points"),
        ({"macro_f1": "98.2"}, "--sd or --margin: expected one; no usual sd between seeds is known for macro F1"),
        ({"top5": "99.9", "accuracy": "98"}, "argument --accuracy: not allowed with argument --top5"),
    ],
)
def test_a_claim_about_another_metric(
    given: dict[str, str], said: str, path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(REQUIRED, "--accuracy")
    ended = add(here, path, **given)
    assert said in ended.stdout + ended.stderr
    if ended.status == 0:
        row, key = ledger.read(path)["mlp2-digits"], next(iter(given))
        assert (row.metric, row.published.percent) == (f"{key}_percent", float(given[key]))


def test_a_number_of_parameters_may_be_left_out(path: Path, here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REQUIRED, "--params")
    ended = add(here, path)
    assert ended.status == 0, ended.stderr
    assert ledger.read(path)["mlp2-digits"].published.num_params_text is None


def test_the_margin_is_the_one_that_each_row_of_this_project_has() -> None:
    rows = ledger.read(CHECKOUT / "conf/benchmark.yaml").values()
    assert len(rows) > 10
    for row in rows:
        published = row.published
        margin = ledger.margin_pp(
            num_digits=published.num_digits,
            num_runs=published.num_runs,
            sd_pp=0.12 if row.model == "resnet18" else 0.10,
            mode=row.mode,
        )
        assert margin == row.rule.margin_pp, row.name
    assert ledger.margin_pp(num_digits=2, num_runs=4, sd_pp=0.2, mode="train") == 0.25, "0.005 + 0.196"
