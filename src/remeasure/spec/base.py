"""Shared by all spec modules: names, limits, InputError, and dataclasses that report all their faults at once."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

CONFIG_NAME = re.compile(r"\w[\w.-]{0,99}")  # a model, data set or recipe; becomes part of folder names
LARGEST = 2**63 - 1  # integer in a config, ledger or record: a larger one may overflow to inf as a float
MOST_THREADS, MOST_TOGETHER = 1024, 1000
FIRST_TUNING_SEED = 1000  # seeds below are the ledger's; tuning on the validation split uses seeds from here up

DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
Engine = Literal["serial", "batched", "numpy"]
Mode = Literal["train", "evaluate"]
Control = Literal["none", "shuffled_labels", "swapped_classes", "tenth_of_data", "other_normalisation"]


class InputError(ValueError):
    """The input (config, data, ledger, command line) is wrong. `faults` holds one line for each fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@contextmanager
def gathered(faults: list[str]) -> Iterator[None]:
    """Catch an InputError of the block and add its faults to the list, so that all faults are reported together."""
    try:
        yield
    except InputError as error:
        faults += error.faults


class Strict:
    """Base of the spec dataclasses: pydantic refuses unknown keys when it reads one from YAML or JSON, and the
    constructor raises one ValueError with all lines of `_faults`.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if faults := tuple(self._faults()):
            raise ValueError("\n".join(faults))

    def _faults(self) -> Iterable[str]:
        return ()


def count_faults(run: object) -> Iterable[str]:
    """Faults in the counts that RunSpec and Config share."""
    for key in ("engine_width", "steps_per_block", "cpu_threads"):
        if getattr(run, key) < 1:
            yield f"{key}: expected 1 or more, got {getattr(run, key)}"


def canonical_json(value: object) -> str:
    """A plain value as canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class DataMissingError(InputError):
    """Data or weights are missing and cannot be downloaded; the faults name the files and where to put them."""


@contextmanager
def noted(missing: list[tuple[str, ...]]) -> Iterator[None]:
    """Catch a DataMissingError of the block and append its faults, so that all missing files are named together."""
    try:
        yield
    except DataMissingError as error:
        missing.append(error.faults)
