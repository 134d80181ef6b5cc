"""Values in settings: of the kind that their types name, and numbers finite and within bounds, whoever made them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from editkit.utils.errors import InputError, describe, shorten


def check_numbers(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> None:
    """Raise an ``InputError`` for a value of another kind than its type, or a number not finite or out of bounds.

    The command line's parser checks the types of jsonargparse (``PositiveInt`` …) and lets infinity pass; Python checks
    nothing.

    Args:
        values: settings by name; those that are dataclasses are looked into.
        hints: their types.
        prefix: of the names in messages.

    >>> from jsonargparse.typing import PositiveInt
    >>> check_numbers({"steps": 0}, {"steps": PositiveInt | None}, "values")
    Traceback (most recent call last):
    ...
    editkit.utils.errors.InputError: values.steps: expected a whole number >0, but got 0; correct it
    """
    for name, value in values.items():
        field = f"{prefix}.{name}"
        if is_dataclass(value) and not isinstance(value, type):
            own = {f.name: getattr(value, f.name) for f in fields(value)}
            check_numbers(own, get_type_hints(type(value)), field)
        elif not _is_one_of(value, hints.get(name)):
            raise InputError(f"{field}: expected {_named(hints[name])}, but got {describe(value)}; correct it")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field}: expected a finite number, but got {value}; correct it")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            for kind in _restricted(hints.get(name)):
                try:
                    kind(value)
                except (TypeError, ValueError) as error:
                    bounds = re.sub(r"\bv", "", kind._expression)
                    what = "a whole number" if kind._type is int else "a number"
                    raise InputError(
                        f"{field}: expected {what} {bounds}, but got {shorten(value)}; correct it"
                    ) from error


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_one_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a plain kind that its type allows; where the type says nothing plain, it may be any.

    What a parser has checked already may be here as the mapping that a config has for it.
    """
    if isinstance(value, Mapping):
        return True
    for option in _options(hint):
        if get_origin(option) is Literal:
            if value in get_args(option):
                return True
        elif not isinstance(option, type) or get_origin(option) is not None:
            return True
        elif issubclass(option, float) or (issubclass(option, int) and option is not bool):
            if isinstance(value, Real) and not isinstance(value, bool):
                return True
        elif isinstance(value, option):
            return True
    return False


def _named(hint: Any) -> str:
    """What a type asks for, in words."""
    words: list[str] = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            words += map(repr, get_args(option))
        elif option is NoneType:
            words.append("None")
        else:
            number = issubclass(option, (int, float)) and option is not bool
            words.append("a number" if number else f"a {option.__name__}")
    return " or ".join(words)


def _restricted(hint: Any) -> list[Any]:
    """The types of a hint that have bounds."""
    return [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and hasattr(kind, "_restrictions")]
