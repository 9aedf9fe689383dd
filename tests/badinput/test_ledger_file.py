"""Whatever the ledger holds: the table is right, or the ledger is refused by name and nothing is written."""

import csv
import io
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.badinput.entry import Entry, assert_well_ended, changed, examples, untouched
from tests.badinput.strategies import mutations
from tests.support.measured import LEDGER, NUM_WRONG, ROW, snapshot

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["many", "1e400", ".nan", "a" * 300, "\ud800", "<!-- table:end -->", "a|b\nc", "9" * 400, "12,34"]),
    st.lists(st.integers(-3, 3000), max_size=3),
    st.dictionaries(st.text(max_size=5), st.none(), max_size=2),
)
# Means of 40 items by hand: whatever seeds a look takes, they are some that follow each other.
CORRECT = [40 - wrong for wrong in NUM_WRONG]
MEANS = {
    f"{sum(CORRECT[first:last]) / (last - first) * 2.5:.3f}"
    for first in range(5)
    for last in range(first + 1, 6)
}  # fmt: skip


def places(value: Any, *, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each entry in nested mappings and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in entries for place in ((*path, key), *places(entry, path=(*path, key)))]


@st.composite
def structures(draw: st.DrawFn) -> bytes:
    """The ledger with one to three of its entries replaced, lost, renamed or doubled."""
    document = yaml.safe_load(LEDGER)
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(places(document)))
        inside = document
        for part in path:
            inside = inside[part]
        match draw(st.sampled_from(("replace", "lose", "rename", "double"))):
            case "replace":
                inside[key] = draw(PLAIN)
            case "lose":
                del inside[key]
            case "rename" if isinstance(inside, dict):
                inside[draw(st.one_of(PLAIN.filter(_hashable), st.just(f"{key}x")))] = inside.pop(key)
            case "double" if isinstance(inside, list):
                inside.append(inside[key])
        if not places(document):
            break
    return yaml.safe_dump(document).encode(errors="surrogatepass")


def _hashable(value: object) -> bool:
    return not isinstance(value, list | dict)


def table_of(entry: Entry) -> dict[str, dict[str, str]]:
    """results/table.csv: row to its cells."""
    text = (entry.results / "table.csv").read_text()
    return {line["row"]: line for line in csv.DictReader(io.StringIO(text, newline=""))}


def assert_table_is_right(entry: Entry) -> None:
    """What the table says was published is what YAML reads in the ledger; each mean is one of the seeds' own."""
    rows = yaml.safe_load(entry.ledger.read_bytes())["rows"]
    table = table_of(entry)
    assert list(table) == list(rows)
    for name, line in table.items():
        assert line["published_percent"] == f"{rows[name]['published']['accuracy_percent']:.3f}"
        assert line["mean_percent"] in MEANS | {""}
        assert bool(line["mean_percent"]) <= (name == ROW)
        assert {"nan", "inf", "-inf"}.isdisjoint(line.values())


@examples(25)
@given(st.one_of(structures(), mutations(LEDGER.encode())), st.sampled_from(["table", "verify"]))
def test_whatever_the_ledger_holds_its_table_is_right_or_it_is_refused_by_name(
    entry: Entry, content: bytes, command: str
) -> None:
    before = snapshot(entry.results), (entry.root / "README.md").read_bytes()
    with changed(entry.ledger, content=content):
        ended = entry("reproduce.py", command)
        after = snapshot(entry.results), (entry.root / "README.md").read_bytes()
        if ended.status == 0 and command == "table":
            assert_table_is_right(entry)
    assert_well_ended(ended, naming=["benchmark.yaml", "table.csv", "belongs to no row", "runs/"])
    if command == "verify" or ended.status:
        assert after == before
    restore(entry, before=before[0], readme=before[1])


def restore(entry: Entry, *, before: dict[str, bytes], readme: bytes) -> None:
    """Put results/ and the README back."""
    for name in snapshot(entry.results).keys() - before.keys():
        (entry.results / name).unlink()
    for name, content in before.items():
        (entry.results / name).write_bytes(content)
    (entry.root / "README.md").write_bytes(readme)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0", b"rows: {}\n"])
@pytest.mark.parametrize(("script", "argument"), [("reproduce.py", "table"), ("train.py", "data=digits")])
def test_a_ledger_that_is_none_is_refused_by_name(
    entry: Entry, content: bytes | None, script: str, argument: str
) -> None:
    with untouched(entry), changed(entry.ledger, content=content):
        ended = entry(script, argument)
    assert ended.status == 2
    assert_well_ended(ended, naming=["benchmark.yaml"])


# ---------------------------------------------------------------- all at once

# Faults that have nothing to do with each other: what stands in the ledger, what in its place, what is said of it.
FAULTS = {
    ("accuracy_percent: 94.0", "accuracy_percent: 194.0"): f"rows.{ROW}.published.accuracy_percent: ",
    ("num_params_text: '61'", "num_params_text: some"): f"rows.{ROW}.published.num_params_text: ",
    ("grade: unsourced", "grade: hearsay"): f"rows.{ROW}.published.sources.0.grade: ",
    ("margin_pp: 3.0", "margin_pp: -3.0"): f"rows.{ROW}.rule.margin_pp: ",
    ("num_runs: 3", "num_runs: 0"): "rows.other-shapes.published.num_runs: ",
    ("num_digits: 2", "num_digits: 1"): "rows.other-shapes.published.num_digits: ",
    ("where: table 2", "were: table 2"): "rows.other-shapes.published.sources.0.were: no such key",
    ("margin_pp: 0.5", "margin_pp: 0.5\n      looks: [3, 2]"): "rows.other-shapes.rule.looks: ",
    ("model: other", "model: odd"): "rows.other-shapes: expected the name odd-shapes",
}


@examples(5)
@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=2, max_size=4, unique=True))
def test_all_faults_of_a_ledger_are_named_at_once(entry: Entry, planted: list[tuple[str, str]]) -> None:
    text = LEDGER
    for old, new in planted:
        assert old in text
        text = text.replace(old, new)
    with untouched(entry), changed(entry.ledger, content=text.encode()):
        ended = entry("reproduce.py", "table")
    assert ended.status == 2
    assert [FAULTS[fault] for fault in planted if f"{entry.ledger}: {FAULTS[fault]}" not in ended.stderr] == []
