"""YAML that users give: bounded before it is built, so that a few lines of it cannot fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from editkit.utils.errors import InputError, shorten

MOST_NODES = 100_000  # with every alias spelled out
MOST_BYTES = 10 * 2**20
DEEPEST = 100


def check_yaml(text: str | bytes, where: str) -> None:
    """Look at YAML without building it.

    Args:
        text: the YAML.
        where: a file or an option, for messages.

    Raises:
        InputError: it is no UTF-8; it is nested too deeply, or grows too large once its aliases are followed, or
            refers to itself; a mapping has a key twice. Other faults are left to whoever reads it.

    >>> check_yaml("a: &a [x, x]\\nb: *a", "c.yaml")
    >>> check_yaml("data: {seed: 1, seed: 2}", "c.yaml")
    Traceback (most recent call last):
    ...
    editkit.utils.errors.InputError: c.yaml, line 1: expected each name once in a mapping, but got 'seed' twice; take \
one out
    """
    if len(text) > MOST_BYTES:
        raise InputError(f"{where}: expected YAML of at most {MOST_BYTES >> 20} MiB, but got {len(text):,} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected YAML in UTF-8, but got other bytes ({error}); convert it") from error
    try:
        _count(yaml.parse(text, Loader=yaml.SafeLoader), where)
    except (yaml.YAMLError, RecursionError):
        return  # told by the reader, with the place


def read_mapping(text: bytes, where: str) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: it holds anything else, or cannot be read.
    """
    check_yaml(text, where)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        raise InputError(f"{where}: expected YAML, but it cannot be read ({error}); correct it") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected names with values, but got {shorten(found)}; correct it")
    return found


def _count(events: Iterator[yaml.Event], where: str) -> None:
    """Nodes by the events that make them: an alias counts as many as what it stands for."""
    anchored: dict[str, int] = {}
    open_anchors: list[str | None] = []
    sizes = [0]
    mappings: list[tuple[bool, set[str], bool]] = []  # per collection: a mapping? its keys; whether a key comes next
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop() + 1, open_anchors.pop()
            mappings.pop()
            sizes[-1] += size
            if anchor is not None:
                anchored[anchor] = size
            _next(mappings)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None:
                anchored.pop(event.anchor, None)
            open_anchors.append(event.anchor)
            sizes.append(0)
            mappings.append((isinstance(event, yaml.MappingStartEvent), set(), True))
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise InputError(
                    f"{where}{_line(event)}: expected values, but *{event.anchor} holds itself; write it out"
                )
            sizes[-1] += anchored.get(event.anchor, 1)
            _next(mappings)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
            if event.anchor is not None:
                anchored[event.anchor] = 1
            if mappings and mappings[-1][0] and mappings[-1][2]:
                if event.value in mappings[-1][1] and event.value != "<<":
                    raise InputError(
                        f"{where}{_line(event)}: expected each name once in a mapping, but got "
                        f"{shorten(event.value)} twice; take one out"
                    )
                mappings[-1][1].add(event.value)
            _next(mappings)
        if len(mappings) > DEEPEST:
            raise InputError(f"{where}{_line(event)}: expected YAML nested at most {DEEPEST} deep; write it flatter")
        if sum(sizes) > MOST_NODES:
            raise InputError(
                f"{where}{_line(event)}: expected at most {MOST_NODES:,} values, each alias (*name) spelled out, but "
                "there are more; write fewer"
            )


def _next(mappings: list[tuple[bool, set[str], bool]]) -> None:
    """After a whole node, a key's value comes, or after that another key."""
    if mappings:
        is_mapping, keys, expects_key = mappings[-1]
        mappings[-1] = (is_mapping, keys, not expects_key)


def _line(event: yaml.Event) -> str:
    return f", line {event.start_mark.line + 1}" if event.start_mark is not None else ""
