"""A class of the user's that a config names: an observer or a callback."""

import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from remeasure.spec.base import InputError, Strict

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plugin(Strict):
    """`builder`: "module:name" of a class or function; `options`: its keyword arguments."""

    builder: str
    options: dict[str, Any] = field(default_factory=dict)

    def _faults(self) -> Iterable[str]:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", self.builder):
            yield f"builder: expected module:name, such as package.module:Class, got {self.builder!r}"

    def build(self, kind: type[T], *, where: str, **context: object) -> T:
        """An instance of `kind`; `context`: further arguments, of which it gets those that its signature names.

        Raises InputError, which begins with `where`.
        """
        try:
            builder = pkgutil.resolve_name(self.builder)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{where}.builder: {self.builder} cannot be imported: {error}") from None
        known = {key: value for key, value in context.items() if key in inspect.signature(builder).parameters}
        try:
            made = builder(**known, **self.options)
        except (TypeError, ValueError) as error:
            faults = error.faults if isinstance(error, InputError) else (f"{where}: {self.builder}: {error}",)
            raise InputError(*faults) from error
        if not isinstance(made, kind):
            raise InputError(f"{where}: {self.builder} makes {type(made).__name__}, expected {kind.__name__}")
        return made
