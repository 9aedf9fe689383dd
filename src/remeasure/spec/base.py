"""What all parts of a spec stand on: names, limits, InputError, and dataclasses that tell all their faults."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

CONFIG_NAME = re.compile(r"\w[\w.-]{0,99}")  # of a model, data set or recipe: part of folders' names
LARGEST = 2**63 - 1  # of whole numbers in a config, a ledger or a record: beyond it a float may be infinite
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
    """What is wrong with the input in the block joins the list, so that all of it can be told together."""
    try:
        yield
    except InputError as error:
        faults += error.faults


class Strict:
    """Unknown keys are faults wherever a dataclass is read from YAML or JSON (read by pydantic), and so is each line of
    `_faults`: one ValueError names them all.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if faults := tuple(self._faults()):
            raise ValueError("\n".join(faults))

    def _faults(self) -> Iterable[str]:
        return ()


def count_faults(run: object) -> Iterable[str]:
    """What is wrong with the counts that a RunSpec and a Config both have."""
    for key in ("engine_width", "steps_per_block", "cpu_threads"):
        if getattr(run, key) < 1:
            yield f"{key}: expected 1 or more, got {getattr(run, key)}"


def canonical_json(value: object) -> str:
    """The one text of a plain value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class DataMissingError(InputError):
    """A data set can be neither found nor downloaded here; the faults say which files it wants and where they go."""


@contextmanager
def noted(missing: list[tuple[str, ...]]) -> Iterator[None]:
    """What is missing in the block joins the list, so that all of it can be named together."""
    try:
        yield
    except DataMissingError as error:
        missing.append(error.faults)
