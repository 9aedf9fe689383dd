"""Shared by all spec modules: names, limits, InputError, and dataclasses that report all their faults at once."""

import functools
import hashlib
import json
import re
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

CONFIG_NAME = re.compile(r"\w[\w.-]{0,99}")  # a model, data set or recipe; becomes part of folder names
ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9][A-Za-z0-9_.]*)*")  # <model>-<data>[-variant], or a part
LARGEST = 2**63 - 1  # integer in a config, ledger or record: a larger one may overflow to inf as a float
FIRST_TUNING_SEED = 1000  # seeds below are the ledger's; tuning on the validation split uses seeds from here up

DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
Engine = Literal["serial", "batched", "numpy"]
Keep = Literal["all", "first", "none"]  # the seeds whose trained network is kept; first: of a row
Mode = Literal["train", "evaluate"]
Control = Literal["none", "shuffled_labels", "swapped_classes", "tenth_of_data", "other_normalisation"]


class InputError(ValueError):
    """The input (config, data, ledger, command line) is wrong. `faults` holds one line for each fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def refuse(faults: Iterable[str]) -> None:
    """Raise one InputError that names every fault, if there is any."""
    if found := tuple(faults):
        raise InputError(*found)


@contextmanager
def gathered(faults: list[str]) -> Iterator[None]:
    """Catch an InputError of the block and add its faults to the list, so that all faults are reported together."""
    try:
        yield
    except InputError as error:
        faults += error.faults


@dataclass(frozen=True)
class Within:
    """The range of a value: `eps: Annotated[float | None, Within("a number above 0", lambda eps: eps > 0)]`.

    Null is in every range.
    """

    expected: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Within("1 or more", lambda value: value >= 1)]
CountOrZero = Annotated[int, Within("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Within("a number above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Within("0 or more", lambda value: value >= 0)]


@functools.cache
def _ranges(cls: Any) -> list[tuple[str, Within]]:
    """The ranges of a dataclass's fields, by their names; that of a type, and of a type or None."""
    parts = ((entry.name, part) for entry in fields(cls) for part in (entry.type, *get_args(entry.type)))
    return [(name, limit) for name, part in parts for limit in getattr(part, "__metadata__", ())]


@dataclass(frozen=True)
class Strict:
    """Base of the spec dataclasses: pydantic refuses unknown keys when it reads one from YAML or JSON, and the
    constructor raises one ValueError with all lines of `faults`.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if faults := tuple(self.faults()):
            raise ValueError("\n".join(faults))

    def faults(self) -> Iterator[str]:
        """The values that are out of their ranges (Within); then `_faults`. A field that is not set yet has none."""
        for name, limit in _ranges(type(self)):  # type: ignore[arg-type]  # mypy takes the instances' hash
            if (value := getattr(self, name, None)) is not None and not limit.holds(value):
                yield f"{name}: expected {limit.expected}, got {_shown(value)}"
        yield from self._faults()

    def _faults(self) -> Iterable[str]:
        """What is wrong beside the ranges."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Choice(Strict, ABC):
    """One of several by `name`, such as one optimiser of all: a class with its arguments as fields, and its builder.

    Defining a class with a `name` registers it in the `choices` of its base (Optimizer, Augmentation, Loss), where
    configs find it; of code from outside, a config says "module:Class", which spec.plugin registers. A null argument is
    one that is not set. `key`: where a config has the choice. `engines`: those that implement it, photographs included;
    the others refuse it by name.
    """

    name: str
    key: ClassVar[str]
    engines: ClassVar[tuple[str, ...]] = ("serial",)
    choices: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if Choice in cls.__bases__:
            cls.choices = {}
        elif (name := vars(cls).get("name")) in cls.choices:
            raise TypeError(f"{cls.__name__}: {cls.key}.name={name} is {cls.choices[name].__name__} already")
        elif name:
            cls.choices[name] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """For pydantic: the choice that `name` names; of a choice itself, its fields."""
        if cls in cls.choices.values():
            return handler(source)
        choices = {name: handler.generate_schema(choice) for name, choice in cls.choices.items()}
        return {"type": "tagged-union", "discriminator": "name", "choices": choices}

    @classmethod
    def argument_names(cls) -> list[str]:
        return [entry.name for entry in fields(cls) if entry.name != "name"]

    def unsupported(self, engine: str) -> Iterable[str]:
        """What of this choice the engine does not implement; each continues "the … engine"."""
        if engine not in self.engines:
            known = [name for name, choice in self.choices.items() if engine in choice.engines]
            yield f"has {', '.join(known)}, not {self.key}.name={self.name}"


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def canonical_json(value: object) -> str:
    """A plain value as canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_sha256(value: object) -> str:
    """SHA-256 over the canonical JSON of a plain value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class DataMissingError(InputError):
    """Data or weights are missing and cannot be downloaded; the faults name the files and where to put them."""


class DivergenceError(ArithmeticError):
    """The loss is no longer finite. `epoch` and `step` (from 0): where it was noticed or, with `reason`, arose."""

    def __init__(self, *, epoch: int, step: int, reason: str = "") -> None:
        super().__init__(reason or f"the loss is not finite after step {step} (epoch {epoch + 1})")
        self.epoch, self.step = epoch, step


@contextmanager
def noted(missing: list[tuple[str, ...]]) -> Iterator[None]:
    """Catch a DataMissingError of the block and append its faults, so that all missing files are named together."""
    try:
        yield
    except DataMissingError as error:
        missing.append(error.faults)
