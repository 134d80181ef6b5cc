"""The configs that ship, by name: ``--config quickstart`` means the same file in whatever folder it is typed.

They are the files of the repository's ``configs/``, which a wheel holds as ``editkit/configs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from editkit.utils.errors import InputError
from editkit.utils.files import user_path

OPTIONS = ("--config", "-c")
YAML_MARKS = (": ", "{", "\n")  # the option also takes YAML itself: --config '{"lm": "atlas"}'
_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """The folder of the configs that ship: in the package as a wheel installs it, beside the package in a clone."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def shipped_names() -> list[str]:
    """What may stand after ``--config`` beside a path: "quickstart", "model/gpt2-xl" …, in alphabetical order."""
    folder = shipped_folder()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("study/"))  # those are for editkit.programs.study


def with_shipped_configs(argv: Sequence[str]) -> list[str]:
    """The arguments with every name of a config that ships replaced by that file's path.

    Args:
        argv: arguments of a command. A file that exists goes before a name; a name may end in ".yaml".

    Raises:
        InputError: neither a file nor a name.
    """
    resolved: list[str] = []
    names_config = False
    for argument in argv:
        option, equals, value = argument.partition("=")
        if names_config:
            argument = _path_of(argument)
        elif equals and option in OPTIONS:
            argument = f"{option}={_path_of(value)}"
        names_config = not names_config and argument in OPTIONS
        resolved.append(argument)
    return resolved


def _path_of(value: str) -> str:
    if any(mark in value for mark in YAML_MARKS):
        return value
    path = user_path(value, "config")
    if path.exists() and not path.is_dir():  # a pipe is no regular file and yet may be read
        return value
    name = value.removesuffix(".yaml")
    names = shipped_names()
    if name in names:
        return str(shipped_folder() / f"{name}.yaml")
    raise InputError(
        f"config: expected a file that exists or one of the configs that ship ({', '.join(names)}), but got {value}; "
        "check the path or the name"
    )
