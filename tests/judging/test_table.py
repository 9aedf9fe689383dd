import csv
import dataclasses
import io
from pathlib import Path

import pytest
from tests.support.measured import LEDGER, ROW, group, record, snapshot

from remeasure.judging import ledger, publish, table
from remeasure.judging.reader import read_runs
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row
from remeasure.spec.findings import ADVICE, CHECKLIST
from remeasure.spec.record import RunRecord
from remeasure.spec.run import TRAINING_VERSION

COLUMNS = (  # as the design document prints them
    "row,model,data,mode,published_percent,published_params,num_params,mean_percent,sd_percent,num_seeds,"
    "interval_low_percent,interval_high_percent,margin_pp,verdict,seeds_needed,data_sha256,data_official,device,"
    "seconds_per_seed,commit,measured_on,confidence,looks,wilson_low_percent,wilson_high_percent,params_audit,stale,"
    "reason,ledger_sha256"
)
README = "# Title\n\n<!-- table:begin -->\nold\n<!-- table:end -->\n\nafter\n"


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Row]:
    (tmp_path / "benchmark.yaml").write_text(LEDGER)
    return ledger.read(tmp_path / "benchmark.yaml")


def cells(rows: dict[str, Row], records: list[RunRecord]) -> dict[str, str]:
    """The tiny row's line of table.csv."""
    text = table.to_csv(table.build(rows, records={ROW: records})).decode()
    return next(line for line in csv.DictReader(io.StringIO(text)) if line["row"] == ROW)


def markdown(rows: dict[str, Row], records: list[RunRecord]) -> str:
    lines = table.build(rows, records={ROW: records})
    return table.to_markdown(lines, rows=rows, records={ROW: records})


def five(**changes: object) -> list[RunRecord]:
    return [record(seed, **changes) for seed in range(5)]


def test_the_columns_are_the_documented_ones(rows: dict[str, Row]) -> None:
    assert table.to_csv(table.build(rows, records={})).decode().splitlines()[0] == COLUMNS


def test_mean_sd_and_interval_are_those_worked_by_hand(rows: dict[str, Row]) -> None:
    line = cells(rows, five())
    # 95, 92.5, 95, 92.5, 95: mean 94, sd √(7.5/4) = 1.36931; t(4, 1 - 0.05/3) = 3.18632 (scipy: t.ppf), so
    # h = 3.18632·1.36931/√5 = 1.95121
    assert line["mean_percent"] == "94.000"
    assert line["sd_percent"] == "1.369"
    assert (line["interval_low_percent"], line["interval_high_percent"]) == ("92.049", "95.951")
    assert line["num_seeds"] == "5"
    assert line["verdict"] == "reproduced"


def test_wilson_interval_is_over_the_test_items_as_in_statsmodels(rows: dict[str, Row]) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(0.94 * 40, 40, alpha=0.05, method="wilson")
    line = cells(rows, five())
    assert (line["wilson_low_percent"], line["wilson_high_percent"]) == (f"{100 * low:.3f}", f"{100 * high:.3f}")


def test_claim_and_rule_come_from_the_ledger(rows: dict[str, Row]) -> None:
    line = cells(rows, five())
    assert (line["model"], line["data"], line["mode"]) == ("tiny", "shapes", "train")
    assert (line["published_percent"], line["published_params"], line["margin_pp"]) == ("94.000", "61", "3.000")
    assert (line["confidence"], line["looks"]) == ("0.95", "5 10 20")
    assert line["ledger_sha256"] == ledger.row_sha256(rows[ROW])


def test_provenance_is_that_of_the_judged_seed_that_finished_last(rows: dict[str, Row]) -> None:
    records = five()
    records[1] = record(1, finished_at="2026-11-23T00:00:00Z", device="Late CPU", commit="abc", wall_seconds=11.0)
    beyond = record(5, finished_at="2026-12-01T00:00:00Z", device="Unjudged CPU", commit="fff", wall_seconds=500.0)
    line = cells(rows, [*records, beyond])
    assert (line["device"], line["commit"], line["measured_on"]) == ("Late CPU", "abc", "2026-11-23")
    assert line["seconds_per_seed"] == "5.0"  # (1.25 + 11 + 3.25 + 4.25 + 5.25)/5


def test_one_dirty_judged_seed_marks_the_commit(rows: dict[str, Row]) -> None:
    records = five()
    assert cells(rows, records)["commit"] == "c0ffee"
    assert cells(rows, [record(0, dirty=True), *records[1:]])["commit"] == "c0ffee-dirty"
    assert cells(rows, [*records, record(5, dirty=True)])["commit"] == "c0ffee"


@pytest.mark.parametrize(("version", "stale"), [(TRAINING_VERSION, ""), (TRAINING_VERSION - 1, "yes")])
def test_a_record_of_an_older_training_version_is_stale(rows: dict[str, Row], version: int, stale: str) -> None:
    records = five(training_version=version)
    assert cells(rows, records)["stale"] == stale
    assert ("(stale)" in markdown(rows, records)) == bool(stale)


def test_a_row_without_a_record_is_not_measured_and_says_why(rows: dict[str, Row]) -> None:
    line = cells(rows, [])
    assert (line["verdict"], line["num_seeds"]) == ("not measured", "0")
    assert "no record" in line["reason"]
    for column in ("mean_percent", "num_params", "device", "data_official", "wilson_low_percent", "commit", "stale"):
        assert line[column] == "", column


def test_a_row_without_a_record_says_how_to_measure_it(rows: dict[str, Row]) -> None:
    assert f"`make reproduce ROWS={ROW}` measures it" in markdown(rows, [])
    assert "measures it" not in next(
        line for line in markdown(rows, five()).splitlines() if line.startswith(f"- **{ROW}")
    )


@pytest.mark.parametrize(("printed", "audit"), [("62", "differs: another net"), ("61", "exact")])
def test_the_audit_says_why_the_printed_number_of_parameters_is_not_ours(
    rows: dict[str, Row], printed: str, audit: str
) -> None:
    published = dataclasses.replace(rows[ROW].published, num_params_text=printed, num_params_note="another net")
    noted = {**rows, ROW: dataclasses.replace(rows[ROW], published=published)}
    assert cells(noted, five())["params_audit"] == audit
    assert ("the number of parameters differs: another net" in markdown(noted, five())) == ("differs" in audit)


def test_a_number_of_parameters_that_is_not_stated_is_an_empty_cell(rows: dict[str, Row]) -> None:
    published = dataclasses.replace(rows[ROW].published, num_params_text=None)
    unstated = {**rows, ROW: dataclasses.replace(rows[ROW], published=published)}
    line = cells(unstated, five())
    assert (line["published_params"], line["params_audit"]) == ("", "not stated")
    assert "| 61 counted: not stated |" in markdown(unstated, five())


def test_a_seed_that_diverged_leaves_the_row_undecided_but_known(rows: dict[str, Row]) -> None:
    lost = record(0, accuracy_percent=None, num_correct=None, loss=None, predicted_sha256=None)
    records = [lost, *five()[1:]]
    line = cells(rows, records)
    assert line["verdict"] == "undecided"
    assert "seed 0 diverged" in line["reason"]
    assert (line["mean_percent"], line["device"]) == ("", "Some CPU, two cores")
    assert "0: diverged, 1: 92.500, 2: 95.000" in markdown(rows, records)


def test_all_seeds_right_is_a_hundred_percent(rows: dict[str, Row]) -> None:
    line = cells(rows, five(num_correct=40, accuracy_percent=100.0))
    assert (line["mean_percent"], line["verdict"], line["wilson_high_percent"]) == ("100.000", "exceeds", "100.000")


def test_the_table_keeps_the_ledgers_order(rows: dict[str, Row]) -> None:
    assert [line.row for line in table.build(rows, records={})] == [ROW, "other-shapes"]


# ---------------------------------------------------------------- for a reader


def test_markdown_says_first_that_it_is_generated_and_by_what(rows: dict[str, Row]) -> None:
    first = markdown(rows, five()).splitlines()[0]
    assert "Generated" in first
    assert "`make reproduce`" in first


def test_markdown_shows_claim_measurement_and_every_seed(rows: dict[str, Row]) -> None:
    text = markdown(rows, [*five(), record(5)])
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {ROW} |")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *(ROW, "94.0", "94.00 ± 1.37 (n = 5)", "shapes", "92.05 to 95.95", "reproduced"),
        *("61 published, 61 counted: exact", "Some CPU, two cores"),
    ]
    assert "0: 95.000, 1: 92.500, 2: 95.000, 3: 92.500, 4: 95.000, 5: 95.000" in text
    assert "| other-shapes | 50.25 |" in text


def test_what_was_measured_has_as_many_decimals_as_the_claim(rows: dict[str, Row]) -> None:
    claim = dataclasses.replace(rows[ROW].published, num_digits=3)
    text = markdown(rows | {ROW: dataclasses.replace(rows[ROW], published=claim)}, five())
    assert f"| {ROW} | 94.000 | 94.000 ± 1.369 (n = 5) | shapes | 92.049 to 95.951 |" in text


@pytest.mark.parametrize("official", ["no", "unknown"])
def test_data_that_are_not_official_are_marked_beside_the_number(rows: dict[str, Row], official: str) -> None:
    records = five(data_official=official)
    lines = table.build(rows, records={ROW: records})
    assert f"(n = 5) | shapes (data_official: {official}) |" in markdown(rows, records)
    assert f"(n = 5) | shapes (data_official: {official}) |" in table.readme_block(lines, rows=rows)
    assert "the data fingerprint is" in markdown(rows, records)
    assert "official" not in markdown(rows, five())


def test_known_copies_are_named_in_the_documented_words(rows: dict[str, Row]) -> None:
    assert "the data fingerprint is not the official one" in markdown(rows, five(data_official="no"))


def test_a_bar_in_a_name_does_not_break_the_markdown(rows: dict[str, Row]) -> None:
    assert r"CPU \| two cores |" in markdown(rows, five(device="CPU | two cores"))


# ---------------------------------------------------------------- the files


def test_readme_keeps_everything_but_its_block() -> None:
    block = r"<!-- table:begin (generated) --> \1 new <!-- table:end -->"
    once = table.update_readme(README, block=block)
    assert once == f"# Title\n\n{block}\n\nafter\n"
    assert table.update_readme(once, block=block) == once


@pytest.mark.parametrize("text", ["", "<!-- table:end --> <!-- table:begin -->", README + README])
def test_a_readme_without_one_pair_of_markers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="<!-- table:begin -->"):
        table.update_readme(text, block="")


def test_writing_fills_the_files_and_a_second_time_touches_none(tmp_path: Path, rows: dict[str, Row]) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    readme.write_bytes(README.encode() + b"\xff")
    publish.publish(results, row=ROW, files=group().to_files())
    publish.write(tmp_path / "benchmark.yaml", results=results, readme_path=readme)
    expected = table.build(rows, records={ROW: read_runs(results, row=ROW)})
    assert (results / "table.csv").read_bytes() == table.to_csv(expected)
    assert (results / "runs/other-shapes.csv").read_text().startswith("row,seed,")
    assert b"| tiny-shapes | 94.0 | 94.00" in readme.read_bytes()
    assert readme.read_bytes().endswith(b"after\n\xff")
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    publish.write(tmp_path / "benchmark.yaml", results=results, readme_path=readme)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_the_report_says_what_the_doctor_found_why_and_what_to_try(tmp_path: Path, rows: dict[str, Row]) -> None:
    assert rows
    publish.publish(tmp_path / "results", row=ROW, files=group().to_files())
    publish.write(tmp_path / "benchmark.yaml", results=tmp_path / "results", readme_path=None)
    (line,) = [
        line for line in (tmp_path / "results/table.md").read_text().splitlines() if line.startswith(f"- **{ROW}")
    ]
    assert "the doctor found in seed 1, 3: dead units (seed 1: 1 of 4, on 8 images), likely a learning rate" in line
    causes, steps = ADVICE["dead units"]
    told = [*causes, *(text for step, text in CHECKLIST.items() if step in steps)]
    assert sorted(told, key=line.index) == told


def test_a_fault_leaves_every_file_as_it_was(tmp_path: Path, rows: dict[str, Row]) -> None:
    assert rows
    (tmp_path / "README.md").write_text("no markers")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="README"):
        publish.write(tmp_path / "benchmark.yaml", results=tmp_path / "results", readme_path=tmp_path / "README.md")
    assert snapshot(tmp_path) == before
