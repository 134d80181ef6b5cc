"""Numbers in settings: finite, and within the bounds that their types name, whoever made the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from editkit.utils.errors import InputError, shorten


def check_numbers(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> None:
    """Raise an ``InputError`` for a number that is not finite, or outside the bounds of its type.

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
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field}: expected a finite number, but got {value}; correct it")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            for kind in _restricted(hints.get(name)):
                try:
                    kind(value)
                except (TypeError, ValueError) as error:
                    bounds = kind._expression.replace("v", "", 1)
                    what = "a whole number" if kind._type is int else "a number"
                    raise InputError(
                        f"{field}: expected {what} {bounds}, but got {shorten(value)}; correct it"
                    ) from error


def _restricted(hint: Any) -> list[Any]:
    """The types of a hint that have bounds."""
    return [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and hasattr(kind, "_restrictions")]
