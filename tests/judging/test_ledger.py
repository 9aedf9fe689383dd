"""What the ledger promises: its numbers are the published ones, it is read strictly, and all faults come together."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remeasure.judging import ledger
from remeasure.spec.base import InputError
from remeasure.spec.claim import Row

CONF = Path(__file__).parents[2] / "conf"
REAL = (CONF / "benchmark.yaml").read_text()
ROW = """\
  mlp2-mnist:
    model: mlp2
    data: mnist
    recipe: article
    mode: train
    published:
      accuracy_percent: 97.7
      num_digits: 1
      num_params_text: "203,530"
      num_runs: null
      selection: null
      sources:
        - citation: The article
          where: its table
          says: 97.7 %
          grade: unsourced
      notes: none
    rule:
      margin_pp: 0.25
      confidence: 0.95
      looks: [5, 10, 20]
"""
LEDGER = f"rows:\n{ROW}"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "ledger.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return path

    return to_file


def faults_of(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        ledger.read(path)
    return list(caught.value.faults)


def without_line(beginning: str) -> str:
    kept = [line for line in LEDGER.splitlines(keepends=True) if not line.strip().startswith(beginning)]
    assert len(kept) == LEDGER.count("\n") - 1
    return "".join(kept)


def as_committed() -> str:
    return REAL


def with_the_example_of_the_docs() -> str:
    """The committed ledger after the advice of docs/extend.md: one entry pasted at its end."""
    page = (CONF.parent / "docs/extend.md").read_text()
    return REAL + "\n" + page[page.index("  mlp2-mnist-keras:") :].split("```")[0]


@pytest.fixture(params=[as_committed, with_the_example_of_the_docs], ids=lambda made: made.__name__)
def text(request: pytest.FixtureRequest) -> str:
    """A ledger that all tests of the committed one must accept: a row more is one edit."""
    made: str = request.param()
    return made


@pytest.fixture
def committed(text: str, write: Write) -> dict[str, Row]:
    return ledger.read(write(text))


# ---------------------------------------------------------------- the committed ledgers


FROM_SCRATCH = ["logreg-mnist-numpy", "mlp2-mnist-numpy"]  # rows of the article's table once more
ARTICLE = (
    'AiTechWorlds, "Deep Learning Explained: Neural Networks from Zero to Understanding", the article whose table this '
    "project measures"
)
ARTICLES_ROWS = ["logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist", "resnet18-cifar10", "vit_b16-imagenet"]


def test_published_numbers_are_the_articles_table_and_of_its_variants(committed: dict[str, Row]) -> None:
    printed = {
        name: (f"{row.published.accuracy_percent:.{row.published.num_digits}f}", row.published.num_params_text)
        for name, row in committed.items()
    }
    assert (
        printed.items()
        >= {
            "logreg-mnist": ("92.6", "7,850"),
            "mlp2-mnist": ("97.7", "203,530"),
            "mlp4-mnist": ("98.3", "669,706"),
            "lenet5-mnist": ("99.2", "60,000"),
            "lenet5-mnist-plain": ("99.05", "60,000"),  # LeCun et al. 1998, 0.95 % error
            "resnet18-cifar10": ("93.0", "11.7M"),
            "resnet18-cifar10-200epochs": ("95.47", "11.7M"),  # the lower of two reruns of the source's present recipe
            "vit_b16-imagenet": ("81.8", "86M"),
            "vit_b16-imagenet-timm": ("81.980", "86M"),  # timm's own results
            "vit_b16-imagenet-in21k": ("81.782", "86M"),
            "logreg-mnist-numpy": ("92.6", "7,850"),
            "mlp2-mnist-numpy": ("97.7", "203,530"),
        }.items()
    )


def test_rows_stand_in_file_order(committed: dict[str, Row], text: str) -> None:
    assert list(committed) == re.findall(r"^  (\S+):(?: +#.*)?$", text.partition("\nrows:\n")[2], flags=re.MULTILINE)


def test_every_margin_is_half_a_unit_and_the_seed_spread_rounded_up(committed: dict[str, Row]) -> None:
    step = Decimal("0.05")
    for name, row in committed.items():
        half_unit = Decimal(1).scaleb(-row.published.num_digits) / 2
        sd = Decimal("0.12" if row.model == "resnet18" else "0.10")
        spread = Decimal("1.96") * sd / Decimal(row.published.num_runs or 1).sqrt()
        needed = half_unit + (step if row.mode == "evaluate" else spread)
        expected = (needed / step).to_integral_value(ROUND_CEILING) * step
        assert Decimal(str(row.rule.margin_pp)) == expected, name


def test_rule_and_mode_of_every_committed_row(committed: dict[str, Row]) -> None:
    assert {row.rule.confidence for row in committed.values()} == {0.95}
    looks = {name: row.rule.looks for name, row in committed.items()}
    assert looks.pop("mlp2-mnist") == looks.pop("mlp2-mnist-numpy") == (40, 80, 160), "its second rule"
    evaluated = [name for name, row in committed.items() if row.mode == "evaluate"]
    assert evaluated == [name for name in committed if name.startswith("vit_b16-imagenet")]
    assert {looks.pop(name) for name in evaluated} == {(1,)}
    assert set(looks.values()) == {(5, 10, 20)}


def test_the_article_is_cited_as_unsourced_in_each_of_its_six_rows(committed: dict[str, Row]) -> None:
    grades = {
        name: {source.grade for source in row.published.sources if source.citation == ARTICLE}
        for name, row in committed.items()
    }
    assert [name for name, grade in grades.items() if grade] == [*ARTICLES_ROWS, *FROM_SCRATCH]
    assert all(grade <= {"unsourced"} for grade in grades.values())


def test_demo_claims_are_marked_as_this_projects_own() -> None:
    rows = ledger.read(CONF / "demo.yaml")
    assert list(rows) == ["logreg-digits", "mlp2-digits", "mlp2-digits-inflated"]
    for row in rows.values():
        (source,) = row.published.sources
        assert (source.citation, source.grade) == ("remeasure, this project's own demonstration claim", "unsourced")
    ledger.check_configs(rows, conf_dirs=[CONF])


@pytest.mark.parametrize("name", ["logreg-mnist", "mlp2-mnist", "mlp4-mnist", "lenet5-mnist"])
def test_a_model_alone_brings_the_data_and_recipe_of_its_row(committed: dict[str, Row], name: str) -> None:
    row = committed[name]
    home = yaml.safe_load((CONF / "model" / f"{row.model}.yaml").read_text())["defaults"]
    assert {"override /data": row.data} in home
    assert {"override /recipe": row.recipe} in home


@pytest.mark.parametrize("file", [REAL, with_the_example_of_the_docs(), (CONF / "demo.yaml").read_text()])
def test_row_sha256_is_that_of_the_entry_as_any_yaml_and_json_library_reads_it(file: str, write: Write) -> None:
    """Defaults written out."""
    entries = yaml.safe_load(file)["rows"]
    for name, row in ledger.read(write(file)).items():
        entries[name]["rule"] = {"confidence": 0.95, "looks": [5, 10, 20]} | entries[name]["rule"]
        text = json.dumps(entries[name], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert ledger.row_sha256(row) == hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- the hash


def test_row_sha256_moves_with_every_value_of_the_entry_and_not_with_the_name(write: Write) -> None:
    row = ledger.read(write(LEDGER))["mlp2-mnist"]
    source = row.published.sources[0]
    changed = [
        *(replace(row, **{key: "other"}) for key in ("model", "data", "recipe")),
        replace(row, mode="evaluate", rule=replace(row.rule, looks=(1,))),
        *(
            replace(row, published=replace(row.published, **change))
            for change in (
                {"accuracy_percent": 97.8},
                {"num_digits": 2},
                {"num_params_text": "203,531"},
                {"num_runs": 1},
                {"selection": "best"},
                {"sources": (source, source)},
                {"notes": "other"},
                *({"sources": (replace(source, **{key: "other"}),)} for key in ("citation", "where", "says")),
                {"sources": (replace(source, grade="secondary"),)},
            )
        ),
        *(
            replace(row, rule=replace(row.rule, **change))
            for change in ({"margin_pp": 0.3}, {"confidence": 0.9}, {"looks": (5, 10)})
        ),
    ]
    hashes = {ledger.row_sha256(row), *map(ledger.row_sha256, changed)}
    assert len(hashes) == 1 + len(changed)
    assert ledger.row_sha256(replace(row, name="mlp2-mnist-again")) == ledger.row_sha256(row)


def test_row_sha256_is_the_same_whether_a_default_is_written_out_and_a_float_as_an_int(write: Write) -> None:
    long = ledger.read(write(LEDGER.replace("97.7\n", "98.0\n", 1)))["mlp2-mnist"]
    short = LEDGER.replace("97.7\n", "98\n", 1).replace("      confidence: 0.95\n      looks: [5, 10, 20]\n", "")
    assert "confidence" not in short
    assert "looks" not in short
    assert ledger.row_sha256(ledger.read(write(short))["mlp2-mnist"]) == ledger.row_sha256(long)


# ---------------------------------------------------------------- what is refused

PLACE = "rows.mlp2-mnist"
WRONG_VALUES = [  # in place of what, written how, expected words of the one fault
    ("accuracy_percent: 97.7", 'accuracy_percent: "97.7"', f"{PLACE}.published.accuracy_percent: .*number.*'97.7'"),
    ("accuracy_percent: 97.7", "accuracy_percent: .nan", f"{PLACE}.published.accuracy_percent: .*number.*'.nan'"),
    ("accuracy_percent: 97.7", "accuracy_percent: .inf", f"{PLACE}.published.accuracy_percent: .*number.*'.inf'"),
    ("accuracy_percent: 97.7", "accuracy_percent: NaN", f"{PLACE}.published.accuracy_percent: .*number.*'NaN'"),
    ("accuracy_percent: 97.7", "accuracy_percent: 1998-11-01", f"{PLACE}.published.accuracy_percent: .*'1998-11-01'"),
    ("accuracy_percent: 97.7", "accuracy_percent: 9_7", f"{PLACE}.published.accuracy_percent: .*'9_7'"),
    ("accuracy_percent: 97.7", "accuracy_percent: 0x61", f"{PLACE}.published.accuracy_percent: .*'0x61'"),
    ("accuracy_percent: 97.7", "accuracy_percent: 1:37", f"{PLACE}.published.accuracy_percent: .*'1:37'"),
    ("accuracy_percent: 97.7", "accuracy_percent: null", f"{PLACE}.published.accuracy_percent: .*number.*None"),
    ("accuracy_percent: 97.7", "accuracy_percent: 100.1", f"{PLACE}.published.accuracy_percent: .*100.1"),
    (
        "accuracy_percent: 97.7",
        "accuracy_percent: 0.9",
        f"{PLACE}.published.accuracy_percent: 0.9 .*percent, perhaps 90",
    ),
    ("num_digits: 1", "num_digits: 0", f"{PLACE}.published.num_digits: 0 decimals cannot print 97.7"),
    ("num_digits: 1", "num_digits: 1.5", f"{PLACE}.published.num_digits: .*integer.*1.5"),
    ("num_digits: 1", "num_digits: true", f"{PLACE}.published.num_digits: .*integer.*True"),
    ('"203,530"', "203530", f"{PLACE}.published.num_params_text: .*string.*203530"),
    ("num_runs: null", "num_runs: 0", f"{PLACE}.published.num_runs: .*1 or more.*0"),
    ("selection: null", "selection: no", f"{PLACE}.published.selection: .*string.*False"),
    ("mode: train", "mode: tarin", f"{PLACE}.mode: .*'train' or 'evaluate'.*'tarin'"),
    ("mode: train", "mode: evaluate", f"{PLACE}.rule.looks: .*looks is \\[1\\].*\\[5, 10, 20\\]"),
    ("grade: unsourced", "grade: first", f"{PLACE}.published.sources.0.grade: .*'primary', 'secondary'.*'first'"),
    ("citation: The article", 'citation: ""', f"{PLACE}.published.sources.0.citation: must not be empty"),
    ("margin_pp: 0.25", "margin_pp: -0.25", f"{PLACE}.rule.margin_pp: .*above 0.*-0.25"),
    ("confidence: 0.95", "confidence: 95", f"{PLACE}.rule.confidence: .*fraction.*95"),
    ("looks: [5, 10, 20]", "looks: [5, 5]", f"{PLACE}.rule.looks: .*rising.*\\[5, 5\\]"),
    ("looks: [5, 10, 20]", "looks: 5", f"{PLACE}.rule.looks: .*5"),
    ("looks: [5, 10, 20]", 'looks: [5, "10"]', f"{PLACE}.rule.looks.1: .*integer.*'10'"),
    ("recipe: article", "recipe: [article]", f"{PLACE}.recipe: .*string.*article"),
]


@pytest.mark.parametrize(("right", "wrong", "fault"), WRONG_VALUES, ids=[wrong for _, wrong, _ in WRONG_VALUES])
def test_a_wrong_value_is_refused_by_row_and_key(write: Write, right: str, wrong: str, fault: str) -> None:
    assert LEDGER.count(right) == 1
    path = write(LEDGER.replace(right, wrong))
    (line,) = faults_of(path)
    assert re.fullmatch(f"{re.escape(str(path))}: {fault}.*", line), line


@pytest.mark.parametrize(
    ("right", "misspelt", "place", "meant"),
    [
        ("    recipe:", "    recipee:", f"{PLACE}.recipee", "recipe"),
        ("num_runs:", "num_run:", f"{PLACE}.published.num_run", "num_runs"),
        ("grade:", "grades:", f"{PLACE}.published.sources.0.grades", "grade"),
        ("margin_pp:", "margin:", f"{PLACE}.rule.margin", "margin_pp"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(
    write: Write, right: str, misspelt: str, place: str, meant: str
) -> None:
    faults = faults_of(write(LEDGER.replace(right, misspelt)))
    assert len(faults) == 2  # the other is the missing key
    assert any(f"{place}: no such key (did you mean '{meant}'?); valid: " in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("key", "place"),
    [
        *((key, key) for key in ("model", "data", "recipe", "mode")),
        *((key, f"published.{key}") for key in ("accuracy_percent", "num_runs", "selection", "notes")),
        ("where", "published.sources.0.where"),
        ("margin_pp", "rule.margin_pp"),
    ],
)
def test_a_missing_key_is_named(write: Write, key: str, place: str) -> None:
    (line,) = faults_of(write(without_line(f"{key}:")))
    assert f"{PLACE}.{place}: missing" in line


@pytest.mark.parametrize("sources", ["sources: []", "sources:"])
def test_a_row_without_a_source_is_refused(write: Write, sources: str) -> None:
    text = re.sub(r"sources:\n( {8}.*\n)+", f"{sources}\n", LEDGER)
    assert "citation" not in text
    (line,) = faults_of(write(text))
    assert f"{PLACE}.published.sources: " in line


def test_a_bare_number_is_refused(write: Write) -> None:
    (line,) = faults_of(write(re.sub(r"published:\n( {6}.*\n)+", "published: 97.7\n", LEDGER, count=1)))
    assert re.search(f"{PLACE}.published: .*97.7", line)


def test_a_row_that_is_no_mapping_is_refused(write: Write) -> None:
    (line,) = faults_of(write(LEDGER + "  logreg-mnist: 92.6\n"))
    assert re.search(r"rows.logreg-mnist: .*92.6", line)


@pytest.mark.parametrize("name", ["mlp4-mnist", "mlp2-mnist2", "mnist-mlp2", "mlp2-mnistplain", "mlp2"])
def test_a_row_is_named_after_its_model_and_data(write: Write, name: str) -> None:
    faults = faults_of(write(LEDGER.replace("mlp2-mnist:", f"{name}:")))
    assert f"rows.{name}: expected the name mlp2-mnist or mlp2-mnist-<variant>" in faults[-1]


@pytest.mark.parametrize(
    "name", ["mlp2-mnist--best", "mlp2-mnist-a b", "mlp2-mnist-", "mlp2-mnist-../x", "mlp2-mnist-é"]
)
def test_a_row_name_is_made_of_letters_digits_and_single_hyphens(write: Write, name: str) -> None:
    (line,) = faults_of(write(LEDGER.replace("mlp2-mnist:", f"{name}:")))
    assert f"rows.{name}: expected a name <model>-<data>[-variant] of A-Z, a-z, 0-9" in line


def test_two_row_names_differ_in_more_than_capitals(write: Write) -> None:
    twice = LEDGER + LEDGER.partition("rows:\n")[2].replace("mlp2-mnist:", "mlp2-mnist-Best:")
    assert list(ledger.read(write(twice))) == ["mlp2-mnist", "mlp2-mnist-Best"]
    again = twice + LEDGER.partition("rows:\n")[2].replace("mlp2-mnist:", "mlp2-mnist-best:")
    (line,) = faults_of(write(again))
    assert "rows.mlp2-mnist-best: is rows.mlp2-mnist-Best but for capitals" in line


@pytest.mark.parametrize("name", ["mlp2-mnist", "mlp2-mnist-plain", "mlp2-mnist-lr_0.1-x"])
def test_variants_are_rows_of_the_same_model_and_data(write: Write, name: str) -> None:
    assert list(ledger.read(write(LEDGER.replace("mlp2-mnist:", f"{name}:")))) == [name]


def test_an_entry_does_not_rename_its_row(write: Write) -> None:
    (line,) = faults_of(write(LEDGER.replace("    model:", "    name: mlp2-mnist-x\n    model:")))
    assert f"{PLACE}.name: no such key" in line


@pytest.mark.parametrize(
    ("text", "place", "line", "first"),
    [
        (LEDGER + ROW, PLACE, 23, 2),
        (LEDGER + LEDGER, "rows", 23, 1),
        (LEDGER.replace("    data:", "    model: mlp2\n    data:"), f"{PLACE}.model", 4, 3),
        (LEDGER.replace("says: ", "where: x\n          says: "), f"{PLACE}.published.sources.0.where", 16, 15),
        (LEDGER.replace("notes: none", "notes: {a: 1, a: 2}"), f"{PLACE}.published.notes.a", 18, 18),
    ],
    ids=["row", "rows", "key", "source", "flow"],
)
def test_a_duplicate_key_is_refused_with_both_lines(write: Write, text: str, place: str, line: int, first: int) -> None:
    path = write(text)
    assert f"{path}: {place}: line {line}: duplicate key, first in line {first}; keep one of them" in faults_of(path)


@pytest.mark.parametrize("key", ["5", "null", "yes", "2026-11-01", "<<", "[a, b]", "{a: b}"])
def test_a_key_that_is_no_text_is_refused(write: Write, key: str) -> None:
    faults = faults_of(write(LEDGER + f"    ? {key}\n    : x\n"))
    assert any("line 23: expected a key that is text; put it in quotes" in fault for fault in faults), faults


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "rows:\n", "rows: {}\n", "rows: []\n", "5\n", "- rows\n", "row: 1\n"]
)
def test_a_ledger_without_rows_is_refused(write: Write, text: str) -> None:
    path = write(text)
    assert f"{path}: expected the top-level key rows" in faults_of(path)[-1]


def test_another_top_level_key_is_refused(write: Write) -> None:
    (line,) = faults_of(write(LEDGER + "row: {}\n"))
    assert "row: line 23: no such key (did you mean 'rows'?); valid: rows" in line


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rows:\n  a: [1\n", "line 3, column 1: not valid YAML: expected ',' or ']'"),
        ("rows:\n\ta: 1\n", "line 2, column 1: not valid YAML: found character '\\t'"),
        ("rows: a: 1\n", "line 1, column 8: not valid YAML: mapping values are not allowed here"),
        (f"{LEDGER}---\n{LEDGER}", "line 23, column 1: not valid YAML: but found another document"),
        ("rows: \x00\n", "not valid YAML: unacceptable character #x0000"),
        ("rows: \ud800\n", "not valid YAML: unacceptable character #x00ed: invalid continuation byte"),
        ('rows: "\\UFFFFFFFF"\n', "not valid YAML: "),
    ],
    ids=["unclosed", "tab", "colon", "two documents", "null byte", "bad utf-8", "escape"],
)
def test_what_is_no_yaml_is_refused_by_line_and_column(write: Write, text: str, fault: str) -> None:
    path = write(text)
    (line,) = faults_of(path)
    assert line.startswith(f"{path}: {fault}"), line


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rows: &a {b: *a}\n", "line 1, column 7: anchors and aliases are refused, got 'a'; write the value out"),
        (
            "rows: !!python/object/apply:os.getcwd []\n",
            "line 1, column 7: tags are refused, got 'tag:yaml.org,2002:pyt",
        ),
        ("rows: !!float '1'\n", "line 1, column 7: tags are refused, got 'tag:yaml.org,2002:float'"),
        ('rows: "\\e[2J"\n', "line 1, column 7: holds the character U+001B, which does not print"),
        ('rows: "\\ud800"\n', "line 1, column 7: holds the character U+D800, which does not print"),
    ],
    ids=["anchor", "python tag", "tag", "escape", "surrogate"],
)
def test_yaml_that_is_not_plain_is_refused(write: Write, text: str, fault: str) -> None:
    path = write(text)
    assert faults_of(path)[0].startswith(f"{path}: {fault}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    expected = f"{missing}: cannot be read (No such file or directory); expected the ledger, a YAML file"
    assert faults_of(missing) == [expected]
    assert faults_of(tmp_path) == [f"{tmp_path}: expected a file, found a folder; remove it, or put the file there"]


def test_all_faults_are_reported_together(write: Write) -> None:
    second = ROW.replace("mlp2-mnist", "mlp9-mnist").replace("    mode: train\n", "    mode: x\n    mode: y\n")
    text = (LEDGER + second).replace("num_digits: 1", "num_digits: one").replace("0.25", "0")
    faults = "\n".join(faults_of(write(text + "more: 1\n")))
    for expected in (
        "rows.mlp9-mnist.mode: line 28: duplicate key, first in line 27",
        "more: line 45: no such key",
        "rows.mlp2-mnist.published.num_digits: ",
        "rows.mlp2-mnist.rule.margin_pp: ",
        "rows.mlp9-mnist: expected the name mlp2-mnist",
        "rows.mlp9-mnist.mode: expected 'train' or 'evaluate', got 'y'",
        "rows.mlp9-mnist.published.num_digits: ",
        "rows.mlp9-mnist.rule.margin_pp: ",
    ):
        assert faults.count(expected) == 1, (expected, faults)
    assert faults.count("\n") == 7


def test_dates_and_quoted_numbers_are_text_where_text_is_meant(write: Write) -> None:
    text = LEDGER.replace("where: its table", "where: 1998-11-01").replace("notes: none", 'notes: "5"')
    published = ledger.read(write(text))["mlp2-mnist"].published
    assert (published.sources[0].where, published.notes) == ("1998-11-01", "5")


# A real row, cut to pieces: reading all of them for each example would take ten times as long.
LINES = REAL[REAL.index("\nrows:\n") : REAL.index("\n  mlp4-mnist:\n")].splitlines(keepends=True)
SCRAPS = st.sampled_from(
    [
        *"&*!|>?@%{}[]:-,'\"#\\\t\n 0.~=ÿ",
        "<<",
        ": ",
        "- ",
        "!!set",
        "2026-11-01",
        ".nan",
        "1e9",
        "\\x",
        "---\n",
        "\ud800",
    ]
)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        here, there = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        column = draw(st.integers(0, len(lines[here])))
        match draw(st.sampled_from(["insert", "cut", "swap", "repeat"])):
            case "insert":
                lines[here] = lines[here][:column] + draw(SCRAPS | st.text(max_size=3)) + lines[here][column:]
            case "cut":
                lines[here] = lines[here][:column]
            case "swap":
                lines[here], lines[there] = lines[there], lines[here]
            case "repeat":
                lines.insert(there, lines[here])
    return "".join(lines)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=mutations())
def test_a_mutated_ledger_is_read_or_refused_and_nothing_else(write: Write, text: str) -> None:
    path = write(text)
    try:
        rows, faults = ledger.read(path), ()
    except InputError as error:
        rows, faults = {}, error.faults
    assert bool(rows) != bool(faults)
    assert all(fault.startswith(f"{path}: ") for fault in faults)
    assert all(re.fullmatch("[0-9a-f]{64}", ledger.row_sha256(row)) for row in rows.values())


# ---------------------------------------------------------------- which rows


def test_rows_about_to_be_measured_need_their_configs(write: Write, tmp_path: Path) -> None:
    rows = ledger.read(write(LEDGER))
    for group, names in {"model": ["mlp4", "logreg"], "data": ["mnist"], "recipe": ["article"]}.items():
        (tmp_path / group).mkdir()
        for name in names:
            (tmp_path / group / f"{name}.yaml").touch()
    with pytest.raises(InputError) as caught:
        ledger.check_configs(rows, conf_dirs=[tmp_path])
    missing = tmp_path / "model" / "mlp2.yaml"
    assert caught.value.faults == (f"row mlp2-mnist: model: no {missing} (did you mean 'mlp4'?); valid: logreg, mlp4",)
    missing.touch()
    ledger.check_configs(rows, conf_dirs=[tmp_path])


def test_a_config_name_does_not_reach_out_of_its_group(write: Write, tmp_path: Path) -> None:
    row = replace(ledger.read(write(LEDGER))["mlp2-mnist"], recipe="../ledger")
    (tmp_path / "recipe").mkdir()
    assert (tmp_path / "recipe" / "../ledger.yaml").exists()
    with pytest.raises(InputError, match=r"recipe: no .*ledger\.yaml"):
        ledger.check_configs({row.name: row}, conf_dirs=[tmp_path])


def test_the_mnist_rows_can_be_measured(committed: dict[str, Row]) -> None:
    rows = {name: row for name, row in committed.items() if row.data == "mnist"}
    assert len(rows) >= 5 + len(FROM_SCRATCH)
    ledger.check_configs(rows, conf_dirs=[CONF])


def test_select_keeps_the_ledgers_order_and_takes_all_for_none(committed: dict[str, Row]) -> None:
    assert list(ledger.select(committed, ["mlp4-mnist", "logreg-mnist", "mlp4-mnist"])) == [
        "logreg-mnist",
        "mlp4-mnist",
    ]
    assert ledger.select(committed, []) == committed


def test_select_names_every_unknown_row_and_the_valid_ones(committed: dict[str, Row]) -> None:
    with pytest.raises(InputError) as caught:
        ledger.select(committed, ["mlp3-mnist", "logreg-mnist", "???"])
    near, far = caught.value.faults
    assert near.startswith("no row 'mlp3-mnist' (did you mean 'mlp4-mnist'?); valid: logreg-mnist, mlp2-mnist, ")
    assert far.startswith("no row '???'; valid: logreg-mnist, ")


def test_a_single_run_belongs_to_the_row_of_its_three_configs(committed: dict[str, Row]) -> None:
    plain = ledger.for_configs(committed, model="lenet5", data="mnist", recipe="lenet5_plain")
    assert plain is committed["lenet5-mnist-plain"]
    assert ledger.for_configs(committed, model="lenet5", data="digits", recipe="lenet5_plain") is None
    assert ledger.for_configs(committed, model="lenet5", data="mnist", recipe="article") is None
    assert ledger.for_configs(committed, model="mlp2", data="mnist", recipe="lenet5") is None
    for engine, name in (("numpy", "mlp2-mnist-numpy"), ("serial", "mlp2-mnist"), ("batched", "mlp2-mnist")):
        found = ledger.for_configs(committed, model="mlp2", data="mnist", recipe="article", engine=engine)
        assert found is committed[name]


def test_rows_from_scratch_make_torchs_claims(committed: dict[str, Row]) -> None:
    for name in FROM_SCRATCH:
        row, torchs = committed[name], committed[name.removesuffix("-numpy")]
        assert (row.engine, torchs.engine) == ("numpy", "serial")
        assert replace(row.published, notes="") == replace(torchs.published, notes="")
        assert row.rule == torchs.rule
