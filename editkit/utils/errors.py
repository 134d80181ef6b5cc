"""The one error that a user's own input can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from a user: a file, a record, an option or an argument.

    The message is one line that names the field, what was expected, what came and the remedy; line breaks in it are
    collapsed to single spaces. The command line prints it as it stands and exits with code 2, without a traceback.

    Args:
        message: The text; may hold line breaks, which are collapsed.

    Example:
        >>> raise InputError("field 'layers': expected a list,\\n got 5; write [5]")
        Traceback (most recent call last):
        ...
        editkit.utils.errors.InputError: field 'layers': expected a list, got 5; write [5]
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(part for line in str(message).splitlines() if (part := line.strip())))


def shorten(value: object, width: int = 60) -> str:
    """Show a value of the user's in a message.

    Args:
        value: Anything; ``None`` reads "nothing".
        width: Most characters of its ``repr`` that are kept, the "…" of a cut included.

    Returns:
        One line of at most ``width`` characters.

    Example:
        >>> shorten("Ly\\non"), shorten(None), shorten("abcdefgh", width=6)
        ("'Ly\\\\non'", 'nothing', "'abcd…")
    """
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def describe(value: object) -> str:
    """Show what came in the place of something else: plain values as they are, other objects by their kind.

    Example:
        >>> describe("gpt2"), describe(dict), describe(object())
        ("'gpt2'", 'the class dict', 'an object of object')
    """
    if value is None or isinstance(value, (str, bytes, int, float, list, tuple, dict)):
        return shorten(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of {type(value).__name__}"


def field_error(field: str, expected: str, came: object, remedy: str) -> InputError:
    """Build the error about one field, in the wording that all of editkit uses.

    Args:
        field: The name as the user wrote it, such as ``requested_rewrite.subject``.
        expected: What the field should hold, as a noun phrase.
        came: The value found; shown by :func:`shorten`.
        remedy: What to do, in the imperative.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> field_error("subject", "a string", 1984, "put it in quotes")
        InputError("field 'subject': expected a string, got 1984; put it in quotes")
    """
    return InputError(f"field {field!r}: expected {expected}, got {shorten(came)}; {remedy}")
