"""`remeasure import timm-results`: a line of timm's table becomes a model and a claim with source, grade and margin."""

from pathlib import Path

import pytest
from tests.support.project import CHECKOUT, Command, Ended, Project

from remeasure.config.compose import compose
from remeasure.judging import ledger
from remeasure.spec.recipe import Evaluation
from remeasure.system import paths

TABLE = """\
model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation
resnet18.a1_in1k,288,73.164,26.836,91.026,8.974,11.69,1.000,bicubic
vit_base_patch16_224.augreg_in1k,224,79.154,20.846,94.088,5.912,86.57,0.900,bicubic
nobody.has_this,224,many,20.846,94.088,5.912,86.57,0.900,bicubic
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """timm's table beside a project without a row."""
    (tmp_path / "mine/conf").mkdir(parents=True)
    (tmp_path / "mine/conf/benchmark.yaml").write_text("rows:\n")
    (tmp_path / "results-imagenet.csv").write_text(TABLE)
    return tmp_path / "results-imagenet.csv"


def imported(here: Command, table: Path, *arguments: str) -> Ended:
    conf = str(table.parent / "mine")
    return here(Project(root=CHECKOUT), "remeasure", "--conf", conf, "import", "timm-results", *arguments)


def test_a_line_becomes_a_model_and_a_claim(table: Path, here: Command) -> None:
    ended = imported(here, table, "resnet18.a1_in1k", "vit_base_patch16_224.augreg_in1k", "--from", str(table))
    assert ended.status == 0, ended.stderr
    rows = ledger.read(table.parent / "mine/conf/benchmark.yaml")
    assert list(rows) == ["resnet18.a1_in1k-imagenet", "vit_base_patch16_224.augreg_in1k-imagenet"]
    row = rows["resnet18.a1_in1k-imagenet"]
    assert (row.mode, row.rule.looks, row.rule.margin_pp) == ("evaluate", (1,), 0.1)  # 0.0005 + 0.05, rounded up
    assert (row.published.accuracy_percent, row.published.num_digits) == (73.164, 3)
    assert row.published.num_params_text == "11.69M"
    (source,) = row.published.sources
    assert (source.where, source.grade) == ("resnet18.a1_in1k", "primary")
    assert source.says.startswith("top-1 73.164 %, top-5 91.026 %")
    paths.enter(table.parent / "mine")
    config = compose(["model=resnet18.a1_in1k"])
    assert (config.model.name, config.data.name) == ("resnet18.a1_in1k", "imagenet")
    assert isinstance(config.recipe, Evaluation)
    seen = config.recipe.transform
    assert (config.recipe.weights, seen.crop_pixels, seen.crop_pct) == ("resnet18.a1_in1k", 288, 1.0)


def test_a_claim_about_top5_is_one_more_row(table: Path, here: Command) -> None:
    for more in ((), ("--metric", "top5")):
        assert imported(here, table, "resnet18.a1_in1k", "--from", str(table), *more).status == 0
    row = ledger.read(table.parent / "mine/conf/benchmark.yaml")["resnet18.a1_in1k-imagenet-top5"]
    assert (row.metric, row.published.percent) == ("top5_percent", 91.026)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("resnet18.a2_in1k",),
            "results-imagenet.csv: has no model 'resnet18.a2_in1k' (did you mean 'resnet18.a1_in1k'?)",
        ),
        (("nobody.has_this",), "nobody.has_this: the timm that is installed here ("),
        (("resnet18.a1_in1k", "--data", "imagenet_c"), "data: there is no conf/data/imagenet_c.yaml"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_line(
    arguments: tuple[str, ...], said: str, table: Path, here: Command
) -> None:
    ended = imported(here, table, *arguments, "--from", str(table))
    assert ended.status == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(said)
    assert (table.parent / "mine/conf/benchmark.yaml").read_text() == "rows:\n"
