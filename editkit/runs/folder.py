"""The run folder: new, or one of the same run that was interrupted."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from editkit.utils.errors import InputError, shorten
from editkit.utils.files import atomic_write, check_can_write
from editkit.utils.yaml_text import read_mapping

CONFIG = "config.yaml"
UNFINISHED = {CONFIG, "logs", "records"}  # all that a run has that neither edited nor ended: it may begin again
BEGUN = ("edits.json", "found")  # of a ledger that has no batch yet
SAME = ("model", "data", "weight_update", "evaluation", "report")  # sections of the config that make a run what it is


class RunFolder:
    """A folder for one run's files, which no other process writes into meanwhile.

    Args:
        path: where it is or is to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.went_on = False
        self._left: list[str] = []  # files of a run that came to nothing
        self._lock: IO[str] | None = None

    def check(self, config: str, resumable: bool) -> None:
        """Look at what is there, before anything is written.

        What a run left that came to nothing, without a batch of edits or rows measured, may be begun anew with whatever
        settings.

        Args:
            config: the run's config as YAML.
            resumable: whether a run of the same config may go on in its folder; else it may begin again where it
                did not end.

        Raises:
            InputError: the folder holds something else, or a run with another config.
        """
        check_can_write(self.path, "run_dir")
        found = sorted(f.name for f in self.path.iterdir() if f.name != ".lock") if self.path.is_dir() else []
        if not found:
            return
        if CONFIG not in found or not (resumable or set(found) <= UNFINISHED):
            raise InputError(
                f"run_dir: expected a folder that is new or empty{' or holds an editkit run' * resumable}, but "
                f"{self.path} holds {shorten(found[0])}; choose another"
            )
        was = self._config()
        now = yaml.safe_load(config)
        for name in SAME:
            if difference := _difference(name, was.get(name), now.get(name)):
                if self._came_to_nothing(found):
                    self._left = found
                    return
                field, before, after = difference
                raise InputError(
                    f"run_dir: expected the settings of the run in {self.path}, but {field} was {shorten(before)} "
                    f"and is now {shorten(after)}; repeat that run's own command, or choose another run_dir"
                )
        self.went_on = True

    def _config(self) -> dict[str, Any]:
        """The config of the run that is there."""
        try:
            was = read_mapping((self.path / CONFIG).read_bytes(), CONFIG)
        except (OSError, InputError) as error:
            raise InputError(f"run_dir: {self.path / CONFIG} cannot be read ({error}); choose another") from error
        if SAME[0] not in was:
            raise InputError(
                f"run_dir: expected the config of an editkit run, but {self.path / CONFIG} has no {SAME[0]}; choose "
                "another"
            )
        return was

    def _came_to_nothing(self, found: Sequence[str]) -> bool:
        """Whether all that is there is what a run leaves that stopped before its first result."""
        ledger = self.path / "edits"
        kept = [file.name for file in ledger.iterdir()] if ledger.is_dir() else []
        return (
            set(found) <= {CONFIG, "edits", "logs"}
            and not any(name.startswith("batch_") or name not in BEGUN for name in kept)
            and not any(file.is_symlink() for file in (self.path, ledger, self.path / "logs"))
        )

    def open(self, config: str) -> None:
        """Create the folder if it is new, write its config, and lock it until this process ends.

        Raises:
            InputError: it cannot be created, or another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise InputError(
                f"run_dir: expected a folder that can be created, but {self.path} cannot ({error.strerror}); "
                "choose another"
            ) from error
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system, also after a kill
            except OSError as error:
                lock.close()  # the other process's own
                raise InputError(
                    f"run_dir: another process is at work in {self.path}; wait for it, or choose another"
                ) from error
        self._lock = lock
        for name in self._left:
            shutil.rmtree(self.path / name) if (self.path / name).is_dir() else (self.path / name).unlink()
        if not self.went_on:
            atomic_write(self.path / CONFIG, lambda part: part.write_text(config, encoding="utf-8"), "run_dir")

    def close(self) -> None:
        """Let go of the folder, if it is this process's."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()


def free_version(logs: Path, version: str) -> str:
    """A name for one more folder in ``logs``: ``version``, with a number where that is there already."""
    number = 1
    while (logs / (name := version if number == 1 else f"{version}_{number}")).exists():
        number += 1
    return name


def free_folder(stem: str) -> Path:
    """``runs/STEM-N`` with the first N that is free."""
    number = 0
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first field that differs, by its dotted name, and both its values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted({*was, *now}):
            if found := _difference(f"{name}.{key}", was.get(key), now.get(key)):
                return found
        return None
    return None if was == now else (name, was, now)
