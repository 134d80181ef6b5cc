"""Numbers and lists of things in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what is counted, which is one or several.

    Args:
        number: how many.
        one: the word for one of them.
        many: the word for several; default with an s.

    >>> counted(1, "fact"), counted(12_000, "fact"), counted(0, "batch", "batches")
    ('1 fact', '12,000 facts', '0 batches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str], count: int = 3, between: str = ", ") -> str:
    """Names, the first few of many.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - count
    return between.join(names[:count]) + (f" and {more} more" if more > 0 else "")
