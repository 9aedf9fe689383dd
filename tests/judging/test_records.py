import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.support.measured import ENVIRONMENT, LABELS, ROW, SPEC, VERSIONS, curve, group, predictions, record, snapshot

from remeasure.judging.publish import ensure_header, publish, recover
from remeasure.judging.reader import read_findings, read_row, read_runs
from remeasure.judging.records import RowResults
from remeasure.spec.base import InputError, canonical_sha256
from remeasure.spec.record import FoundPoint, RunRecord
from remeasure.spec.run import spec_sha256
from remeasure.system.atomic import write_atomic
from remeasure.system.formats import decode_npz, encode_csv, encode_npz, predicted_sha256

RUNS_HEADER = (  # as the design document prints it
    "row,seed,spec_sha256,training_version,accuracy_percent,num_correct,num_test,loss,num_params,epochs,wall_seconds,"
    "device,device_kind,data_sha256,data_official,commit,dirty,versions_sha256,predicted_sha256,mlflow_run_id,finished_at"
)
NPZ_TYPES = {"seeds": ("<i8",), "predicted": ("|u1",), "confidence": ("<f2",)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder that holds the tiny row."""
    recover(tmp_path / "results")
    publish(tmp_path / "results", row=ROW, files=group().to_files())
    return tmp_path / "results"


def diverged(seed: int) -> RunRecord:
    return record(seed, accuracy_percent=None, num_correct=None, loss=None, predicted_sha256=None)


# ---------------------------------------------------------------- formats


def test_runs_file_has_the_documented_columns_and_decimals(results: Path) -> None:
    header, first, *_ = (results / f"runs/{ROW}.csv").read_text().splitlines()
    assert header == RUNS_HEADER
    cells = dict(zip(header.split(","), next(csv.reader([first])), strict=True))
    assert cells["accuracy_percent"] == "95.000"
    assert cells["loss"] == "0.123457"
    assert cells["wall_seconds"] == "1.2"
    assert cells["dirty"] == "false"
    assert cells["device"] == "Some CPU, two cores"
    assert cells["mlflow_run_id"] == ""


def test_curves_file_has_the_documented_columns(results: Path) -> None:
    header, first, *_ = (results / f"curves/{ROW}.csv").read_text().splitlines()
    assert header == "row,seed,epoch,split,loss,accuracy_percent,lr"
    assert first == f"{ROW},0,1,train,0.75,81.250,0.001"


def test_findings_file_has_the_documented_columns(results: Path) -> None:
    header, first, *_ = (results / f"findings/{ROW}.csv").read_text().splitlines()
    assert header == "row,seed,finding,evidence"
    assert first == f'{ROW},1,dead units,"1 of 4, on 8 images"'


def test_a_row_that_is_measured_again_and_sound_has_no_findings_file(results: Path) -> None:
    publish(results, row=ROW, files=group(findings=()).to_files())
    assert not (results / f"findings/{ROW}.csv").exists()
    assert read_findings(results, row=ROW) == []
    found = read_row(results, row=ROW)
    assert found is not None
    assert found.findings == ()


def test_a_finding_of_a_seed_without_a_record_is_refused() -> None:
    stray = FoundPoint(row=ROW, seed=9, finding="plateau", evidence="made up")
    with pytest.raises(InputError, match=r"findings/tiny-shapes.csv, line 2, column seed: .*found 9"):
        group(findings=(stray,))


def test_findings_that_were_changed_or_taken_away_are_named(results: Path) -> None:
    path = results / f"findings/{ROW}.csv"
    path.write_text(path.read_text().replace("1 of 4", "0 of 4"))
    for read in (read_findings, read_row):
        with pytest.raises(InputError, match=f"findings/{ROW}.csv: differs"):
            read(results, row=ROW)
    path.unlink()
    with pytest.raises(InputError, match=f"findings/{ROW}.csv: expected a file"):
        read_row(results, row=ROW)


def test_numpy_alone_reads_predictions_in_the_smallest_type(results: Path) -> None:
    with np.load(results / f"predictions/{ROW}.npz", allow_pickle=False) as archive:
        assert archive["seeds"].tolist() == [0, 1, 2, 3, 4]
        assert archive["predicted"].dtype == np.uint8
        assert archive["confidence"].dtype == np.float16
        assert (archive["predicted"] == LABELS).sum(axis=1).tolist() == [38, 37, 38, 37, 38]


def test_spec_and_environment_are_plain_yaml_and_json(results: Path) -> None:
    text = (results / f"specs/{ROW}.yaml").read_text()
    assert text.startswith("# Generated")
    assert yaml.safe_load(text)["recipe"]["optimizer"]["lr_peak"] == 0.00001
    assert json.loads((results / f"environments/{VERSIONS}.json").read_text()) == ENVIRONMENT


def test_same_row_gives_same_bytes_and_carries_no_clock() -> None:
    files = group().to_files()
    assert files == group().to_files()
    with zipfile.ZipFile(io.BytesIO(files[f"predictions/{ROW}.npz"])) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_seal_is_what_sha256sum_checks(results: Path) -> None:
    command = ["sha256sum", "--check", "--strict", f"sums/{ROW}.sha256"]
    passed = subprocess.run(command, cwd=results, capture_output=True, text=True, check=False)
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout.count(": OK") == 7
    (results / f"curves/{ROW}.csv").write_text("altered")
    assert subprocess.run(command, cwd=results, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    ("classes", "content"),
    [([0, 3, 255], b"\x00\x03\xff"), ([1, 256], b"\x01\x00\x00\x01"), ([65536], b"\x00\x00\x01\x00"), ([], b"")],
)
def test_predicted_sha256_is_over_the_smallest_little_endian_type(classes: list[int], content: bytes) -> None:
    expected = hashlib.sha256(content).hexdigest()
    assert predicted_sha256(np.array(classes, dtype=np.int64)) == expected
    assert predicted_sha256(np.array(classes, dtype=">u4")) == expected


def test_predicted_sha256_refuses_a_negative_class() -> None:
    with pytest.raises(ValueError, match="from 0 up, got -1"):
        predicted_sha256(np.array([0, -1]))


def test_versions_sha256_is_over_sorted_compact_json() -> None:
    expected = hashlib.sha256(b'{"a":1,"b":"x"}').hexdigest()
    assert canonical_sha256({"b": "x", "a": 1}) == expected


# ---------------------------------------------------------------- reading back


def test_a_published_row_is_read_back_whole(results: Path) -> None:
    found, expected = read_row(results, row=ROW), group()
    assert found is not None
    assert [entry.num_correct for entry in found.records] == [38, 37, 38, 37, 38]
    assert found.records[1] == record(1, loss=0.123457, wall_seconds=2.2)  # as rounded in the file
    for key in ("seeds", "predicted", "confidence", "filters"):
        assert np.array_equal(getattr(found, key), getattr(expected, key)), key
    assert found.to_files() == expected.to_files()


def test_a_diverged_seed_keeps_its_line_and_has_no_predictions(tmp_path: Path) -> None:
    records = (*(record(seed) for seed in range(4)), diverged(4))
    predicted = np.stack([predictions(num_wrong=count) for count in (2, 3, 2, 3)])
    kept = group(records=records, seeds=np.arange(4), predicted=predicted, confidence=np.ones((4, 40)))
    publish(tmp_path, row=ROW, files=kept.to_files())
    assert read_runs(tmp_path, row=ROW)[4] == dataclasses.replace(diverged(4), wall_seconds=5.2)
    found = read_row(tmp_path, row=ROW)
    assert found is not None
    assert found.predicted.shape == (4, 40)


def test_a_row_of_which_every_seed_diverged_can_be_kept(tmp_path: Path) -> None:
    nothing = np.zeros((0, 40))
    lost = group(
        records=tuple(diverged(seed) for seed in range(5)),
        seeds=np.arange(0),
        predicted=nothing.astype(np.uint8),
        confidence=nothing,
        curves=(),
        filters=np.zeros(0),
    )
    publish(tmp_path, row=ROW, files=lost.to_files())
    found = read_row(tmp_path, row=ROW)
    assert found is not None
    assert found.seeds.tolist() == []


def test_a_row_without_a_record_is_a_header_alone(tmp_path: Path) -> None:
    assert read_runs(tmp_path, row=ROW) == []
    ensure_header(tmp_path, row=ROW)
    assert (tmp_path / f"runs/{ROW}.csv").read_text() == RUNS_HEADER + "\n"
    assert read_runs(tmp_path, row=ROW) == []
    assert read_row(tmp_path, row=ROW) is None


def test_a_header_never_replaces_records(results: Path) -> None:
    ensure_header(results, row=ROW)
    assert len(read_runs(results, row=ROW)) == 5


# ---------------------------------------------------------------- faults


def alter_cell(path: Path, *, column: str, text: str) -> None:
    """Put `text` into the third line of a CSV file."""
    lines = list(csv.reader(io.StringIO(path.read_text())))
    lines[2][lines[0].index(column)] = text
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    path.write_text(out.getvalue())


def test_a_record_of_an_unknown_commit_says_so_and_is_read_again(tmp_path: Path) -> None:
    """An empty cell is neither clean nor dirty."""
    plain = group()
    records = tuple(dataclasses.replace(record, commit="unknown", dirty=None) for record in plain.records)
    for path, content in dataclasses.replace(plain, records=records).to_files().items():
        write_atomic(tmp_path / path, content)
    assert ",unknown,," in (tmp_path / f"runs/{ROW}.csv").read_text()
    assert {(record.commit, record.dirty) for record in read_runs(tmp_path, row=ROW)} == {("unknown", None)}


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("row", "other", "expected tiny-shapes, found other"),
        ("seed", "-1", "expected 0 or more, found -1"),
        ("seed", "01", "expected int as remeasure writes it, found '01'"),
        ("seed", "٣", "expected int as remeasure writes it"),
        ("seed", "0", "each seed once, rising, found [0, 0, 2, 3, 4]"),
        ("num_correct", "36", "expected 90.000 (num_correct 36 of 40), found 92.500"),
        ("num_correct", "41", "expected 0 to 40, found 41"),
        ("num_correct", "37.0", "expected int as remeasure writes it, found '37.0'"),
        ("num_correct", "", "num_correct: expected a value, or none in any of"),
        ("accuracy_percent", "92.501", "expected 92.500 (num_correct 37 of 40), found 92.501"),
        ("accuracy_percent", "92.5", "expected float as remeasure writes it, found '92.5'"),
        ("accuracy_percent", "nan", "found 'nan'"),
        ("loss", "inf", "found 'inf'"),
        ("num_test", "50", "expected 40 as in the first line, found 50"),
        ("num_test", "0", "expected 1 or more, found 0"),
        ("wall_seconds", "-2.0", "expected 0 or more, found -2.0"),
        ("num_params", "62", "expected 61 as in the first line, found 62"),
        ("device_kind", "tpu", "expected cpu or cuda or mps, found 'tpu'"),
        ("device_kind", "cuda", "expected cpu as in the first line, found cuda"),
        ("data_official", "", "expected yes or no or unknown, found ''"),
        ("data_sha256", "e" * 64, f"expected {'d' * 64} as in the first line"),
        ("spec_sha256", "e" * 64, "as in the first line"),
        ("versions_sha256", "../../secret", "expected 64 hexadecimal digits, found '../../secret'"),
        ("dirty", "False", "expected bool as remeasure writes it, found 'False'"),
        ("finished_at", "yesterday", "expected a time in UTC such as 2026-11-22T14:05:09Z, found 'yesterday'"),
        ("finished_at", "2026-13-22T14:05:09Z", "expected a time in UTC"),
    ],
)
def test_a_bad_cell_is_refused_with_file_line_and_column(results: Path, column: str, text: str, message: str) -> None:
    path = results / f"runs/{ROW}.csv"
    alter_cell(path, column=column, text=text)
    with pytest.raises(InputError) as caught:
        read_runs(results, row=ROW)
    fault = next(fault for fault in caught.value.faults if message in fault)
    assert str(path) in fault
    assert column in fault
    assert "line 3" in fault or "rising" in fault


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with its header"),
        (b"\xff\xfe", "begins with its header"),
        (b"row,seed\n", "line 1: expected row,seed,spec_sha256"),
        (RUNS_HEADER.encode() + b"\nonly,three,cells\n", "line 2: expected 21 cells, found 3"),
        (RUNS_HEADER.encode() + b"\r\n", "line endings"),
        (RUNS_HEADER.encode() + b'\n"open', "begins with its header"),
    ],
)
def test_a_malformed_runs_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_atomic(tmp_path / f"runs/{ROW}.csv", content)
    with pytest.raises(InputError, match=message):
        read_runs(tmp_path, row=ROW)


def test_all_bad_cells_are_named_together(results: Path) -> None:
    (results / f"sums/{ROW}.sha256").unlink()  # which would name the file, too
    for column in ("seed", "loss", "dirty"):
        alter_cell(results / f"runs/{ROW}.csv", column=column, text="?")
    with pytest.raises(InputError) as caught:
        read_runs(results, row=ROW)
    assert len(caught.value.faults) == 3


def changed_prediction() -> np.ndarray:
    predicted = group().predicted.copy()
    predicted[3, 7] = (predicted[3, 7] + 1) % 4
    return predicted


def confidence(value: float) -> np.ndarray:
    values = np.ones((5, 40), dtype=np.float16)
    values[2, 2] = value
    return values


BETTER = tuple(point for seed in range(5) for point in curve(seed, accuracy_percent=95.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": np.array([0, 1, 2, 3, 5])}, f"predictions/{ROW}.npz, seeds: expected [0, 1, 2, 3, 4], found"),
        ({"predicted": changed_prediction()}, f"predictions/{ROW}.npz, SHA-256 of seed 3: expected"),
        ({"predicted": LABELS[None, :]}, "shape of predicted: expected (5, 40), found (1, 40)"),
        ({"confidence": np.ones((5, 39))}, "shape of confidence: expected (5, 40), found (5, 39)"),
        ({"confidence": confidence(np.nan)}, "confidence: expected finite numbers in [0, 1]"),
        ({"confidence": confidence(1.5)}, "confidence: expected finite numbers in [0, 1]"),
        ({"confidence": confidence(-0.5)}, "confidence: expected finite numbers in [0, 1]"),
        ({"curves": BETTER}, f"curves/{ROW}.csv, last test accuracy of seed 1: expected 92.500, found 95.000"),
        ({"curves": BETTER[:3]}, f"curves/{ROW}.csv, last test accuracy of seed 2: expected 95.000, found none"),
        ({"filters": np.array([np.inf])}, f"filters/{ROW}.npz, weights: expected finite numbers"),
        ({"spec": {}}, f"specs/{ROW}.yaml: expected a whole resolved spec (KeyError: 'recipe')"),
        (
            {"spec": {**SPEC, "cpu_threads": 2}},
            f"specs/{ROW}.yaml, spec_sha256: expected {spec_sha256(SPEC)}",
        ),
        ({"environments": {}}, f"environments of {ROW}: expected ['{VERSIONS}'], found []"),
        ({"environments": {VERSIONS: {"python": "3.12"}}}, f"environments/{VERSIONS}.json, SHA-256 of its content"),
    ],
)
def test_files_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        group(**changes)
    assert any(message in fault for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize("name", sorted(group().to_files()))
def test_each_missing_file_is_named(results: Path, name: str) -> None:
    (results / name).unlink()
    with pytest.raises(InputError, match=name.rsplit(".", maxsplit=1)[0]):
        read_row(results, row=ROW)


@pytest.mark.parametrize("name", sorted(group().to_files()))
def test_an_altered_byte_that_no_other_check_reaches_breaks_the_seal(results: Path, name: str) -> None:
    content = (results / name).read_bytes()
    (results / name).write_bytes(content + b"\n")
    with pytest.raises(InputError, match=name.rsplit(".", maxsplit=1)[0]):
        read_row(results, row=ROW)


def test_an_npz_that_holds_a_pickle_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, seeds=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"x\.npz: not a readable npz file"):
        decode_npz(buffer.getvalue(), name="x.npz", dtypes=NPZ_TYPES)


def test_a_corrupt_npz_is_an_input_error_wherever_it_is_cut_or_flipped() -> None:
    content = group().to_files()[f"predictions/{ROW}.npz"]
    refused = 0
    for at in range(0, len(content), 7):
        for broken in (content[:at], content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]):
            try:
                decode_npz(broken, name="x.npz", dtypes=NPZ_TYPES)
            except InputError:
                refused += 1
    assert refused > len(content) // 7  # every cut, and most flips: what a zip leaves unread is the seal's


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"seeds": np.arange(2)}, "arrays: expected seeds, predicted, confidence, found seeds"),
        (
            {"seeds": np.arange(2), "predicted": np.zeros(2), "confidence": np.zeros(2, np.float16)},
            "type of predicted: expected |u1, found <f8",
        ),
    ],
)
def test_other_arrays_or_types_are_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_npz(encode_npz(arrays), name="x.npz", dtypes=NPZ_TYPES)
    assert message in str(caught.value)


def test_a_loss_that_is_not_finite_is_never_written() -> None:
    with pytest.raises(ValueError, match="finite number or None, got nan"):
        encode_csv([record(0, loss=float("nan"))], cls=RunRecord)


# ---------------------------------------------------------------- replaced whole


def newer() -> RowResults:
    """Another measurement of the same row, in another environment: every file but the spec differs."""
    environment = {**ENVIRONMENT, "torch": "2.16.0"}
    versions = canonical_sha256(environment)
    return group(
        records=tuple(record(seed, versions_sha256=versions, wall_seconds=9.0) for seed in range(5)),
        environments={versions: environment},
        confidence=np.ones((5, 40)),
        filters=np.zeros(3),
        curves=tuple(dataclasses.replace(point, lr=0.5) for point in group().curves),
    )


def crash_at(monkeypatch: pytest.MonkeyPatch, *, name: str, call: int) -> None:
    """Let os.<name> raise, and do nothing, from its call number `call` on."""
    real, count = getattr(os, name), 0

    def counted(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count > call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, counted)


@pytest.mark.parametrize("name", ["replace", "fsync", "unlink"])
def test_a_crash_anywhere_leaves_the_old_row_or_the_new(
    results: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old, new = snapshot(results), newer().to_files()
    seen = set()
    for call in range(100):
        with monkeypatch.context() as patch:
            crash_at(patch, name=name, call=call)
            try:
                publish(results, row=ROW, files=new)
                break
            except KeyboardInterrupt:
                pass
        recover(results)
        found = snapshot(results)
        found.pop(f"environments/{VERSIONS}.json", None)  # nobody's any more, once the row is new
        assert found in (new, {key: data for key, data in old.items() if not key.startswith("environments/")})
        seen.add(found == new)
        publish(results, row=ROW, files=group().to_files())
    assert call >= {"replace": 7, "fsync": 9, "unlink": 1}[name]
    assert seen == {"replace": {True}, "fsync": {False, True}, "unlink": {True}}[name]
    assert snapshot(results) == new


def other_row(files_of: RowResults) -> RowResults:
    """The same measurement under another row's name."""
    return dataclasses.replace(
        files_of,
        row="other-shapes",
        records=tuple(dataclasses.replace(entry, row="other-shapes") for entry in files_of.records),
        curves=tuple(dataclasses.replace(point, row="other-shapes") for point in files_of.curves),
        findings=tuple(dataclasses.replace(point, row="other-shapes") for point in files_of.findings),
    )


def test_an_environment_goes_when_the_last_row_that_names_it_goes(results: Path) -> None:
    old = results / f"environments/{VERSIONS}.json"
    publish(results, row="other-shapes", files=other_row(group()).to_files())
    publish(results, row=ROW, files=newer().to_files())
    assert old.exists()
    assert read_row(results, row="other-shapes") is not None
    publish(results, row="other-shapes", files=other_row(newer()).to_files())
    assert not old.exists()
    assert read_row(results, row="other-shapes") is not None


def test_two_processes_never_replace_files_at_once(results: Path) -> None:
    descriptor = os.open(results, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    before = snapshot(results)
    writer = threading.Thread(target=publish, args=(results,), kwargs={"row": ROW, "files": newer().to_files()})
    writer.start()
    writer.join(timeout=0.2)
    assert snapshot(results) == before
    os.close(descriptor)
    writer.join(timeout=10)
    assert snapshot(results) == newer().to_files()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="results: cannot be written"):
        recover(tmp_path / "file" / "results")


def test_a_file_that_holds_the_bytes_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_atomic(path, b"1")
    inode = path.stat().st_ino
    write_atomic(path, b"1")
    assert path.stat().st_ino == inode
    write_atomic(path, b"2")
    assert snapshot(tmp_path) == {"table.csv": b"2"}
