"""One line, whatever comes in."""

from __future__ import annotations

import pytest

from editkit.utils.errors import InputError, field_error, shorten


@pytest.mark.parametrize("text", ["a\nb", "a\r\n  b", "\n a\n\n\tb \n"])
def test_an_error_is_one_line(text: str) -> None:
    assert str(InputError(text)) == "a b"


def test_values_are_shown_short_and_on_one_line() -> None:
    assert shorten("x" * 1000, 20) == "'" + "x" * 18 + "…"
    assert "\n" not in shorten("a\nb")
    assert shorten({"a": None}) == "{'a': None}"


def test_the_field_is_named_with_what_came_and_what_to_do() -> None:
    error = field_error("data.seed", "a whole number", [1, 2], "give one number")
    assert str(error) == "field 'data.seed': expected a whole number, got [1, 2]; give one number"
    assert isinstance(error, ValueError)
