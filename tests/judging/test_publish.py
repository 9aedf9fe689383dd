"""Which seeds may take the place of a row's record, and that the table follows at once, also after a crash."""

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest
from tests.support.measured import LABELS, LEDGER, ROW, diverged, otherwise_wrong, part, seeds, snapshot

import remeasure.judging.publish
from remeasure.judging import ledger
from remeasure.judging.publish import is_decided, may_replace, offer, publish, recover, write
from remeasure.judging.reader import read_runs
from remeasure.judging.records import put_together
from remeasure.judging.report.page import TestSplit
from remeasure.judging.table import build, to_markdown
from remeasure.judging.verify import verify
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row, Rule

OPEN, DECIDED = 0.1, 3.0  # margins: five seeds of the tiny row have the mean 94.0, as published, and sd 1.37


@pytest.fixture
def tiny(tmp_path: Path) -> Row:
    """The row of the ledger, with looks of 5 and 10 seeds; five leave it undecided."""
    (tmp_path / "ledger.yaml").write_text(LEDGER)
    return with_margin(ledger.read(tmp_path / "ledger.yaml")[ROW], OPEN)


def with_margin(row: Row, margin: float) -> Row:
    return dataclasses.replace(row, rule=Rule(margin_pp=margin, looks=(5, 10)))


# ---------------------------------------------------------------- the rule


def test_a_row_without_a_record_takes_any_seed(tiny: Row) -> None:
    assert may_replace(None, seeds(3), row=tiny, fresh=False)


def test_a_campaign_that_has_ended_replaces_the_record_of_another_spec_device_or_data(tiny: Row) -> None:
    few, decided, plan = seeds(0, 1, 2, 3), seeds(*range(5)), seeds(*range(10))
    for changes in ({"device_kind": "cuda"}, {"commit": "e15e"}):
        recorded = seeds(*range(10), **changes)
        assert may_replace(recorded, plan, row=tiny, fresh=False), "the plan is exhausted"
        assert not may_replace(recorded, decided, row=tiny, fresh=False), "undecided, and the plan goes on"
    elsewhere = seeds(*range(10), device_kind="cuda")
    assert may_replace(elsewhere, decided, row=with_margin(tiny, DECIDED), fresh=False)
    assert not may_replace(elsewhere, few, row=with_margin(tiny, DECIDED), fresh=False)


def test_more_seeds_of_the_same_campaign_replace_fewer_while_these_decide_nothing(tiny: Row) -> None:
    assert may_replace(seeds(0, 1), seeds(0, 1, 2), row=tiny, fresh=False)
    assert may_replace(seeds(*range(5)), seeds(*range(7)), row=tiny, fresh=False)
    assert not may_replace(seeds(0, 1), seeds(1, 2, 3), row=tiny, fresh=False), "seed 0 would be lost"
    assert not may_replace(seeds(0, 1, device_kind="cuda"), seeds(0, 1, 2), row=tiny, fresh=False)


def test_a_decided_record_never_gives_way_to_seeds_that_decide_nothing(tiny: Row) -> None:
    """Such as the same seeds, of which one diverges by now."""
    recorded = seeds(*range(5))
    worse = put_together(ROW, seeds=[*(part(seed) for seed in (0, 1, 3, 4, 5)), diverged(2)])
    assert not may_replace(recorded, worse, row=with_margin(tiny, DECIDED), fresh=False)
    assert may_replace(recorded, worse, row=with_margin(tiny, DECIDED), fresh=True)


def test_a_record_of_seeds_that_the_rule_does_not_count_gives_way_to_the_first_that_it_counts(tiny: Row) -> None:
    later = dataclasses.replace(tiny, rule=Rule(margin_pp=DECIDED, looks=(5, 10), first_seed=5))
    assert may_replace(seeds(*range(5)), seeds(5), row=later, fresh=False)
    assert not may_replace(seeds(*range(5), 6), seeds(5), row=later, fresh=False)


def test_a_record_of_other_configs_counts_nothing_and_stays_until_a_campaign_has_ended(tiny: Row) -> None:
    row = dataclasses.replace(with_margin(tiny, DECIDED), recipe="longer")
    recorded = seeds(*range(5))
    (line,) = build({ROW: row}, records={ROW: recorded.records}, specs={ROW: recorded.spec})
    assert (line.verdict, line.num_seeds, line.device, line.commit) == ("not measured", 0, None, None)
    assert line.reason == "the record is of another run than the ledger's: recipe short, not longer"
    shown = to_markdown([line], rows={ROW: row}, records={ROW: recorded.records})
    assert "every seed" not in shown
    assert not is_decided(recorded, row=row)
    assert not may_replace(recorded, seeds(0, 1, 2, commit="e15e"), row=row, fresh=False)


def test_a_record_that_holds_the_same_seeds_and_more_stays(tiny: Row) -> None:
    decided = with_margin(tiny, DECIDED)
    assert not may_replace(seeds(*range(7)), seeds(*range(5)), row=decided, fresh=False)
    assert may_replace(seeds(*range(7)), otherwise_wrong(seeds(*range(5))), row=decided, fresh=False)
    assert may_replace(seeds(*range(7)), seeds(*range(5)), row=decided, fresh=True)


def test_a_rule_that_changes_after_its_first_seed_is_told_for_as_long_as_that_seed_is_judged(
    tiny: Row, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    offer(results, seeds(*range(5)), row=tiny)
    (before,) = build({ROW: tiny}, records={ROW: read_runs(results, row=ROW)})
    assert (before.verdict, before.marks) == ("undecided", "")
    wider = with_margin(tiny, DECIDED)
    for _ in range(2):  # the second time from new trainings
        (line,) = build({ROW: wider}, records={ROW: read_runs(results, row=ROW)})
        assert line.verdict + line.marks == "reproduced (rule changed)"
        assert line.rule_before == tiny.rule_text
        assert f"{tiny.rule_text} then, {wider.rule_text} now" in line.reason
        offer(results, otherwise_wrong(seeds(*range(5))), row=wider, fresh=True)
    later = dataclasses.replace(wider, rule=Rule(margin_pp=DECIDED, looks=(5, 10), first_seed=5))
    offer(results, seeds(*range(5, 10)), row=later, fresh=True)
    (line,) = build({ROW: later}, records={ROW: read_runs(results, row=ROW)})
    assert line.verdict + line.marks == "reproduced"


# ---------------------------------------------------------------- results/ as they are by then


def test_seeds_are_weighed_against_what_results_holds_now_not_at_the_start(tiny: Row, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert offer(results, seeds(0), row=tiny)
    assert offer(results, seeds(0, 1, 2), row=tiny)
    before = snapshot(results)
    assert not offer(results, seeds(0, 1), row=tiny)
    assert snapshot(results) == before
    assert offer(results, seeds(0, 1), row=tiny, fresh=True)
    assert [entry.seed for entry in read_runs(results, row=ROW)] == [0, 1]


def test_files_that_are_half_staged_never_reach_results(
    tiny: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a publication whose table could not be written, as the README has lost its markers."""
    results = tmp_path / "results"

    def no_markers() -> None:
        raise InputError("README")

    assert offer(results, seeds(0, 1), row=tiny, then=no_markers)
    before = snapshot(results / "runs") | snapshot(results / "curves")
    written = list[Path]()

    def full(path: Path, data: bytes) -> None:
        if len(written) == 3:
            path.write_bytes(data[:20])
            raise OSError("no space left")
        written.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(remeasure.judging.publish, "write_synced", full)
        with pytest.raises(OSError, match="no space"):
            offer(results, seeds(0, 1, 2), row=tiny, then=no_markers)
    recover(results)
    assert snapshot(results / "runs") | snapshot(results / "curves") == before
    assert [entry.seed for entry in read_runs(results, row=ROW)] == [0, 1]


def test_a_replacement_that_was_killed_leaves_the_record_alone_that_was_brought_back_meanwhile(
    tiny: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `git checkout`: six seeds are there again when the next command starts."""
    results, committed = tmp_path / "results", seeds(*range(6)).to_files()
    real, left = os.replace, [2]

    def killed(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            offer(results, seeds(0), row=tiny)
    for name, data in committed.items():
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).write_bytes(data)
    recover(results)
    assert {name: (results / name).read_bytes() for name in committed} == committed
    assert not list(results.glob(".staging-*"))


@pytest.mark.parametrize("name", ["replace", "unlink"])
def test_the_table_fits_to_the_row_wherever_a_publication_was_broken_off(
    tiny: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    results, readme, path = tmp_path / "results", tmp_path / "README.md", tmp_path / "ledger.yaml"
    readme.write_text("<!-- table:begin -->\n<!-- table:end -->\n")

    def table() -> None:
        write(path, results=results, readme_path=readme)

    real, ended = getattr(os, name), False
    for call in range(40):
        publish(results, row=ROW, files=seeds(0, 1).to_files())
        table()
        left = [call]

        def broken(*arguments: object, left: list[int] = left, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with contextlib.suppress(KeyboardInterrupt):
                ended = offer(results, seeds(0, 1, 2), row=tiny, then=table)
        recover(results, then=table)
        report = verify(path, results=results, splits=lambda _: TestSplit(LABELS), readme_path=readme)
        assert report.faults == ()
        if ended:
            break
    assert ended
    assert call > 0


def test_the_file_of_a_row_that_was_never_measured_goes_with_the_row(tiny: Row, tmp_path: Path) -> None:
    results, ledger_path = tmp_path / "results", tmp_path / "ledger.yaml"
    offer(results, seeds(0), row=tiny)
    write(ledger_path, results=results, readme_path=None)
    (other,) = ledger.read(ledger_path).keys() - {ROW}
    assert (results / f"runs/{other}.csv").is_file()
    ledger_path.write_text(LEDGER.replace(f"{other}:", f"{other}-renamed:"))
    write(ledger_path, results=results, readme_path=None)
    assert {path.stem for path in (results / "runs").iterdir()} == {ROW, f"{other}-renamed"}
    assert verify(ledger_path, results=results, splits=lambda _: None, readme_path=None).ok
