"""What a parser refuses, as one line: the option, what was expected, what came, the remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

from editkit.utils.errors import InputError

_OF_FIT = {
    "model.moments": "model.second_moment",
    "model.protocol": "evaluation.protocol",
    "weight_update.earlier_keys": "model.earlier_keys",
    "weight_update.dependent": "model.dependent",
}
#: per command, an option's old name and its name now
RENAMED = {"fit": _OF_FIT, "validate": _OF_FIT, "covariance": {"moments": "second_moment"}}


def refusal(error: ArgumentError, argv: Sequence[str]) -> InputError:
    """The error to raise for what a parser refused: an option that was renamed is told by its name now.

    Only what was refused counts: a user's own editor may well have an argument of an old name.

    Args:
        error: the parser's.
        argv: the command and its options.
    """
    text = str(error)
    names = re.findall(r"[Oo]ption '([\w.]+)'|(?<![\w-])--([\w.]+)", text)
    try:
        check_renamed(argv, {part for pair in names for name in pair for part in name.split(".")})
    except InputError as renamed:
        return renamed
    return InputError(plain_message(text, argv[0]))


def check_renamed(argv: Sequence[str], refused: Collection[str] | None = None) -> None:
    """Raise an ``InputError`` where an option, or a YAML file given by ``--config``, has a name of ``RENAMED``.

    Args:
        argv: the command and its options.
        refused: the last parts of names that count; default all.

    >>> check_renamed(["covariance", "--moments.path=moments/"])
    Traceback (most recent call last):
    ...
    editkit.utils.errors.InputError: moments: renamed to second_moment; write that
    """
    renamed = {
        old: new
        for old, new in RENAMED.get(argv[0] if argv else "", {}).items()
        if refused is None or old.split(".")[-1] in refused
    }
    for name, where in _names(argv[1:]):
        plain = ".".join(part for part in name.split(".") if part != "init_args")
        for old, new in renamed.items():
            if f"{plain}.".startswith(f"{old}."):
                raise InputError(f"{old}: renamed to {new}; write that{where}")


def _names(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted names of the options given, those in values and config files included, and where they are."""
    for i, word in enumerate(options):
        option, assigned, value = word.partition("=")
        if not option.startswith("-"):
            continue
        if not assigned:
            value = options[i + 1] if i + 1 < len(options) else ""
        if option in ("--config", "-c"):
            if Path(value).is_file():
                yield from ((name, f" in {value}") for name in _keys(_parsed(Path(value).read_bytes())))
            continue
        name = option.lstrip("-")
        yield name, ""
        if value.lstrip().startswith("{"):
            yield from ((f"{name}.{key}", "") for key in _keys(_parsed(value)))


def _parsed(text: str | bytes) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError):  # which the parser tells
        return None


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, nested in value.items():
            yield str(key)
            yield from (f"{key}.{name}" for name in _keys(nested))


def plain_message(message: str, command: str) -> str:
    """A parser's report about one option as one line: the option, what was expected, what came, the remedy."""
    text = " ".join(message.split())
    see = f"see editkit {command} --help"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    given = re.findall(r"(?:Given|Got) value: (?:NestedArg\(key='([^']+)', val='?([^')]*)'?\)|(\S+))", text)
    nested = given[-1][0] if given else ""
    values = [v for _, *found in reversed(given) for v in found if v and not v.startswith(WHOLE)]
    value = repr(values[0]) if values else "another value"
    field = ".".join(dict.fromkeys(keys)) or "options"
    if nested and not field.endswith(nested):
        field = f"{field}.{nested}"
    if missing := re.search(r"File does not exist: '([^']+)'", text):
        return f"{field}: expected a file that exists, but got {missing[1]}; check the path"
    if unknown := re.search(r"class_path '([^']+)': Option '([^']+)' is not accepted", text):
        name = f"{keys[0]}.{nested}" if nested else f"{field}.{unknown[2]}"
        return (
            f"{name}: {unknown[1]} has no such option; expected one of those that "
            f"editkit {command} --{keys[0]}.help lists"
        )
    if "not 'NoneType'" in text:
        return f"{field}: expected a number, but got null; {see}"
    if needed := re.search(r"the following arguments are required: (\w+)", text):
        return f"{field}.{needed[1]}: expected a value, but got none; give one"
    if field == "model":
        return (
            f"model: expected an editor, editkit.EMMET, editkit.MEMIT, editkit.ROME or the import path of a subclass "
            f"of editkit.Editor, but got {value} ({_reason(text)}); correct the name"
        )
    if restriction := re.search(rf": (?:(\S+) )?does not conform to restriction {BOUND}(?: and {BOUND})?", text):
        told = repr(restriction[1]) if restriction[1] else value
        bounds = f"{restriction[2]} {restriction[3]}" + f" and {restriction[4]} {restriction[5]}" * bool(restriction[4])
        return f"{field}: expected a number {bounds}, but got {told}; {see}"
    if "unrecognized arguments" in text.lower():
        return f"{text[0].lower()}{text[1:]}; {see}"
    return f"{field}: {_reason(text)}, but got {value}; {see}" if keys else f"{field}: {text}; {see}"


#: how the value of an option begins that is more than what was refused
WHOLE = ("NestedArg(", "Namespace(", "[{")
#: of a number, as the parser tells it
BOUND = r"v\s*([<>=]+)\s*([\w.]+)"
#: what Python's types are called in messages
KINDS = {"str": "a text", "float": "a number", "bool": "true or false", "dict": "names with values"}


def _reason(text: str) -> str:
    """The first cause that the parser names, without the list of all types that it tried."""
    causes = re.split(r" - ", re.split(r"Given value|Got value", text.split("Errors:")[-1])[0])
    told = [c.strip(" .") for c in causes if c.strip(" .") and "NoneType" not in c]
    cause = re.sub(r"^((Parser key \S+:?|Problem with given class_path '[^']+':) *)*", "", told[0]) if told else ""
    cause = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", cause).replace("a <class 'int'>", "an integer")
    cause = re.sub(r"a <class '(\w+)'>", lambda kind: KINDS.get(kind[1], f"a {kind[1]}"), cause)
    return f"{cause[0].lower()}{cause[1:]}" if cause else "not a valid value"
