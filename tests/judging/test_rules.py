"""The rule that a seed's number was first seen under sticks to the seed, whatever becomes of its record."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.measured import LEDGER, ROW, seeds
from tests.support.project import CHECKOUT, Command, Project

from remeasure.cli.workspace import new
from remeasure.judging import ledger
from remeasure.judging.publish import offer
from remeasure.judging.reader import read_runs
from remeasure.judging.rules import first_rules, take_over
from remeasure.spec.base import InputError
from remeasure.spec.claim import Rule

END = "2026-11-28T09:00:00Z"


def test_a_seed_keeps_its_first_rule_and_new_seeds_get_today_s(tmp_path: Path) -> None:
    (tmp_path / "ledger.yaml").write_text(LEDGER)
    row = ledger.read(tmp_path / "ledger.yaml")[ROW]
    later = replace(row, rule=Rule(margin_pp=9.0, first_seed=1))
    assert first_rules(tmp_path, row=row, finished={0: END, 1: END}) == {0: row.rule_text, 1: row.rule_text}
    after = first_rules(tmp_path, row=later, finished={1: END, 2: END})
    assert after == dict(enumerate([row.rule_text] * 2 + [later.rule_text]))
    known = seeds(1)
    records = tuple(replace(record, rule=row.rule_text) for record in known.records)
    offer(tmp_path / "results", replace(known, records=records), row=later)
    assert [record.rule for record in read_runs(tmp_path / "results", row=ROW)] == [row.rule_text]


def test_a_seed_of_another_machine_keeps_the_rule_under_which_that_machine_saw_it(tmp_path: Path) -> None:
    (tmp_path / "ledger.yaml").write_text(LEDGER)
    row = ledger.read(tmp_path / "ledger.yaml")[ROW]
    first_rules(tmp_path / "theirs", row=replace(row, rule=Rule(margin_pp=0.1)), finished={0: END, 1: END})
    ours = first_rules(tmp_path / "ours", row=row, finished={0: END})
    take_over(tmp_path / "theirs", runs=tmp_path / "ours")
    (tmp_path / "broken/rules").mkdir(parents=True)
    (tmp_path / "broken/rules/mlp.json").touch()
    with pytest.raises(InputError, match=r"mlp\.json: damaged"):
        take_over(tmp_path / "broken", runs=tmp_path / "ours")
    after = first_rules(tmp_path / "ours", row=row, finished=dict.fromkeys(range(3), END))
    assert after[0] == ours[0] == after[2]
    assert "margin 0.1," in after[1]


def test_a_rule_written_after_a_number_was_seen_is_told_though_results_never_had_it(
    tmp_path: Path, here: Command
) -> None:
    """Seen by `train`, then by a campaign whose results are removed."""
    root, project = tmp_path / "mine", Project(root=CHECKOUT)
    new.main([str(root)])
    path = root / "conf/benchmark.yaml"
    path.write_text(path.read_text().replace("looks: [5]", "looks: [2]").replace("margin_pp: 2.0", "margin_pp: 0.1"))
    first = here(project, "remeasure", "--conf", str(root), "train", "model=my_net", "seed=0", "observer=[terminal]")
    assert first.status == 0, first.stderr
    path.write_text(path.read_text().replace("margin_pp: 0.1", "margin_pp: 9.0"))
    done = here(project, "remeasure", "--conf", str(root), "reproduce")
    assert done.status == 0, done.stderr
    assert "reproduced (rule changed)" in done.stdout
    assert "margin 0.1, confidence 0.95, looks 2 then, " in done.stdout
    path.write_text(path.read_text().replace("margin_pp: 9.0", "margin_pp: 8.0"))
    shutil.rmtree(root / "results")
    again = here(project, "remeasure", "--conf", str(root), "reproduce")
    assert again.status == 0, again.stderr
    assert "margin 0.1, confidence 0.95, looks 2 then, " in again.stdout


def test_a_row_that_is_written_after_another_one_s_seeds_were_seen_does_not_pass_for_the_first(
    tmp_path: Path, here: Command
) -> None:
    """A row of the same spec under another name has its seeds already, and their numbers are known."""
    root, project = tmp_path / "mine", Project(root=CHECKOUT)
    new.main([str(root)])
    path = root / "conf/benchmark.yaml"
    path.write_text(path.read_text().replace("looks: [5]", "looks: [2]").replace("margin_pp: 2.0", "margin_pp: 9.0"))
    text = path.read_text()
    (name,) = ledger.read(path)

    def verdicts(written: str) -> str:
        path.write_text(written)
        done = here(project, "remeasure", "--conf", str(root), "reproduce", "--observers", "terminal")
        assert done.status == 0, done.stderr
        return done.stdout

    assert "(rule changed)" not in verdicts(text)
    entry = text[text.index(f"  {name}:") :].rstrip()
    time.sleep(1)  # the times that are compared have whole seconds
    second = verdicts(f"{text.rstrip()}\n{entry.replace(name, f'{name}-after')}\n")
    assert second.count("reproduced (rule changed)") == 1
    assert "a number was seen: no such claim then, " in second
