"""Where editkit keeps what it has worked out, and how it writes there: whole files or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from editkit.utils.errors import InputError, describe, shorten
from editkit.utils.signals import hold


def user_path(given: str | Path, field: str) -> Path:
    """A path that a user gave, ~ spelled out.

    Args:
        given: the path.
        field: name of the option that it was given by, for the message.

    Raises:
        InputError: there can be no such path: another kind of value, an empty one, nobody's home, too long a name, a
            place that must not be looked at.
    """
    if not isinstance(given, (str, Path)) or not str(given).strip():
        raise InputError(f"{field}: expected a path, but got {describe(given)}; give one")
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"{field}: expected a path, but got {shorten(str(given))} ({cause}); correct it") from error
    return path


def cache_option() -> str:
    """The environment variable that chose the user's cache, or by which it can be chosen."""
    chosen = not os.environ.get("EDITKIT_CACHE") and os.environ.get("XDG_CACHE_HOME")
    return "XDG_CACHE_HOME" if chosen else "EDITKIT_CACHE"


def cache_folder() -> Path:
    """The user's cache: ``EDITKIT_CACHE``, else ``editkit`` in ``XDG_CACHE_HOME`` or ``~/.cache``; not created here."""
    if given := os.environ.get("EDITKIT_CACHE"):
        return user_path(given, "EDITKIT_CACHE")
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", cache_option()) / "editkit"


def atomic_write(file: Path, write: Callable[[Path], object], field: str = "path") -> None:
    """Write a file under another name beside its own, then rename: a reader sees the old file or the new one whole.

    Who may read it is what the umask says of any new file, whatever ``write`` made of it.

    Args:
        file: where it goes; its folder is made.
        write: writes to the path that it is given.
        field: name of the user's option that chose the place, for the message.

    Raises:
        InputError: it could not be written (no space, no permission); what was there before is untouched.
    """
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with hold():
            file.parent.mkdir(parents=True, exist_ok=True)
            mode = _usual_mode(part)
            write(part)
            _set_mode(part, mode)
            part.replace(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{field}: expected to write {file}, but could not ({error}); what was there before is untouched: make "
            "room, or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The permissions of a new file at ``path``, as the process's umask or the folder's own rule has them.

    Seen by making one: to ask for the umask is to change it, for all threads.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        return stat.S_IMODE(path.stat().st_mode)
    finally:
        path.unlink()


def _set_mode(file: Path, mode: int) -> None:
    """Give a file the permissions of any new one: safetensors makes its files for their owner alone."""
    if stat.S_IMODE(file.stat().st_mode) != mode:
        with contextlib.suppress(PermissionError):  # a file system without permissions
            file.chmod(mode)


def check_can_write(folder: Path, field: str = "path") -> None:
    """Find out, before long work, whether files can be written into a folder that may not be there yet.

    A file without a name is written in the folder, or where its first missing parent would go, so that nothing is left
    behind whatever happens.

    Args:
        folder: where files are to go.
        field: name of the user's option that chose the place, for the message.

    Raises:
        InputError: it is a file, is below one, or cannot be written (no permission, no space, a read-only disk).
    """
    try:
        there = folder.absolute()
        while not _exists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is not a folder")
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0")
    except OSError as error:
        raise InputError(
            f"{field}: expected a folder that can be written, but {folder} cannot ({error.strerror or error}); choose "
            "another"
        ) from error


def _exists(path: Path) -> bool:
    """Whether something is there, a link to nothing included; errors that ``Path.exists`` hides are raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_new_folder(folder: Path, field: str) -> Path:
    """The absolute path of a folder that is to be made whole by ``atomic_write_folder``.

    Raises:
        InputError: something is there that is not an empty folder.
    """
    where = folder.expanduser().resolve()
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        what = "has files in it" if where.is_dir() else "is a file"
        raise InputError(
            f"{field}: expected a folder that is empty or does not exist yet, but {folder} {what}; choose another, or "
            "empty it"
        )
    return where


def atomic_write_folder(folder: Path, write: Callable[[Path], object], field: str = "path") -> None:
    """Write a folder under another name beside its own, then rename: there is a whole folder, or none.

    Who may read its files is what the umask says of any new file.

    Args:
        folder: where it goes; empty or not there yet. Its parents are made.
        write: fills the folder that it is given.
        field: name of the user's option that chose the place, for the message.

    Raises:
        InputError: there is something already, or it could not be written (no space, no permission).
    """
    where = check_new_folder(folder, field)
    part = where.with_name(f".{where.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        mode = _usual_mode(part / ".mode")
        write(part)
        for file in part.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _set_mode(file, mode)
        part.replace(where)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{field}: expected to write the folder {folder}, but could not ({error}); nothing was left there: make "
            "room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def digest(*parts: object) -> str:
    """SHA-256 (first 16 hex digits) of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached_by_files(files: list[Path], kind: str, work_out: Callable[[], Any]) -> Any:
    """A JSON value worked out from files once, and again only after one of them changed in size or time.

    Kept in the user's cache folder; where that cannot be written, the value is worked out each time. So it is for files
    written in the last two seconds, which could change again within one tick of the file system's clock.

    Args:
        files: what it depends on. A hub's revision is part of the path in its cache.
        kind: what it is, so that several values can be kept of the same files.
        work_out: makes it.
    """
    stamps = [(str(f.resolve()), (found := f.stat()).st_size, found.st_mtime_ns) for f in files]
    place = cache_folder() / "hashes" / f"{digest(kind, [s[0] for s in stamps])}.json"
    try:
        cached = json.loads(place.read_text(encoding="utf-8"))
        if cached["stamps"] == [list(s) for s in stamps]:
            return cached["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = work_out()
    if time.time_ns() - max(stamp[2] for stamp in stamps) < 2 * 10**9:
        return value
    with contextlib.suppress(InputError):
        atomic_write(place, lambda part: part.write_text(json.dumps({"stamps": stamps, "value": value})))
    return value


def file_hash(file: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file's content, remembered."""

    def work_out() -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    value: str = cached_by_files([file], "content", work_out)
    return value
