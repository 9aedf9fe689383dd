"""Whatever lies among the photographs: what Pillow decodes is evaluated, all else is refused by name."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tests.badinput.entry import Entry, assert_well_ended, changed, examples, untouched
from tests.badinput.strategies import mutations
from tests.support.photographed import SYNSETS, jpeg

from remeasure.training.photographs import evaluate as photographs_evaluate
from remeasure.training.photographs.loading import Loader

NAMES = tuple(f"{synset}/one.JPEG" for synset in SYNSETS[:3])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(*, width: int, height: int) -> bytes:
    """A PNG that says it has this size, and has a few bytes of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
PICTURES = {
    "CMYK": encoded(Image.fromarray(NOISE[..., :3]).convert("CMYK"), "JPEG"),
    "grey": encoded(Image.fromarray(NOISE[..., 0]), "JPEG"),
    "transparent": encoded(Image.fromarray(NOISE), "PNG"),
    "16 bits": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
}
NO_PICTURES = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "half": jpeg(0)[:600],
    "huge": png(width=60_000, height=60_000),
}

SLIVER = encoded(Image.new("RGB", (1, 65_000)), "PNG")  # 35 pixels wide, it has 80 million


def decodes(content: bytes) -> bool:
    """Whether Pillow makes a whole picture of it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return bool(Image.open(io.BytesIO(content)).convert("RGB").size)
    except Exception:
        return False


@pytest.fixture(scope="module")
def photographs(entry: Entry) -> Iterator[Path]:
    """A folder of three photographs, which are decoded in this process, and weights for timm's smallest ViT."""
    folder = entry.root / "data/imagenet-sample/val"
    for seed, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(jpeg(seed))
    save_file(
        timm.create_model("test_vit", num_classes=1000, img_size=(32, 32)).state_dict(), entry.root / "a.safetensors"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs_evaluate, "Loader", in_this_process)
        yield folder


def in_this_process(dataset: Any, *, collate: Any, **_: object) -> Loader:
    return Loader(dataset, collate=collate, num_workers=0)


def evaluate(entry: Entry) -> Any:
    return entry(
        "train.py",
        *("model=vit_b16", "model.options.architecture=test_vit", f"model.weights={entry.root}/a.safetensors"),
        *("data=imagenet_sample", "data.num_test=3", "recipe=deit_b_eval", "recipe.transform.crop_pixels=32"),
        *("precision=float32", "cpu_threads=1", "fresh=true"),
    )


@examples(2)
@given(st.data())
def test_what_pillow_decodes_is_evaluated_and_all_else_refused_by_name(
    entry: Entry, photographs: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(NAMES))
    content = data.draw(st.sampled_from(sorted({**PICTURES, **NO_PICTURES}.values())).flatmap(mutations))
    with untouched(entry), changed(photographs / name, content=content):
        ended = evaluate(entry)
    assert_well_ended(ended, naming=[str(photographs / name)])
    assert ended.status == (0 if decodes(content) else 2), ended


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_another_kind_is_evaluated(entry: Entry, photographs: Path, kind: str) -> None:
    with changed(photographs / NAMES[1], content=PICTURES[kind]):
        ended = evaluate(entry)
    assert_well_ended(ended, naming=[])
    assert ended.status == 0


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_a_file_that_is_no_picture_is_refused_by_name(entry: Entry, photographs: Path, kind: str) -> None:
    with untouched(entry), changed(photographs / NAMES[1], content=NO_PICTURES[kind]):
        ended = evaluate(entry)
    assert_well_ended(ended, naming=[str(photographs / NAMES[1])])
    assert ended.status == 2


def test_a_sliver_that_would_fill_the_memory_is_refused_by_name(entry: Entry, photographs: Path) -> None:
    with changed(photographs / NAMES[1], content=SLIVER):
        ended = evaluate(entry)
    assert ended.status == 2
    assert f"{photographs / NAMES[1]}: too narrow" in ended.stderr


def test_a_folder_in_place_of_a_photograph_is_refused(entry: Entry, photographs: Path) -> None:
    with untouched(entry), changed(photographs / NAMES[1], content=None):
        ended = evaluate(entry)
    assert_well_ended(ended, naming=[f"expected 3 photographs in {photographs}, got 2"])
    assert ended.status == 2


def test_all_files_of_a_batch_that_are_no_pictures_are_named_at_once(entry: Entry, photographs: Path) -> None:
    with changed(photographs / NAMES[0], content=b""), changed(photographs / NAMES[2], content=b"x"):
        ended = evaluate(entry)
    assert ended.status == 2
    assert [name for name in (NAMES[0], NAMES[2]) if str(photographs / name) not in ended.stderr] == []
