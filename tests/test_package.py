"""The names that ``editkit`` has, and what it says of those that it had."""

from __future__ import annotations

import pytest

import editkit


def test_every_public_name_is_there() -> None:
    assert [name for name in editkit.__all__ if not hasattr(editkit, name)] == []
    assert set(editkit.__all__) <= set(dir(editkit))


def test_a_renamed_name_says_so() -> None:
    with pytest.raises(AttributeError) as told:
        _ = editkit.MomentSource
    assert str(told.value) == "editkit.MomentSource was renamed to editkit.SecondMomentSource"
    for old, new in editkit._RENAMED.items():
        assert not hasattr(editkit, old)
        assert hasattr(editkit, new)


def test_a_name_that_never_was_is_unknown() -> None:
    with pytest.raises(AttributeError, match="module 'editkit' has no attribute 'Nope'"):
        _ = editkit.Nope
