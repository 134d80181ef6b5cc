"""One row of the table of hostile inputs (``tests/hostile``): what is put there, what is typed, what must be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: how the command or the call may end: refused in one line, or done with a word about what was left out
Files = Mapping[str, str | bytes] | Callable[[Path, "Places"], None]


@dataclass(frozen=True)
class Places:
    """What rows may use: folders made once, none of which a row may change.

    Attributes:
        moments: second moments of the atlas over 8,000 tokens.
        tiny: checkpoint of a GPT-2 of three narrow blocks with the atlas's tokenizer.
        edits: ledger of two sequential batches of two facts each on the atlas.
    """

    moments: Path
    tiny: Path
    edits: Path


@dataclass(frozen=True)
class Command:
    """A command as a user types it.

    Attributes:
        name: of the row, unique in its file.
        command: what is typed after ``editkit``; ``$moments``, ``$tiny`` and ``$edits`` are the places. It is run in an
            empty folder, less what ``files`` puts there.
        line: regular expression that the one line on standard error must contain: field, expected, came, remedy.
        files: file name to content, or a function of the folder and the places that fills it.
        code: exit code. With 0 the run must go through, and ``line`` is looked for in all that was printed or warned.
        environment: variables that are set.
        slow: not in the default run.
    """

    name: str
    command: str
    line: str
    files: Files = field(default_factory=dict)
    code: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False


@dataclass(frozen=True)
class Call:
    """A call of the Python API.

    Attributes:
        name: of the row, unique in its file.
        call: a function of a folder and the places; it must raise an ``InputError``.
        line: regular expression that its message must contain.
        files: as for ``Command``.
        slow: not in the default run.
    """

    name: str
    call: Callable[[Path, Places], Any]
    line: str
    files: Files = field(default_factory=dict)
    slow: bool = False


def fill(folder: Path, files: Files, places: Places) -> None:
    """Put a row's files into its folder."""
    if callable(files):
        files(folder, places)
        return
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and its folders (with a slash)."""
    return {
        str(path.relative_to(folder)) + ("/" if path.is_dir() else ""): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
