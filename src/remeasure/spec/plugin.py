"""A class of the user's that a config names: an observer or a callback."""

import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from remeasure.spec.base import InputError, Strict

T = TypeVar("T")


_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def imported(reference: str, *, where: str) -> Any:
    """What "package.module:name" names. Raises InputError, which begins with `where`."""
    if not _REFERENCE.fullmatch(reference):
        raise InputError(f"{where}: expected module:name, such as package.module:Class, got {reference!r}")
    try:
        return pkgutil.resolve_name(reference)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where}: {reference} cannot be imported: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Plugin(Strict):
    """`builder`: "module:name" of a class or function; `options`: its keyword arguments."""

    builder: str
    options: dict[str, Any] = field(default_factory=dict)

    def _faults(self) -> Iterable[str]:
        if not _REFERENCE.fullmatch(self.builder):
            yield f"builder: expected module:name, such as package.module:Class, got {self.builder!r}"

    def build(self, kind: type[T], *, where: str, **context: object) -> T:
        """An instance of `kind`; `context`: further arguments, of which it gets those that its signature names.

        Raises InputError, which begins with `where`.
        """
        builder = imported(self.builder, where=f"{where}.builder")
        known = {key: value for key, value in context.items() if key in inspect.signature(builder).parameters}
        try:
            made = builder(**known, **self.options)
        except (TypeError, ValueError) as error:
            faults = error.faults if isinstance(error, InputError) else (f"{where}: {self.builder}: {error}",)
            raise InputError(*faults) from error
        if not isinstance(made, kind):
            raise InputError(f"{where}: {self.builder} makes {type(made).__name__}, expected {kind.__name__}")
        return made
