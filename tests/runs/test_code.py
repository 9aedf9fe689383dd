"""The code that made a run: what counts as a change, what is named, and what begins anew."""

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tests.support.project import Project, copy_project, write_all
from tests.support.trained import place, run, spec

from remeasure.models import registry
from remeasure.runs import code, journal
from remeasure.runs.folder import attempts, finished, other_code
from remeasure.runs.timing import seconds_of_seed
from remeasure.spec.base import InputError, canonical_sha256
from remeasure.spec.run import ModelSpec, RunSpec

NETS = '''\
"""Nets."""
from layers import flat
from torch import nn

def net(*, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A linear net."""
    return nn.Sequential(flat(), nn.Linear(64, num_classes))  # of digits
'''
LAYERS = "from torch import nn\nflat = nn.Flatten\n"
TIMED = """from torch import Generator, nn

def net(*, image_shape: tuple[int, int, int], num_classes: int, generator: Generator) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
EPOCHS = ("model=logreg", "data=digits", "recipe.epochs_total=3")


def made_by_other_code(directory: Path, *, file: str) -> None:
    """Let the run in this folder look as if this file had been another one."""
    content = json.loads((directory / code.CODE_FILE).read_bytes())
    content["files"][file] = "0" * 64
    content["code_sha256"] = "1" * 64
    (directory / code.CODE_FILE).write_text(json.dumps(content))
    forget(directory)


def forget(directory: Path) -> None:
    """Let the record of the run in this folder hold no hash of the code, as that of an earlier version."""
    record = json.loads((directory / "record.json").read_bytes())
    (directory / "record.json").write_text(json.dumps(record | {"code_sha256": ""}))


def test_only_what_python_executes_counts() -> None:
    same = NETS.replace('"""Nets."""\n', "# Nets\n").replace("(flat(), ", "(\n        flat(),\n        ")
    same = same.replace('    """A linear net."""\n', "").replace("  # of digits", "")
    assert code.tree_sha256(same.encode()) == code.tree_sha256(NETS.encode())
    for old, new in (("64", "65"), ("flat()", "nn.Flatten()"), ("nn.Module:", "object:"), ("net(", "nett(")):
        assert code.tree_sha256(NETS.replace(old, new, 1).encode()) != code.tree_sha256(NETS.encode())


def test_a_finished_run_of_other_code_is_not_reused_and_the_file_is_named(tmp_path: Path) -> None:
    here, a_spec = place(tmp_path), spec("recipe.epochs_total=1")
    first = run(a_spec, tmp_path)
    assert other_code(a_spec, seed=0, place=here) == ""
    made_by_other_code(first.directory, file="models/mlp.py")
    assert finished(a_spec, seed=0, place=here) is None
    assert attempts(a_spec, seed=0, place=here) == []
    assert other_code(a_spec, seed=0, place=here) == "models/mlp.py differs"
    again = run(a_spec, tmp_path)
    assert (again.reused, again.directory.name[-3:]) == (False, "-a2")
    assert other_code(a_spec, seed=0, place=here) == ""
    assert again.record.predicted_sha256 == first.record.predicted_sha256


def test_an_unfinished_run_of_another_torch_is_not_gone_on_from(tmp_path: Path) -> None:
    here, a_spec = place(tmp_path), spec("recipe.epochs_total=1")
    first = run(a_spec, tmp_path)
    path = first.directory / "environment.json"
    environment = json.loads(path.read_bytes())
    present = environment["packages"]["torch"]
    (first.directory / "record.json").unlink()
    for package, differs in (("mlflow", ""), ("torch", f"torch {present}, not 1.0")):
        environment["packages"][package] = "1.0"
        path.write_text(json.dumps(environment))
        assert other_code(a_spec, seed=0, place=here) == differs
    again = run(a_spec, tmp_path)
    assert again.directory.name[-3:] == "-a2"
    assert again.record.versions_sha256 == first.record.versions_sha256


def test_a_resumed_run_keeps_the_versions_of_its_start(tmp_path: Path) -> None:
    """MLflow's cannot move a weight, so the run goes on; its record names the environment that lies beside it."""
    first = run(spec("recipe.epochs_total=1"), tmp_path)
    (first.directory / "record.json").unlink()
    path = first.directory / "environment.json"
    environment = json.loads(path.read_bytes())
    environment["packages"]["mlflow"] = "1.0"
    path.write_text(json.dumps(environment))
    again = run(spec("recipe.epochs_total=1"), tmp_path)
    assert again.directory == first.directory
    assert again.record.versions_sha256 == canonical_sha256(environment) != first.record.versions_sha256


def test_a_run_of_a_version_that_kept_no_hashes_is_other_code(tmp_path: Path) -> None:
    first = run(spec("recipe.epochs_total=1"), tmp_path)
    (first.directory / code.CODE_FILE).unlink()
    forget(first.directory)
    found = other_code(spec("recipe.epochs_total=1"), seed=0, place=place(tmp_path))
    assert found == "an earlier version, which kept no hashes of it"
    assert not run(spec("recipe.epochs_total=1"), tmp_path).reused


def test_record_and_journal_hold_the_hash(tmp_path: Path) -> None:
    outcome = run(spec("recipe.epochs_total=1"), tmp_path)
    started = journal.last(journal.read(outcome.directory), "started")
    assert started is not None
    in_record = json.loads((outcome.directory / "record.json").read_bytes())["code_sha256"]
    assert started["code_sha256"] == in_record == code.kept(outcome.directory)
    assert len(in_record) == 64


def test_the_files_of_the_training_wing_count() -> None:
    files = json.loads(code.content(spec()))["files"]
    assert {"models/mlp.py", "training/recipe.py", "data/digits.py", "spec/recipe.py"} <= files.keys()
    assert not [name for name in files if name.startswith(("judging", "tracking", "campaign", "cli", "system"))]


def test_hashes_come_from_the_files_whatever_the_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache, with one, with a damaged one, and with none that can be written."""
    (tmp_path / "file").write_text("no folder")
    expected, found, kept = code.code_sha256(spec()), [], list[Path]()
    for number, cache in enumerate(("cache", "cache", "cache", "file")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        for known in (code._files, code._remembered):
            known.cache_clear()
        found.append(code.code_sha256(spec()))
        kept = sorted((tmp_path / "cache/remeasure/trees").iterdir())
        kept[number].write_text("damaged")
    assert set(found) == {expected}
    assert len(kept) > 30


def with_builder(name: str) -> RunSpec:
    usual = spec()
    return dataclasses.replace(usual, model=dataclasses.replace(usual.model, builder=name, options={}))


def test_a_module_of_the_user_counts_with_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its folder, from a package beside it, from another folder; in turn; not what is installed or hidden."""
    texts = {
        "here/nets.py": NETS,
        "here/layers.py": "from parts.flat import flat\nimport numpy, json\n",
        "here/other.py": "1\n",
        "there/parts/flat.py": LAYERS,
        "there/parts/template.py": "{{ no Python }}\n",
        "there/parts/.saved/flat.py": "1\n",
    }
    write_all(tmp_path, texts)
    (tmp_path / "there/parts/.#flat.py").symlink_to("somebody@edits-it")
    for name in ("nets", "layers", "parts", "parts.flat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for folder in ("here", "there"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setitem(registry.BUILDERS, "of_user", import_module("nets").net)
    files, others = (json.loads(code.content(each))["files"] for each in (with_builder("of_user"), spec()))
    assert files.keys() - others.keys() == {"nets.py", "layers.py", "parts/flat.py", "parts/template.py"}
    assert files["nets.py"] == code.tree_sha256(NETS.encode())
    assert code.tree_sha256(b"{{ no Python }}") != code.tree_sha256(b"{{ other }}")


@pytest.mark.parametrize("init", [True, False])
def test_a_package_of_the_user_counts_with_or_without_its_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: bool
) -> None:
    """Without __init__.py a package has no file of its own; the working directory's files are not taken for its."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/stranger.py").write_text("1\n")
    monkeypatch.chdir(tmp_path / "here")
    top = f"ours_{init}".lower()
    (tmp_path / top / "parts").mkdir(parents=True)
    for name, text in {"parts/nets": NETS.replace("layers", f"{top}.layers"), "layers": LAYERS}.items():
        (tmp_path / top / f"{name}.py").write_text(text)
    if init:
        (tmp_path / top / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.BUILDERS, top, import_module(f"{top}.parts.nets").net)
    files, others = (json.loads(code.content(each))["files"] for each in (with_builder(top), spec()))
    own = {f"{top}/parts/nets.py", f"{top}/layers.py"} | ({f"{top}/__init__.py"} if init else set())
    assert files.keys() - others.keys() == own


def test_the_hash_is_that_of_what_was_imported_whatever_is_edited_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timing of a row imports its modules; the run follows in the same process, perhaps after an edit."""
    (tmp_path / "timed_nets.py").write_text(TIMED)
    monkeypatch.syspath_prepend(tmp_path)
    timed = dataclasses.replace(spec(), model=ModelSpec(name="timed", builder="timed_nets:net", options={}))
    seconds_of_seed(timed, place=place(tmp_path))
    (tmp_path / "timed_nets.py").write_text(TIMED.replace("64", "65"))
    longer = dataclasses.replace(timed, recipe=dataclasses.replace(timed.recipe, epochs_total=1))
    for each in (timed, longer):
        assert json.loads(code.content(each))["files"]["timed_nets.py"] == code.tree_sha256(TIMED.encode())


def test_an_edit_between_hash_and_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a file that is saved while the photographs are hashed. One that is saved later is not looked at."""
    path = tmp_path / "late_nets.py"
    path.write_text(TIMED)
    monkeypatch.syspath_prepend(tmp_path)
    late = dataclasses.replace(spec(), model=ModelSpec(name="late", builder="late_nets:net", options={}))
    code.remember(late)
    path.write_text(TIMED.replace("64", "65"))
    with pytest.raises(InputError, match=r"late_nets\.py: was edited while this process started; start it again"):
        run(late, tmp_path)
    path.write_text(TIMED)
    outcome = run(late, tmp_path)
    path.write_text(TIMED.replace("64", "65"))
    again = run(late, tmp_path, seed=1)
    assert code.kept(again.directory) == code.kept(outcome.directory)


# ---------------------------------------------------------------- as a person meets it


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(tmp_path_factory.mktemp("project"))


def test_an_edit_of_the_builder_trains_again_and_a_comment_does_not(project: Project) -> None:
    path = project.root / "src/remeasure/models/mlp.py"
    first = project.run("train.py", *EPOCHS, cwd=project.root)
    assert first.returncode == 0, first.stderr
    path.write_text(path.read_text() + "\n# a comment\n")
    second = project.run("train.py", *EPOCHS, cwd=project.root)
    assert "finished before" in second.stdout
    path.write_text(path.read_text() + "\nNOTHING = 0\n")
    third = project.run("train.py", *EPOCHS, cwd=project.root)
    assert "finished before" not in third.stdout
    assert "the run that is here was made by other code (models/mlp.py differs): it begins anew" in third.stderr
    assert "-a2/record.json" in third.stdout.splitlines()[-1]
