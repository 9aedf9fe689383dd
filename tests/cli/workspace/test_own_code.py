"""Code of the user's that is wrong: a few lines, exit 2, and the other rows go on."""

from pathlib import Path

import pytest
from tests.support.project import CHECKOUT, Command, Project

from remeasure.cli.workspace import new

NET = """from torch import Generator, nn

def build(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator):
    return nn.Flatten()
"""
MODULES = {
    "untyped": NET.replace("Generator)", "Generator, width)"),
    "unseeded": NET.replace(", generator: Generator", ""),
    "flat": NET,
    "unwritten": "def build(:\n",
    "unready": "{}['key']\n",
    "unread": "def read(split, root, files_md5, fetch):\n    return [1, 2, 3]\n",
}
SAID = {
    "untyped": "model.builder: untyped:build has no annotation for width; expected def net(*, image_shape, ",
    "unseeded": "model.builder: unseeded:build has no argument generator; expected def net(*, image_shape, ",
    "flat": "model.builder: the module that flat:build makes gives (2, 64) torch.float32; expected logits (2, 10) ",
    "unwritten": "model.builder: unwritten:build cannot be imported: invalid syntax (unwritten.py, line 1)",
    "unready": "model.builder: unready:build cannot be imported: KeyError: 'key' (unready.py, line 1)",
    "unread": "data.source: unread:read returns list; expected read(split, root, files_md5, fetch) -> ",
    "nowhere": "model.builder: nowhere:build cannot be imported: No module named 'nowhere'",
    "unknown": "model.builder: there is no 'unknown'; choose from ",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of the user's with a row for each kind of wrong code, after the example's."""
    root = tmp_path / "mine"
    new.main([str(root)])
    ledger, model, data = root / "conf/benchmark.yaml", root / "conf/model/my_net.yaml", root / "conf/data/my_data.yaml"
    entry = ledger.read_text().partition("rows:\n")[2]
    for name, code in MODULES.items():
        (root / f"{name}.py").write_text(code)
    for name in SAID:
        builder = {"unread": "my_net:build", "unknown": "unknown"}.get(name, f"{name}:build")
        options = {"unread": "{channels: 16}", "untyped": "{width: 16}"}.get(name, "{}")
        text = model.read_text().replace("name: my_net", f"name: {name}")
        text = text.replace("my_net:build", builder).replace("{channels: 16}", options)
        (root / f"conf/model/{name}.yaml").write_text(text)
        reads = "unread" if name == "unread" else "my_data"
        (root / f"conf/data/{reads}.yaml").write_text(data.read_text().replace("my_data", reads))
        with ledger.open("a") as file:
            file.write(entry.replace("my_net", name).replace("my_data", reads))
    return root


def test_each_row_s_fault_is_told_and_the_other_rows_go_on(root: Path, here: Command) -> None:
    ended = here(Project(root=CHECKOUT), "remeasure", "--conf", str(root), "plan")
    assert ended.status == 2
    lines = ended.stdout.splitlines()
    for name, said in SAID.items():
        row = f"{name}-{'unread' if name == 'unread' else 'my_data'}"
        (line,) = [line for line in lines if line.startswith(f"{row}: ")]
        assert line.startswith(f"{row}: not measured, the input is wrong: {said}"), line
    assert [line for line in lines if line.startswith("my_net-my_data ")], "is planned"
    assert "Traceback" not in ended.stderr


def test_a_claim_without_a_source_is_named_and_the_other_rows_go_on(tmp_path: Path, here: Command) -> None:
    root = tmp_path / "mine"
    new.main([str(root)])
    ledger = root / "conf/benchmark.yaml"
    entry = ledger.read_text().partition("rows:\n")[2].replace("my_net-my_data", "my_net-my_data-bare")
    sources = entry[entry.index("      sources:") : entry.index("      notes:")]
    ledger.write_text(ledger.read_text() + entry.replace(sources, "      sources: []\n"))
    fault = f"{ledger}: rows.my_net-my_data-bare.published.sources: a bare number is refused; name at least one source"
    mine = Project(root=CHECKOUT)
    measured = here(mine, "remeasure", "--conf", str(root), "measure", "--seeds", "2")
    assert measured.status == 2
    assert measured.stderr.startswith(fault)
    assert "the other rows go on; the table waits until the ledger is right" in measured.stderr
    runs = root / "results/runs"
    assert len((runs / "my_net-my_data.csv").read_text().splitlines()) == 3, "a header and two seeds"
    for arguments in (("table",), ("measure", "my_net-my_data-bare")):
        refused = here(mine, "remeasure", "--conf", str(root), *arguments)
        assert (refused.status, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert line.startswith(fault)
