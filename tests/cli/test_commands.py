"""The commands as a person uses them: the contract's line, help, completion, multirun; every wrong input is exit 2."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tests.support.project import Command, Ended, Project, copy_project

from remeasure.config import compose
from remeasure.system import paths

SHORT = ("model=mlp2", "data=digits", "recipe.epochs_total=2")
NUM_PARAMS = 64 * 256 + 256 + 256 * 10 + 10  # mlp2 on 8x8 images
LAST_LINE = re.compile(
    r"(test|validation)_accuracy_percent=(\d+\.\d{3}) num_params=(\d+) wall_seconds=(\d+\.\d)"
    r" mlflow_run_id=([0-9a-f]{32})(?: record=(\S+))?"
)


def last_line(stdout: str) -> tuple[str, ...]:
    found = LAST_LINE.fullmatch(stdout.splitlines()[-1])
    assert found, stdout
    return found.groups()


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory outside the project."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def first(project: Project, elsewhere: Path) -> tuple[str, str]:
    """Standard output and standard error of a first run."""
    done = project.run("train.py", *SHORT, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_run_ends_with_the_contracts_line(first: tuple[str, str], project: Project, elsewhere: Path) -> None:
    split, accuracy, num_params, _, mlflow_run_id, path = last_line(first[0])
    record = json.loads((elsewhere / path).read_text())
    assert (split, int(num_params)) == ("test", NUM_PARAMS)
    assert float(accuracy) == pytest.approx(100 * record["num_correct"] / 500)  # of the digits' 500 test images
    assert record["mlflow_run_id"] == mlflow_run_id
    assert (elsewhere / path).resolve().is_relative_to(project.runs)


def test_progress_goes_to_standard_error_alone(first: tuple[str, str]) -> None:
    stdout, stderr = first
    assert len(stdout.splitlines()) == 1
    why = "no git here, it failed, or the project is no checkout"
    said = stderr.removeprefix(f"commit unknown ({why}): records say so; ")
    said = said.removeprefix("REMEASURE_COMMIT=… states it\n")  # the project is a copy without git
    assert said != stderr
    assert said.startswith("mlp2-digits seed 0: started, 2 epochs\nmlp2-digits seed 0: ")
    assert re.search(r"\d % in \d+\.\d s\n$", stderr)


def test_a_finished_run_is_reported_and_not_trained_again(
    first: tuple[str, str], project: Project, elsewhere: Path
) -> None:
    before = project.journals()
    done = project.run("train.py", *SHORT, cwd=elsewhere)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "finished before" in done.stdout
    assert last_line(done.stdout) == last_line(first[0])
    assert project.journals() == before


def test_fresh_trains_a_finished_run_again(
    first: tuple[str, str], project: Project, elsewhere: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    before = project.journals()
    done = here(project, "train.py", *SHORT, "fresh=true")
    assert len(project.journals()) == len(before) + 1
    again, once = last_line(done.stdout), last_line(first[0])
    assert again[1] == once[1]  # the same seed gives the same accuracy
    assert again[4:] != once[4:]  # under another MLflow run and another record


def test_tuning_prints_a_validation_accuracy_and_no_record(
    project: Project, elsewhere: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    tuning = ("seed=1000", "data.split=validation", "data.num_validation=200")
    done = here(project, "train.py", *SHORT, *tuning)
    assert done.status == 0, done.stderr
    split, accuracy, *_, path = last_line(done.stdout)
    assert (split, path) == ("validation", None)
    assert float(accuracy) * 2 == int(float(accuracy) * 2)  # of 200 images
    assert list(project.runs.glob("*-s1000-*"))
    assert not list(project.runs.glob("*-s1000-*/record.json"))


def test_a_multirun_trains_every_job_though_one_diverges(
    project: Project, elsewhere: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    rates = "recipe.optimizer.lr_peak=1e-3,1e38,2e-3"
    done = here(project, "train.py", "-m", *SHORT, rates, "seed=7")
    lines = [line for line in done.stdout.splitlines() if line.startswith("test_accuracy_percent=")]
    assert [bool(LAST_LINE.fullmatch(line)) for line in lines] == [True, False, True]
    assert lines[1].startswith(f"test_accuracy_percent= num_params={NUM_PARAMS} ")
    assert re.search(r"mlp2-digits seed 7: diverged: the \w+ (of \S+ )?is not finite in step \d+", done.stderr)
    assert done.status == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_multirun_trains_every_job_though_one_is_refused(
    project: Project, elsewhere: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    done = here(project, "train.py", "-m", *SHORT, "seed=0,-1,8")
    assert len([line for line in done.stdout.splitlines() if LAST_LINE.fullmatch(line)]) == 2
    assert "seed: expected 0 or more, got -1" in done.stderr
    assert done.status == 2


@pytest.mark.usefixtures("first")
def test_nothing_is_left_in_the_working_directory(elsewhere: Path) -> None:
    """After all the runs above: no outputs/, multirun/, multirun.yaml, lightning_logs/, mlruns/ or mlflow.db."""
    assert list(elsewhere.iterdir()) == []


# ---------------------------------------------------------------- what Hydra's users expect


def test_help_names_choices_and_examples_and_imports_nothing_heavy(project: Project, tmp_path: Path) -> None:
    shown = project.run("train.py", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for group in ("model", "data", "recipe"):
        names = sorted(path.stem for path in (project.root / "conf" / group).glob("*.yaml"))
        assert names
        assert f"\n{group}: {', '.join(names)}\n" in shown.stdout
    assert "  python src/train.py model=mlp4 " in shown.stdout
    assert "test_accuracy_percent=… num_params=…" in shown.stdout
    imported = project.imported_by("train.py", "--help", cwd=tmp_path)
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "torchvision", "pytorch_lightning", "mlflow", "timm", "sklearn", "scipy"})


def test_cfg_job_prints_the_config_and_trains_nothing(project: Project, tmp_path: Path) -> None:
    before = project.journals()
    shown = project.run("train.py", "model=mlp4", "recipe.epochs_total=3", "--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(shown.stdout)
    assert (config["model"]["name"], config["recipe"]["epochs_total"], config["seed"]) == ("mlp4", 3, 0)
    assert project.journals() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_a_command_is_also_a_module(command: str, project: Project) -> None:
    done = project.python("-m", f"remeasure.cli.{command}", "--help", cwd=project.root)
    assert done.returncode == 0, done.stderr
    assert "seed" in done.stdout


def test_a_scheduler_s_variables_do_not_touch_a_run_on_one_device(
    project: Project, here: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a machine with SLURM, where Lightning advises to call srun, and in a notebook that SLURM started."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    done = here(project, "train.py", "model=logreg", "data=digits", "recipe.epochs_total=1", "seed=21")
    assert (done.status, "srun" in done.stderr) == (0, False), done.stderr
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "jupyter"}.items():
        monkeypatch.setenv(name, value)
    done = here(project, "train.py", "model=mlp2", "data=digits", "recipe.epochs_total=1", "seed=21")
    assert done.status == 0, done.stderr


def test_bash_completes_python_src_train_py(project: Project) -> None:
    script = """
        eval "$(python src/train.py -sc install=bash)"
        for word in model=ml data= recipe.optimizer.lr; do
            COMP_LINE="python src/train.py $word" COMP_CWORD=2
            COMP_POINT=${#COMP_LINE}
            hydra_bash_completion
            echo "${COMPREPLY[@]}"
        done
    """
    environment = project.environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shown = subprocess.run(
        ["bash", "-c", script], cwd=project.root, env=environment, capture_output=True, text=True, check=True
    )
    data = sorted(path.stem for path in (project.root / "conf/data").glob("*.yaml"))
    assert shown.stdout.splitlines() == [
        "model=mlp2 model=mlp4",
        " ".join(f"data={name}" for name in data),
        "recipe.optimizer.lr_peak=",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=logreg"], ("logreg", "mnist", "lbfgs")),
        (["model=mlp4"], ("mlp4", "mnist", "keras_mlp")),
        ([], ("mlp2", "mnist", "article")),
        (["model=mlp4", "data=digits"], ("mlp4", "digits", "keras_mlp")),
        (["data=digits", "model=mlp4"], ("mlp4", "digits", "keras_mlp")),
        (["recipe=article", "model=mlp4", "data=digits"], ("mlp4", "digits", "article")),
        (["data=digits", "recipe=lenet5_plain", "model=logreg"], ("logreg", "digits", "lenet5_plain")),
        (["model=resnet18"], ("resnet18", "cifar10", "resnet18_muon")),
        (["model=resnet18", "data=digits"], ("resnet18", "digits", "resnet18_muon")),
        (["recipe=resnet18_200epochs", "model=resnet18"], ("resnet18", "cifar10", "resnet18_200epochs")),
        (["data=cifar10", "model=mlp2"], ("mlp2", "cifar10", "article")),
        (["model=vit_b16"], ("vit_b16", "imagenet", "deit_b_eval")),
    ],
)
def test_a_model_brings_its_home_and_what_is_named_beside_it_wins(
    overrides: list[str], expected: tuple[str, str, str]
) -> None:
    config = compose.compose(overrides)
    assert (config.model.name, config.data.name, config.recipe.name) == expected


def test_resnet18_brings_bfloat16_and_channels_last_and_what_is_named_beside_it_wins() -> None:
    own = compose.compose(["model=resnet18"])
    assert (own.precision, own.channels_last, own.steps_per_block, own.cpu_threads) == ("auto", True, 10, 2)
    other = compose.compose(["precision=float32", "model=resnet18", "channels_last=false", "steps_per_block=7"])
    assert (other.precision, other.channels_last, other.steps_per_block) == ("float32", False, 7)
    plain = compose.compose(
        ["data=cifar10", "recipe=resnet18_fast"]
    )  # they are the model's, not the data's or recipe's
    assert (plain.precision, plain.channels_last, plain.steps_per_block) == ("float32", False, 100)


def test_an_experiment_is_a_file_and_the_command_line_wins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = copy_project(tmp_path, store="")
    monkeypatch.setattr(paths, "_CHECKOUT", scratch.root)
    (scratch.root / "conf/experiment").mkdir(exist_ok=True)
    (scratch.root / "conf/experiment/brief.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: mlp4\n  - override /data: digits\n"
        "seed: 3\nrecipe: {epochs_total: 4, batch_size: 32}\n"
    )
    config = compose.compose(["experiment=brief", "recipe.batch_size=16"])
    assert (config.model.name, config.data.name, config.seed) == ("mlp4", "digits", 3)
    assert (config.recipe.epochs_total, config.recipe.batch_size) == (4, 16)


# ---------------------------------------------------------------- wrong input


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of this file's own, in which nothing is ever trained."""
    return copy_project(tmp_path_factory.mktemp("refusing"), store="")


@pytest.fixture
def command(here: Command, scratch: Project) -> Command:
    """Call a script of the scratch project: `command("train.py", …)`."""
    return partial(here, scratch)


def assert_refused(ended: Ended, *, naming: tuple[str, ...], project: Project) -> None:
    """Exit status 2, a few lines that name all of `naming`, and nothing begun: no run, no tracking database."""
    assert ended.status == 2, ended.stderr
    assert [text for text in naming if text not in ended.stderr] == [], ended.stderr
    assert 1 <= len(ended.stderr.splitlines()) <= 8
    assert "Traceback" not in ended.stderr
    assert "Error executing job" not in ended.stderr
    assert "search path" not in ended.stderr
    assert ended.stdout == ""
    assert list(project.root.glob("runs/*-s*-a*")) == []
    assert not (project.root / "mlflow.db").exists()


BAD_CONFIG = {
    "unknown model": (["model=mpl2"], ("model", "'mpl2'", "did you mean 'mlp2'", "lenet5, lenet5_remake, logreg")),
    "unknown data": (["data=minst"], ("data", "'minst'", "did you mean 'mnist'", "cifar10, digits, imagenet")),
    "unknown recipe": (["recipe=foo"], ("recipe", "'foo'", "valid: article", "keras_mlp")),
    "unknown experiment": (["experiment=foo"], ("experiment", "'foo'")),
    "unknown callback": (["callback=[early_stoping]"], ("callback: there is no", "did you mean 'early_stopping'")),
    "number as a group's choice": (["recipe=3"], ("group", "string", "int")),
    "key added": (["+foo=1"], ("foo: no such key", "valid: model, data, recipe, seed")),
    "key added below": (["+recipe.foo=1"], ("recipe.foo: no such key", "valid: name, epochs_total, batch_size")),
    "unknown group": (["modle=mlp2"], ("modle: no such key", "did you mean 'model'", "valid: model, data, recipe")),
    "unknown key": (["recipe.foo=1"], ("recipe.foo: no such key", "valid: name, epochs_total, batch_size")),
    "key without its group": (["epochs=3"], ("epochs: no such key (did you mean 'recipe.epochs_total'?)",)),
    "key without its block": (["recipe.lr=3"], ("recipe.lr: no such key (did you mean 'recipe.optimizer.lr_peak'?)",)),
    "misspelt branch": (["recipe.optimiser.lr_peak=1"], ("recipe.optimiser: no such", "did you mean 'optimizer'")),
    "unknown option": (["model.options.depth=3"], ("model.options.depth: no such key", "--cfg job")),
    "key below a value": (["seed.first=3"], ("seed.first: no such key", "--cfg job")),
    "not an override": (["model"], ("model: expected key=value",)),
    "unbalanced": (["seed=[1"], ("seed=[1: expected key=value",)),
    "sweep without -m": (["seed=1,2"], ("seed=1,2", "--multirun")),
    "text for a number": (["recipe.optimizer.lr_peak=abc"], ("recipe.optimizer.lr_peak", "number", "'abc'")),
    "boolean for a number": (["seed=true"], ("seed", "integer", "True")),
    "number too many": (["precision=float16"], ("precision", "'auto', 'float32' or 'bfloat16'", "'float16'")),
    "negative learning rate": (["recipe.optimizer.lr_peak=-0.1"], ("recipe.optimizer.lr_peak", "above 0", "-0.1")),
    "schedule too long": (
        ["recipe.schedule.epochs_warmup=99"],
        ("recipe.schedule", "epoch 99", "epochs_total=10", "shorten the schedule or train longer"),
    ),
    "two faults": (
        ["recipe.optimizer.lr_peak=-1", "recipe.normalisation.std=[0.0]", "compile=3"],
        ("recipe.optimizer.lr_peak: expected a number above 0, got -1", "recipe.normalisation.std", "compile", "got 3"),
    ),
    "two faults, one beside the branch of the other": (
        ["recipe.optimizer.lr_peak=-1", "recipe.batch_size=0", "seed=-1"],
        (
            "recipe.optimizer.lr_peak: expected",
            "recipe.batch_size: expected 1 or more, got 0",
            "seed: expected 0 or more",
        ),
    ),
    "negative seed": (["seed=-1"], ("seed: expected 0 or more, got -1",)),
    "tuning on a ledger's seed": (
        ["data.split=validation", "data.num_validation=200"],
        ("seed: tuning on the validation split uses seeds from 1000 up, got 0",),
    ),
    "tuning without images": (["data.split=validation", "seed=1000"], ("data.num_validation", "data.num_validation=1")),
    "no value": (["recipe.epochs_total=???"], ("recipe.epochs_total: has no value",)),
    "dangling reference": (["recipe.batch_size=${data.size}"], ("recipe.batch_size", "data.size")),
    "only the whole can tell": (["cpu_threads=0"], ("cpu_threads: expected 1 or more, got 0",)),
    "option out of range": (
        ["data=digits", "model.options.dropout=[2.0]"],
        ("model.options.dropout", "less than 1", "got 2.0"),
    ),
    "data the model cannot take": (["model=lenet5", "data=digits"], ("lenet5", "28x28", "1x8x8", "choose")),
    "no block of steps": (["steps_per_block=0"], ("steps_per_block: expected 1 or more, got 0",)),
    "half a block": (["steps_per_block=0.5"], ("steps_per_block", "integer", "got 0.5")),
    "text for a memory format": (["channels_last=maybe"], ("channels_last", "boolean", "'maybe'")),
    "negative padding": (
        ["model=resnet18", "recipe.augmentation.pad_pixels=-1"],
        ("recipe.augmentation.pad_pixels: expected 0 or more, got -1",),
    ),
    "padding that affine maps lack": (
        ["recipe=lenet5", "recipe.augmentation.pad_pixels=4"],
        ("recipe.augmentation.pad_pixels: augmentation 'affine' has no such argument", "shear"),
    ),
    "flips more than always": (
        ["model=resnet18", "recipe.augmentation.flip_probability=2"],
        ("recipe.augmentation.flip_probability: expected a fraction in [0, 1], got 2",),
    ),
    "a square of half a pixel": (
        ["model=resnet18", "recipe.augmentation.cutout_pixels=0.5"],
        ("recipe.augmentation.cutout_pixels", "integer", "got 0.5"),
    ),
    "sizes without epochs": (
        ["model=resnet18", "recipe.resolution={pixels: [16, 24], until_epoch: [4]}"],
        ("recipe.resolution.pixels and until_epoch: expected equally many, got 2 and 1",),
    ),
    "small images to the end": (
        ["model=resnet18", "recipe.epochs_total=9"],
        ("recipe.resolution", "until epoch 9", "epochs_total=9"),
    ),
    "unknown stem": (["model=resnet18", "model.options.stem=tiny"], ("model.options.stem", "'cifar'", "'tiny'")),
    "device that is not there": (["data=digits", "device=tpu"], ("device", "'tpu'", "cpu", "auto")),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_wrong_config_is_refused_with_exit_2_before_any_training(
    case: str, command: Command, scratch: Project
) -> None:
    overrides, naming = BAD_CONFIG[case]
    assert_refused(command("train.py", *overrides), naming=naming, project=scratch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_where_there_is_none(command: Command, scratch: Project) -> None:
    ended = command("train.py", "data=digits", "device=cuda")
    assert_refused(ended, naming=("device", "'cuda'", "it has cpu"), project=scratch)


def test_a_config_file_that_is_not_yaml_is_refused_by_name(command: Command, scratch: Project) -> None:
    broken = scratch.root / "conf/recipe/broken.yaml"
    broken.write_text("name: broken\nepochs_total: [1\n")
    try:
        assert_refused(command("train.py", "recipe=broken"), naming=("recipe/broken.yaml", "line"), project=scratch)
    finally:
        broken.unlink()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("defaults: [{override /data: digits}]\nmodel: {name: lost}\n", "conf/model/lost.yaml: expected `# @package"),
        ("model: {name: lost}\n", "model.model: no such key; expected `# @package _global_` as the model"),
    ],
)
def test_a_model_without_its_first_line_is_told_so(content: str, said: str, command: Command, scratch: Project) -> None:
    lost = scratch.root / "conf/model/lost.yaml"
    lost.write_text(content)
    try:
        assert_refused(command("train.py", "model=lost"), naming=(said,), project=scratch)
    finally:
        lost.unlink()


def test_every_wrong_job_of_a_multirun_is_named(command: Command, scratch: Project) -> None:
    ended = command("train.py", "-m", "seed=-1,-2", "data=digits")
    assert_refused(ended, naming=("got -1", "got -2"), project=scratch)


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (["reproduce", "mlp-mnist"], ("'mlp-mnist'", "did you mean", "valid: logreg-mnist, mlp2-mnist, mlp4-mnist")),
        (["measure", "foo", "bar"], ("'foo'", "'bar'", "logreg-mnist")),
        (["--budget", "4x"], ("--budget", "4h, 90m or 30s", "'4x'")),
        (["--seeds", "0"], ("--seeds", "from 1 up", "'0'")),
        (["--seeds", "some"], ("--seeds", "from 1 up", "'some'")),
        (["ui", "--port", "abc"], ("--port", "'abc'", "reproduce.py --help")),
        (["ui", "--port", "99999"], ("--port", "from 1 to 65535", "'99999'")),
        (["table", "--results", "nowhere"], ("--results", "nowhere is no folder")),
        (["remeasure"], ("command", "'remeasure'", "'reproduce'", "'verify'")),
    ],
)
def test_a_wrong_row_or_option_of_reproduce_is_refused(
    arguments: list[str], naming: tuple[str, ...], command: Command, scratch: Project
) -> None:
    ended = command("reproduce.py", *arguments)
    assert_refused(ended, naming=naming, project=scratch)
    assert "usage:" not in ended.stderr


@pytest.fixture
def ledger(scratch: Project) -> Iterator[Path]:
    """The scratch project's ledger, put back afterwards."""
    path = scratch.root / "conf/benchmark.yaml"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(("script", "arguments"), [("reproduce.py", ["table"]), ("train.py", ["model=mlp2"])])
def test_a_ledger_row_without_a_source_is_refused(
    script: str, arguments: list[str], ledger: Path, command: Command, scratch: Project
) -> None:
    rows = yaml.safe_load(ledger.read_text())
    rows["rows"]["mlp2-mnist"]["published"]["sources"] = []
    ledger.write_text(yaml.safe_dump(rows))
    naming = (str(ledger), "rows.mlp2-mnist.published.sources", "name at least one source")
    assert_refused(command(script, *arguments), naming=naming, project=scratch)


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "origin"),
    [
        (lambda content: content[: len(content) // 2], "t10k-labels-idx1-ubyte.gz"),
        (flip_a_bit, "t10k-labels-idx1-ubyte.gz"),
        (lambda content: content, "train-labels-idx1-ubyte.gz"),
    ],
    ids=["truncated", "bit-flipped", "swapped"],
)
def test_a_damaged_data_file_is_refused_by_name(
    damage: Callable[[bytes], bytes],
    origin: str,
    data_root: Path,
    tmp_path: Path,
    command: Command,
    scratch: Project,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    official = {path.name: path for path in (data_root / "MNIST/raw").glob("*.gz")}
    if len(official) < 4:
        pytest.skip("the data root has MNIST unpacked")
    for name, path in official.items():
        (raw / name).symlink_to(path)
    wrong = raw / "t10k-labels-idx1-ubyte.gz"
    wrong.unlink()
    wrong.write_bytes(damage(official[origin].read_bytes()))
    monkeypatch.setenv("REMEASURE_DATA", str(tmp_path))
    naming = (str(wrong), "ec29112dd5afa0611ce80d1b7f02629c", "delete it")  # the MD5 that torchvision checks
    assert_refused(command("train.py"), naming=naming, project=scratch)


# ---------------------------------------------------------------- a wrong place


def test_a_tracking_server_that_does_not_answer_is_refused(
    command: Command, scratch: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    naming = ("http://127.0.0.1:9", "start that server", "MLFLOW_TRACKING_URI")
    assert_refused(command("train.py", "data=digits"), naming=naming, project=scratch)
    assert_refused(command("reproduce.py", "--demo"), naming=naming, project=scratch)


@pytest.mark.parametrize(
    ("folder", "script", "arguments"),
    [("results", "reproduce.py", ["table"]), ("results", "reproduce.py", []), ("runs", "train.py", ["data=digits"])],
)
def test_a_folder_that_cannot_be_written_is_refused(
    folder: str, script: str, arguments: list[str], here: Command, tmp_path: Path
) -> None:
    """Root may write anywhere, so a file stands in the folder's place."""
    scratch = copy_project(tmp_path, store="")
    (scratch.root / folder).write_text("in the way")
    naming = (str(scratch.root / folder), "cannot be written", "writable")
    assert_refused(here(scratch, script, *arguments), naming=naming, project=scratch)
    assert (scratch.root / folder).read_text() == "in the way"


def test_a_fault_of_ours_is_exit_1_with_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, scratch: Project
) -> None:
    """Not everything is the user's fault: a ValueError that nobody foresaw is a failed run, and says where."""
    from remeasure.cli import train

    def fail(*_: object, **__: object) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(train, "run_single", fail)
    ended = command("train.py", "data=digits")
    assert ended.status == 1
    assert "Traceback" in ended.stderr
    assert "ValueError: unforeseen" in ended.stderr
    assert scratch.journals() == {}
