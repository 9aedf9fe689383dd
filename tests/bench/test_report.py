"""The benchmark's command and its two files, with parts that are made up."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.project import CHECKOUT

from remeasure.bench import __main__ as command
from remeasure.bench import report
from remeasure.bench.series import Measure, Part, Ratio, Series, Setting, ratio
from remeasure.spec.base import InputError

MACHINE = report.Machine(
    device="Some CPU", num_cores=2, load_average=0.25, commit="c0ffee" * 6, dirty=False, versions={"python": "3.11.9"}
)


def part(name: str = "first", *, seconds: tuple[float, ...] = (3.0, 1.0, 2.0), at_most: float = 0.5) -> Part:
    """By hand: medians 2 and 4 with the default seconds, so 0.5; rounds 0.75, 0.25, 0.5."""
    ours = Series(name="ours", unit="s", values=seconds)
    theirs = Series(name="theirs", unit="s", values=(4.0, 4.0, 4.0), note="a | b")
    return Part(
        name=name,
        question=f"Is {name} fast?",
        series=(ours, theirs),
        ratios=(ratio("ours / theirs", ours, theirs, at_most=at_most),),
        remarks=("So it is.",),
    )


def always(found: Part) -> Measure:
    return lambda setting: found  # noqa: ARG005


def failing(setting: Setting) -> Part:  # noqa: ARG001
    raise RuntimeError("no such\nluck")


def entry(found: Part, *, machine: report.Machine = MACHINE) -> report.Entry:
    return report.Entry(part=found, measured_on="2026-11-22T14:05:10Z", seconds=75.2, machine=machine)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., int]:
    """Call the command on these parts, with a results folder of its own."""

    def call(*arguments: str, **parts: Measure) -> int:
        return command.main([*arguments, "--results", str(tmp_path)], parts=parts)

    return call


def entry_texts(folder: Path) -> dict[str, str]:
    """The lines of bench.json that belong to each part."""
    found: dict[str, list[str]] = {}
    for line in (folder / "bench.json").read_text().splitlines():
        if line.startswith(' "'):
            name = line.split('"')[1]
        if line.startswith(" "):
            found.setdefault(name, []).append(line.removesuffix(",") if line.startswith(" }") else line)
    return {name: "\n".join(lines) for name, lines in found.items()}


# ---------------------------------------------------------------- the command


def test_a_part_measured_again_leaves_the_other_entries_byte_for_byte(
    bench: Callable[..., int], tmp_path: Path
) -> None:
    odd = part(seconds=(1.23456789, 1 / 3, 2e-7))
    assert bench(first=always(odd), second=always(part("second"))) == 0
    before = entry_texts(tmp_path)
    assert list(before) == ["first", "second"]
    assert bench("second", "--rounds", "2", first=failing, second=always(part("second", seconds=(9.0, 9.0, 9.0)))) == 0
    after = entry_texts(tmp_path)
    assert after["first"] == before["first"]
    assert after["second"] != before["second"]


def test_an_entry_whose_part_is_gone_stays_at_the_end(bench: Callable[..., int], tmp_path: Path) -> None:
    bench(gone=always(part("gone")))
    bench(first=always(part()))
    assert list(entry_texts(tmp_path)) == ["first", "gone"]


def test_an_entry_that_another_process_has_added_meanwhile_stays(bench: Callable[..., int], tmp_path: Path) -> None:
    def beside_another(setting: Setting) -> Part:  # noqa: ARG001
        assert bench("second", first=failing, second=always(part("second"))) == 0
        return part()

    assert bench("first", first=beside_another, second=failing) == 0
    assert list(entry_texts(tmp_path)) == ["first", "second"]


def test_an_entry_of_fewer_rounds_replaces_one_of_more_only_if_asked_to(
    bench: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench(first=always(part()))
    before, fewer = entry_texts(tmp_path), always(part(seconds=(3.0, 1.0)))
    assert bench(first=fewer) == 0
    assert "first: the entry of 3 rounds stays; with --fresh, one of 2 replaces it\n" in capfd.readouterr().err
    assert entry_texts(tmp_path) == before
    assert bench("--fresh", first=fewer) == 0
    assert "stays" not in capfd.readouterr().err
    assert entry_texts(tmp_path) != before
    bench(first=always(part()))
    assert report.read(tmp_path)["first"].num_rounds == 3


def test_a_part_that_fails_is_named_and_the_others_are_measured(
    bench: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench(first=failing, second=always(part("second"))) == 1
    assert list(entry_texts(tmp_path)) == ["second"]
    assert "first failed: RuntimeError: no such luck\n" in capfd.readouterr().err


def test_a_part_that_fails_keeps_its_earlier_entry(bench: Callable[..., int], tmp_path: Path) -> None:
    bench(first=always(part()))
    before = entry_texts(tmp_path)
    assert bench(first=failing) == 1
    assert entry_texts(tmp_path) == before


def test_a_signal_keeps_the_parts_that_are_finished(bench: Callable[..., int], tmp_path: Path) -> None:
    def stopped(setting: Setting) -> Part:  # noqa: ARG001
        raise SystemExit(143)  # as cli's handler does

    with pytest.raises(SystemExit, match="143"):
        bench(first=always(part()), second=stopped)
    assert list(entry_texts(tmp_path)) == ["first"]
    assert "## first" in (tmp_path / "bench.md").read_text()


def test_unknown_parts_are_refused_with_the_valid_names(bench: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        bench("frist", "first", "other", first=failing, second=failing)
    assert refused.value.faults == (
        "part: there is no 'frist' (did you mean 'first'?); valid: first, second",
        "part: there is no 'other'; valid: first, second",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [None, "results", "results/below"])
def test_the_rehearsal_never_writes_into_results(folder: str | None) -> None:
    arguments = ["--results", str(CHECKOUT / folder)] if folder else []
    with pytest.raises(InputError, match="--tiny: its figures do not belong into"):
        command.main(["--tiny", *arguments], parts={"first": failing})
    assert not (CHECKOUT / "results/below").exists()


def test_a_part_gets_its_rounds_and_a_scratch_folder_that_goes_afterwards(
    bench: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://the.users.own")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen: list[Setting] = []

    def measure(setting: Setting) -> Part:
        seen.append(setting)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{setting.scratch}/mlflow.db"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        (setting.scratch / "left").touch()
        return part()

    assert bench("first", "--rounds", "3", first=measure) == 0
    assert bench("--tiny", first=measure) == 0
    assert [(setting.num_rounds, setting.tiny) for setting in seen] == [(3, False), (2, True)]
    assert not any(setting.scratch.exists() for setting in seen)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://the.users.own"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# ---------------------------------------------------------------- bench.json


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    busy = report.Machine(
        device="Some CPU", num_cores=4, load_average=3.5, commit="", dirty=True, versions={"python": "3.12"}
    )
    bare = Part(name="bare", question="?", series=(), ratios=(Ratio(name="r", value=1.0, low=0.5, high=2.0),))
    entries = {"first": entry(part()), "bare": entry(bare, machine=busy)}
    report.write(tmp_path, entries=entries)
    assert report.read(tmp_path) == entries
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["first"]["part"]["series"][0]["values"] == [3.0, 1.0, 2.0]


def test_figures_keep_the_digits_that_were_measured() -> None:
    values = (1.23456789, 123456.0)
    units = ("s", "percent", "count")
    series = tuple(Series(name=unit, unit=unit, values=values) for unit in units)
    found = report.rounded(
        Part(name="p", question="?", series=series, ratios=(Ratio(name="r", value=2 / 3, low=0.0, high=1234.56),))
    )
    assert [each.values for each in found.series] == [(1.235, 123500.0), (1.235, 123456.0), (1.23456789, 123456.0)]
    assert (found.ratios[0].value, found.ratios[0].low, found.ratios[0].high) == (0.6667, 0.0, 1235.0)


@pytest.mark.parametrize("content", ["<<<<<<< ours", '{"first": {"part": 3}}'])
def test_a_file_that_is_not_ours_is_refused_and_kept(content: str, bench: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(InputError, match=r"bench\.json: "):
        bench(first=always(part()))
    assert (tmp_path / "bench.json").read_text() == content


# ---------------------------------------------------------------- bench.md


def cells(text: str, *, beginning: str) -> list[list[str]]:
    """The cells of each table line that begins with a cell of that text."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {beginning} ")]
    return [[cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")] for line in lines]


def test_the_first_line_says_what_generated_it() -> None:
    for entries in ({}, {"first": entry(part())}):
        first = report.to_markdown(entries).splitlines()[0]
        assert "Generated" in first
        assert "`make bench`" in first


@pytest.mark.parametrize(("at_most", "word"), [(0.5, "met"), (0.49, "MISSED")])
def test_a_missed_target_is_called_missed_and_a_met_one_is_not(at_most: float, word: str) -> None:
    text = report.to_markdown({"first": entry(part(at_most=at_most))})
    figures = ["ours / theirs", "0.5000", "0.2500 – 0.7500", f"at most {at_most:g}", word]
    assert cells(text, beginning="first") == [["first", *figures]]  # among all targets
    assert cells(text, beginning="ours / theirs") == [figures]  # in its own part
    assert ("MISSED" in text) == (word == "MISSED")


def test_a_part_shows_question_series_remarks_and_where_it_was_measured() -> None:
    text = report.to_markdown({"first": entry(part())})
    assert cells(text, beginning="ours ")[0] == ["ours", "2.00 s", "1.00 s", "3.00 s", "3", ""]
    assert cells(text, beginning="theirs") == [["theirs", "4.00 s", "4.00 s", "4.00 s", "3", "a / b"]]
    assert "## first\n\nIs first fast?\n" in text
    assert "\n- So it is.\n" in text
    assert text.endswith(
        "Measured on 2026-11-22T14:05:10Z in 75 s: Some CPU, 2 cores, load average 0.25 at the start; "
        "commit c0ffeec0ffee; python 3.11.9.\n"
    )


def test_without_a_target_no_table_of_targets_stands_there() -> None:
    bare = Part(name="bare", question="?", series=())
    text = report.to_markdown({"bare": entry(bare)})
    assert "| " not in text
    assert "No part that has a target was measured." in text


@pytest.mark.parametrize(("load_average", "warned"), [(1.0, False), (1.01, True)])
def test_a_load_above_half_a_core_each_is_warned_of(load_average: float, warned: bool) -> None:
    machine = report.Machine(
        device="Some CPU", num_cores=2, load_average=load_average, commit="", dirty=True, versions={}
    )
    text = report.to_markdown({"first": entry(part(), machine=machine)})
    assert ("**Warning: the machine was busy as this began" in text) == warned
    assert "no commit with uncommitted changes" in text


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0125, "s", "12.5 ms"),
        (0.0, "s", "0 s"),
        (1.5, "s", "1.50 s"),
        (99.96, "s", "100 s"),
        (1234.5, "s", "1,234 s"),
        (904.4, "MiB", "904 MiB"),
        (98.5625, "percent", "98.562 %"),
        (60000.0, "count", "60,000"),
        (12345.6, "images/s", "12,346 images/s"),
        (0.25, "ms", "0.250 ms"),
    ],
)
def test_quantities_have_sensible_units_and_digits(value: float, unit: str, shown: str) -> None:
    assert report.quantity(value, unit=unit) == shown
