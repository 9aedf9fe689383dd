"""Code of the user's that is wrong: a few lines, exit 2, and the other rows go on."""

import json
import re
from pathlib import Path

import pytest
from tests.support.project import CHECKOUT, Command, Project

from remeasure.cli.workspace import new
from remeasure.judging.reader import read_runs

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


def test_a_recipe_or_a_callback_that_is_misspelt_is_its_row_s_fault_alone(tmp_path: Path, here: Command) -> None:
    root = tmp_path / "mine"
    new.main([str(root)])
    ledger = root / "conf/benchmark.yaml"
    entry = ledger.read_text().partition("rows:\n")[2]
    for variant, recipe in (("typo", "my_recip"), ("callback", "stopped")):
        row = entry.replace("my_net-my_data", f"my_net-my_data-{variant}").replace("my_recipe", recipe)
        ledger.write_text(ledger.read_text() + row)
    stopped = "defaults: [my_recipe, override /callback@_global_.callback: [erly_stopping], _self_]\n"
    (root / "conf/recipe/stopped.yaml").write_text(stopped)
    ended = here(Project(root=CHECKOUT), "remeasure", "--conf", str(root), "plan")
    assert ended.status == 2
    lines = ended.stdout.splitlines()
    said = ("my_net-my_data-typo: not measured, the input is wrong: ", "my_net-my_data-callback: not measured, ")
    typo, callback = ([line for line in lines if line.startswith(each)] for each in said)
    assert "my_recip.yaml (did you mean 'my_recipe'?)" in typo[0]
    assert "callback: there is no 'erly_stopping' (did you mean 'early_stopping'?)" in callback[0]
    assert [line for line in lines if line.startswith("my_net-my_data ")], "is planned"


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
    assert len((runs / "my_net-my_data.csv").read_text().splitlines()) == 3, measured
    (own,) = {record.own_code_sha256 for record in read_runs(root / "results", row="my_net-my_data")}
    assert re.fullmatch("[0-9a-f]{64}", own or ""), "one code of the user's own, which the seeds' records name"
    trained = here(mine, "remeasure", "--conf", str(root), "train", "model=mlp2", "data=my_data", "observer=[terminal]")
    assert trained.status == 0, trained.stderr
    assert trained.stderr.splitlines()[0].startswith(fault)
    assert "this run goes on: none of these is a row of its model and data" in trained.stderr
    for arguments in (("table",), ("measure", "my_net-my_data-bare"), ("train", "model=my_net")):
        refused = here(mine, "remeasure", "--conf", str(root), *arguments)
        assert (refused.status, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert line.startswith(fault)


def test_a_ledger_that_is_edited_during_the_campaign_is_told(tmp_path: Path, here: Command) -> None:
    root = tmp_path / "mine"
    new.main([str(root)])
    ledger = root / "conf/benchmark.yaml"
    assert "margin_pp: 2.0" in ledger.read_text()
    edit = f"from pathlib import Path\nplace = Path({str(ledger)!r})\nplace.write_text(place.read_text().replace"
    (root / "my_net.py").write_text(f"{edit}('margin_pp: 2.0', 'margin_pp: 1.5'))\n" + (root / "my_net.py").read_text())
    measured = here(Project(root=CHECKOUT), "remeasure", "--conf", str(root), "measure", "--seeds", "1")
    assert measured.status == 1
    assert f"{ledger}: was edited meanwhile: the lines above and MLflow go by" in measured.stderr


def test_a_reader_whose_order_changes_ends_its_row_with_exit_2_told_once(tmp_path: Path, here: Command) -> None:
    root = tmp_path / "mine"
    new.main([str(root)])
    recipe, data = root / "conf/recipe/my_recipe.yaml", root / "my_data.py"
    recipe.write_text(re.sub("epochs_total: .*", "epochs_total: 1", recipe.read_text()))
    drawn = "images[np.random.default_rng().permutation(len(images))]"
    data.write_text(data.read_text().replace("(images=images", f"(images={drawn}"))
    measured = here(Project(root=CHECKOUT), "remeasure", "--conf", str(root), "measure", "--seeds", "2")
    assert measured.status == 2
    said = "data my_data: my_data:read returns other images or labels than when the run was planned; it must return"
    assert measured.stderr.count(said) == 1
    assert "InputError" not in measured.stderr


PAGE = (CHECKOUT / "docs/extend.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml)\n# ((?:conf/|my_)\S+)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the user's with what docs/extend.md brings from outside."""
    root = tmp_path_factory.mktemp("brought") / "mine"
    new.main([str(root)])
    for name in ("my_parts.py", "conf/recipe/my_article.yaml", "my_ema.py", "conf/callback/my_ema.yaml"):
        (root / name).write_text(FILES[name])
    return root


def _trained(here: Command, root: Path, *overrides: str) -> dict[str, str]:
    ended = here(Project(root=CHECKOUT), "remeasure", "--conf", str(root), "train", *overrides, "observer=[terminal]")
    assert ended.status == 0, ended.stderr
    return dict(part.split("=", 1) for part in ended.stdout.splitlines()[-1].split())


def test_a_recipe_s_parts_from_outside_train_and_their_source_is_the_run_s(brought: Path, here: Command) -> None:
    chosen = ("model=my_net", "recipe=my_article", "recipe.epochs_total=4")
    told = _trained(here, brought, *chosen)
    assert float(told["test_accuracy_percent"]) > 80
    files = json.loads(Path(told["record"]).with_name("code.json").read_text())["files"]
    assert {"my_net.py", "my_data.py", "my_parts.py"} <= set(files)
    changes = ("recipe.optimizer.momentum_decay=0.5", "recipe.loss.gamma=0", "recipe.augmentation.degrees=0")
    short = (*chosen, "recipe.epochs_total=1", "recipe.averaging=null")
    losses = {_loss(_trained(here, brought, *short, *change)) for change in ((), *([each] for each in changes))}
    assert len(losses) == 4, "each argument changes what is trained"


def _loss(told: dict[str, str]) -> float:
    return float(json.loads(Path(told["record"]).read_text())["loss"])


def test_the_average_of_the_docs_is_the_recipe_s(brought: Path, here: Command) -> None:
    chosen = ("model=my_net", "recipe.epochs_total=2")
    own = _trained(here, brought, *chosen, "+callback=my_ema")
    recipe_s = _trained(here, brought, *chosen, "recipe.averaging={from_epoch: 1, decay: 0.99}")
    assert _loss(own) == pytest.approx(_loss(recipe_s), rel=1e-5)
    assert _loss(own) != pytest.approx(_loss(_trained(here, brought, *chosen)), rel=1e-5)


WRONG = {
    "my_parts:Adam": "cannot be imported: module 'my_parts' has no attribute 'Adam'",
    "my_parts:math": "my_parts:math is no Optimizer; expected a subclass of remeasure.spec.recipe.Optimizer, @",
    "my_parts:Focal": "my_parts:Focal is no Optimizer; expected a subclass of remeasure.spec.recipe.Optimizer",
    "my_wrong:Abstract": "my_wrong:Abstract has no build; expected a subclass of ",
    "my_wrong:Bare": "my_wrong:Bare is no dataclass, so that its arguments are not known; expected a subclass of ",
    "my_wrong:Named": "my_wrong:Named has a field `name`; leave it out, the config has the name",
}


def test_a_part_from_outside_that_is_none_is_named(brought: Path, here: Command) -> None:
    (brought / "my_wrong.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Literal\nfrom my_parts import NAdam\n"
        "from remeasure.spec.recipe import Optimizer\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Abstract(Optimizer):\n    pass\n"
        "class Bare(NAdam):\n    rate: float\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Named(NAdam):\n    name: Literal['named'] = 'named'\n"
    )

    def faults(*overrides: str) -> list[str]:
        ended = here(Project(root=CHECKOUT), "remeasure", "--conf", str(brought), "train", "model=my_net", *overrides)
        assert (ended.status, ended.stdout) == (2, "")
        return ended.stderr.splitlines()

    for name, said in WRONG.items():
        (line,) = faults(f"recipe.optimizer.name={name}")
        assert line.startswith("recipe.optimizer.name: ")
        assert said in line
    (line,) = faults("recipe=my_article", "recipe.loss.gama=1")
    assert line.startswith("recipe.loss.gama: loss 'my_parts:Focal' has no such argument (did you mean 'gamma'?)")
    (line,) = faults("recipe.loss.name=my_parts:Focal")
    assert line == "recipe.loss.gamma: missing; my_parts:Focal needs it"
    lines = faults("recipe=my_article", "callback=[]", "engine=numpy")
    for part in ("optimizer.name=my_parts:NAdam", "loss.name=my_parts:Focal", "augmentation.name=my_parts:Rotation"):
        assert [line for line in lines if f"not recipe.{part}" in line], lines
