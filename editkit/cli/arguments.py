"""null on the command line and in a config: where it means something it arrives, elsewhere it is refused.

jsonargparse (4.53) has a way of its own with null inside a class that is an option's value: on the command line it
becomes the word "None" two levels down, and what arrives as null it never compares with the type.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from editkit.cli.configs import OPTIONS
from editkit.utils.errors import InputError
from editkit.utils.yaml_text import check_yaml, read_mapping

SUBCLASSES = ("model",)  # options whose value is a class of the user's choice


def check_values(argv: Sequence[str]) -> None:
    """Look at the YAML of a command's options, and of files that they name, before a parser builds it.

    Args:
        argv: the command and its options, names of shipped configs replaced by paths.

    Raises:
        InputError: as ``check_yaml`` raises it; or a config that is no mapping.
    """
    option = ""
    for word in argv[1:]:
        value: str = word
        if word.startswith("--"):
            option, assigned, value = word.partition("=")
            if not assigned:
                continue
        elif word == "-c":
            option = word
            continue
        is_config, name = option in OPTIONS, option.lstrip("-")
        holds_section = "." not in name and value.endswith((".yaml", ".yml", ".json"))  # as --data=mine.yaml does
        if _is_file(value) and (is_config or holds_section):
            text = Path(value).expanduser().read_bytes()
            check_yaml(text, f"config: {value}" if is_config else f"{name}: {value}")
            if is_config:
                read_mapping(text, f"config: {value}")
        elif any(mark in value for mark in "{[&*"):
            check_yaml(value, name)


def _is_file(value: str) -> bool:
    """Whether an option's value is the path of a regular file; a pipe can be read only once, and not here."""
    try:
        return Path(value).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def with_nulls(argv: Sequence[str]) -> list[str]:
    """The arguments, with null for a field of a field of an editor as the parser takes it: in a mapping.

    All beside the field stays as it was.

    >>> with_nulls(["fit", "--model.second_moment.num_tokens=null", "--model.layers=null"])
    ['fit', '--model={"second_moment": {"num_tokens": null}}', '--model.layers=null']
    >>> with_nulls(["--model.init_args.values.seed", "null", "--data.num_facts", "null"])
    ['--model={"values": {"seed": null}}', '--data.num_facts', 'null']
    """
    found: list[str] = []
    words = iter(argv)
    for word in words:
        option, assigned, value = word.partition("=")
        root, *path = option.removeprefix("--").split(".")
        if path[:1] == ["init_args"]:
            path = path[1:]
        if not (option.startswith("--") and root in SUBCLASSES and len(path) > 1):
            found.append(word)
            continue
        given = [word]
        if not assigned and (following := next(words, None)) is not None:
            given, value = [word, following], following
        if _is_null(value):
            mapping = "".join(f'{{"{name}": ' for name in path) + "null" + "}" * len(path)
            given = [f"--{root}={mapping}"]
        found += given
    return found


def _is_null(value: str) -> bool:
    try:
        return bool(value.strip()) and yaml.safe_load(value) is None
    except yaml.YAMLError:
        return False


def check_nulls(name: str, value: Any, kind: Any) -> None:
    """Find null where something must stand, in what a parser has accepted.

    Args:
        name: of the option, for the message.
        value: as parsed, namespaces as dicts.
        kind: its class or type.

    Raises:
        InputError: a field, however deep, is null and its type does not allow that.
    """
    if value is None:
        if not _allows_none(kind):
            raise InputError(f"{name}: expected a value, but got null; give one, or leave it out for its default")
    elif isinstance(value, list):
        kinds = [k for option in _options(kind) if get_origin(option) is list for k in get_args(option)]
        for number, item in enumerate(value if len(kinds) == 1 else ()):
            check_nulls(f"{name}[{number}]", item, kinds[0])
    elif isinstance(value, Mapping):
        if (cls := _class_of(value, kind)) is None:
            return
        fields = value.get("init_args", {}) if "class_path" in value else value
        for field, given in fields.items():
            check_nulls(f"{name}.{field}", given, _hint(cls, field))


def _class_of(value: Mapping[str, Any], kind: Any) -> type | None:
    """The class that a mapping's fields are arguments of; None where that is not known."""
    if "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        found = getattr(import_module(module), name)
        return found if isinstance(found, type) else None
    classes = [option for option in _options(kind) if isinstance(option, type) and option is not types.NoneType]
    return classes[0] if len(classes) == 1 and not issubclass(classes[0], Mapping) else None


def _hint(cls: type, argument: str) -> Any:
    """The type of an argument of a class, or of the base class that it is handed on to; Any where it is not known."""
    for base in cls.__mro__:
        try:
            hints = get_type_hints(base.__dict__["__init__"])
        except (KeyError, NameError, TypeError):
            continue
        if argument in hints:
            return hints[argument]
    return Any


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _allows_none(kind: Any) -> bool:
    return any(
        option in (None, types.NoneType, Any, object)
        or isinstance(option, TypeVar)
        or (get_origin(option) is Literal and None in get_args(option))
        for option in _options(kind)
    )
