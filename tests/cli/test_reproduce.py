"""What `python src/reproduce.py` does about a row that cannot be measured."""

from pathlib import Path

import pytest
import yaml
from tests.support.project import Project, copy_project


@pytest.fixture
def wrong_row(tmp_path: Path) -> Project:
    """A project whose demo has a row with a builder that is not there."""
    project = copy_project(tmp_path / "project")
    conf = project.root / "conf"
    model = (conf / "model/mlp2.yaml").read_text()
    (conf / "model/wrong.yaml").write_text(model.replace("builder: mlp", "builder: vgg").replace("mlp2\n", "wrong\n"))
    ledger = yaml.safe_load((conf / "demo.yaml").read_text())
    rows = ledger["rows"]
    ledger["rows"] = {"logreg-digits": rows["logreg-digits"], "wrong-digits": {**rows["mlp2-digits"], "model": "wrong"}}
    (conf / "demo.yaml").write_text(yaml.safe_dump(ledger, sort_keys=False))
    return project


def test_a_row_with_a_wrong_model_is_named_and_the_others_are_planned(wrong_row: Project, tmp_path: Path) -> None:
    done = wrong_row.run("reproduce.py", "plan", "--demo", cwd=tmp_path)
    fault = "wrong-digits: not measured, the input is wrong: model.builder: there is no 'vgg'; choose from logistic"
    assert any(line.startswith(fault) for line in done.stdout.splitlines()), done.stderr
    assert "logreg-digits: no seed was timed here before" in done.stdout
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
