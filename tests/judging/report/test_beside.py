"""What other commands wrote, in short: against the committed files, counted in another way."""

import re
from pathlib import Path

from tests.support.project import CHECKOUT

from remeasure.judging.report import beside

RESULTS = CHECKOUT / "results"


def test_the_first_table_of_a_markdown_file() -> None:
    text = (
        "# A\n| x |\n\n| not this\n".replace("| x |\n\n", "")
        + "text\n\n| a | b |\n| --- | --- |\n| [1](#one) | 2 \\| 3 |\n\n| c |\n"
    )
    assert beside.first_table(text.replace("| not this\n", "")) == [{"a": "1", "b": "2 | 3"}]
    assert beside.first_table("no table") == []


def test_the_committed_files_in_short() -> None:
    found = {each.path: each for each in beside.read(RESULTS)}
    assert list(found) == ["claims.md", "controls/report.html", "determinism.md", "bench.md"]
    claims = (RESULTS / "claims.md").read_text()
    verdicts = re.findall(r"^\*\*(.+?)\*\*:", claims, flags=re.MULTILINE)
    short = found["claims.md"]
    assert f"Of {len(verdicts)} claims {verdicts.count('holds')} hold, " in short.sentence
    assert len(short.lines) == len(verdicts) - verdicts.count("holds") > 0
    num_missed = len(re.findall(r"^\| .*\| MISSED \|$", (RESULTS / "bench.md").read_text().partition("\n## ")[0], re.M))
    assert len(found["bench.md"].lines) == num_missed > 0
    assert found["controls/report.html"].sentence.startswith("8 of 8 ")
    assert found["determinism.md"].sentence.startswith("18 of 18 ")


def test_a_broken_promise_is_shown(tmp_path: Path) -> None:
    text = (RESULTS / "determinism.md").read_text()
    (tmp_path / "determinism.md").write_text(text.replace("| yes | identical |", "| yes | differs |", 1))
    (short,) = beside.read(tmp_path)
    assert short.sentence.startswith("17 of 18 ")
    assert [line["seen"] for line in short.lines] == ["differs"]


def test_a_folder_without_them_has_none(tmp_path: Path) -> None:
    assert beside.read(tmp_path) == []
