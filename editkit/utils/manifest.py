"""A list of a folder's files with their hashes, for folders whose files have formats of others."""

from __future__ import annotations

import json
from pathlib import Path

from editkit.utils.errors import InputError
from editkit.utils.files import file_hash
from editkit.utils.sealed import seal

MANIFEST = "editkit.json"
FREE = (".md",)  # for people, who may change it


def write_manifest(folder: Path) -> None:
    """Write ``editkit.json``: the SHA-256 of every file of a folder but those for people."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix not in FREE)
    content = {"files": {str(f.relative_to(folder)): file_hash(f) for f in files}}
    text = json.dumps({**content, "sha256": seal(content)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_manifest(folder: Path, field: str) -> None:
    """Compare a folder with its ``editkit.json``, if it has one.

    Raises:
        InputError: a file is not there, or not bit for bit what was written.
    """
    place = folder / MANIFEST
    if not place.is_file():
        return
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        whole = content.pop("sha256") == seal(content)
        differing = [name for name, found in content["files"].items() if file_hash(folder / name) != found]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(field, folder, f"{place.name} ({type(error).__name__})") from error
    if not whole or differing:
        raise _broken(field, folder, ", ".join(differing) or place.name)


def _broken(field: str, folder: Path, what: str) -> InputError:
    return InputError(
        f"{field}: expected {folder} as editkit wrote it, but {what} is not; copy or export it again, or delete "
        f"{MANIFEST} if it was changed on purpose"
    )
