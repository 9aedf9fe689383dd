"""What this suite found, each as one plain case: it was a traceback, a wrong number or a fault told alone."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.badinput.entry import Entry, changed
from tests.badinput.test_results_files import ROW_FILES, SEAL, sealed
from tests.support.measured import LEDGER, ROW, VERSIONS

from remeasure.config.compose import compose
from remeasure.data import catalog
from remeasure.judging import ledger
from remeasure.judging.reader import read_runs
from remeasure.models import registry
from remeasure.spec.base import InputError
from remeasure.spec.photographs import Transform
from remeasure.spec.recipe import Normalisation
from remeasure.spec.record import CurvePoint
from remeasure.system.formats import decode_csv, decode_yaml, encode_csv
from remeasure.system.validation import convert
from remeasure.training.photographs.decode import resized_pixels

SHORT = ("model=mlp2", "data=digits", "recipe.epochs_total=1")


def test_a_whole_number_that_a_float_cannot_hold_does_not_become_infinite() -> None:
    with pytest.raises(InputError, match=r"^x.mean.0: expected a number of at most 9223372036854775807, got one of"):
        convert(Normalisation, {"mean": [10**400], "std": [1.0]}, where="x")


def test_nan_is_named_beside_the_other_faults() -> None:
    with pytest.raises(InputError) as refused:
        convert(Normalisation, {"mean": [float("nan")], "std": [0.0], "more": 1}, where="")
    assert [fault.partition(":")[0] for fault in refused.value.faults] == ["mean.0", "more", "std"]


@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("model.name=../elsewhere", "model.name: expected up to 100 letters"),
        (f"recipe.name={'a' * 300}", "recipe.name: expected up to 100 letters"),
        ("data.num_classes=5", "data digits: expected train labels 0 to 4, as data.num_classes is 5, got 0 to 9"),
        ("data.image_shape=[0,8,8]", "data.image_shape: expected channels, height and width from 1 up"),
        ("cpu_threads=1000000000", "cpu_threads: expected at most 1024"),
        ("model.options.hidden_sizes=[1000000000000000]", "model: mlp with options"),
        ("hydra.run.dir=/dev/null/x", "/dev/null/x"),
    ],
)
def test_an_override_that_ended_in_a_traceback_is_refused(entry: Entry, override: str, naming: str) -> None:
    ended = entry("train.py", *SHORT, override)
    assert (ended.status, "Traceback" in ended.stderr) == (2, False)
    assert naming in ended.stderr


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/weights.pth"])
def test_weights_of_a_name_that_no_file_can_have_are_not_there(entry: Entry, name: str) -> None:
    ended = entry("train.py", "model=vit_b16", "model.options.architecture=test_vit", f"model.weights={name}")
    assert ended.status == 2
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe\0name", b"a: [1\n"])
def test_a_config_file_that_nobody_can_read_is_named(entry: Entry, content: bytes) -> None:
    path = entry.root / "conf/recipe/article.yaml"
    with changed(path, content=content):
        ended = entry("train.py", *SHORT, "recipe=article")
    assert ended.status == 2
    assert f"{path}: not valid YAML (" in ended.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [1\n", b"a: !!int ''\n"])
def test_yaml_that_nobody_can_read_is_named(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^some\.yaml: not valid YAML \("):
        decode_yaml(content, name="some.yaml")


def test_the_config_of_data_is_named_where_it_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/odd.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"odd\.yaml: not valid YAML \(.*; save the file as UTF-8\)"):
        catalog.read_config("odd", conf_dirs=[tmp_path])


def test_a_number_of_parameters_that_is_none_is_a_fault_of_the_ledger(tmp_path: Path) -> None:
    """It was a traceback, once the row was measured."""
    path = tmp_path / "ledger.yaml"
    path.write_text(LEDGER.replace("num_params_text: '61'", "num_params_text: some"))
    with pytest.raises(InputError, match=f"rows.{ROW}.published.num_params_text: expected a count like '7,850'"):
        ledger.read(path)


def test_a_row_whose_name_no_file_can_have_is_a_fault_of_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.yaml"
    path.write_text(LEDGER.replace("model: tiny", f"model: {'a' * 300}").replace(ROW, f"{'a' * 300}-shapes"))
    with pytest.raises(InputError, match="expected a name of at most 100 characters, got 307"):
        ledger.read(path)


def test_no_table_is_made_of_records_that_are_not_the_sealed_ones(entry: Entry) -> None:
    """`make verify` found it, but `reproduce.py table` wrote a table of it."""
    path = entry.results / f"runs/{ROW}.csv"
    content = path.read_bytes()
    assert b"92.500,37," in content
    with changed(path, content=content.replace(b"92.500,37,", b"95.000,38,", 1)):
        ended = entry("reproduce.py", "table")
    assert ended.status == 2
    assert f"runs/{ROW}.csv: differs from the SHA-256" in ended.stderr


def test_no_table_is_made_without_records_that_are_sealed(entry: Entry) -> None:
    path = entry.results / f"runs/{ROW}.csv"
    with changed(path, content=path.read_bytes().splitlines(keepends=True)[0]), pytest.raises(InputError, match="none"):
        read_runs(entry.results, row=ROW)


def npz(*, save: Callable[..., None], **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


NUMBER = np.array(3, np.uint8)  # no array at all: there is nothing to go through
ONE: dict[str, np.ndarray] = {"seeds": np.arange(5), "predicted": NUMBER, "confidence": NUMBER.astype("<f2")}
FORGED = {
    f"environments/{VERSIONS}.json": b'{"a": NaN}',
    f"predictions/{ROW}.npz": npz(save=np.savez, **ONE),
    f"filters/{ROW}.npz": npz(save=np.savez_compressed, weights=np.zeros(1_000_000, "<f2")),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_sealed_file_that_ended_in_a_traceback_is_named(entry: Entry, name: str) -> None:
    files = {each: (entry.results / each).read_bytes() for each in ROW_FILES} | {name: FORGED[name]}
    with changed(entry.results / name, content=FORGED[name]), changed(entry.results / SEAL, content=sealed(files)):
        ended = entry("reproduce.py", "verify")
    assert (ended.status, "Traceback" in ended.stderr) == (1, False), ended.stderr
    assert f"{entry.results}/{name}" in ended.stderr


def test_a_count_beyond_every_count_is_no_traceback() -> None:
    point = CurvePoint(row="r", seed=0, epoch=1, split="train", loss=None, accuracy_percent=None, lr=None)
    content = encode_csv([point], cls=CurvePoint).replace(b"r,0,1,", b"r,0," + b"9" * 400 + b",")
    with pytest.raises(InputError, match="line 2, column epoch"):
        decode_csv(content, cls=CurvePoint, name="curves/r.csv")


def test_a_net_larger_than_all_memory_is_refused() -> None:
    model = compose(["model=mlp2", "model.options.hidden_sizes=[1000000000000]"]).model
    with pytest.raises(InputError, match=r"model: mlp with options .* cannot be built for images"):
        registry.build(model, image_shape=(1, 8, 8), num_classes=10, generator_seed=0)


def test_a_sliver_would_be_resized_to_more_than_the_memory_holds() -> None:
    """256 pixels wide and 40,000 times as high, three bytes a pixel: 7.9 GB."""
    transform = Transform(crop_pixels=224, crop_pct=0.875, interpolation="bicubic")
    assert resized_pixels((1, 40_000), transform=transform) == 256 * 256 * 40_000
    assert resized_pixels((500, 375), transform=transform) == 256 * 256 * 500 // 375
