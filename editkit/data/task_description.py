"""A labelled task described in a config: what a row of the table of tasks has, without code."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from editkit.data.tasks import ProbeTask, as_number
from editkit.utils.errors import InputError, shorten

MAIN = ("accuracy", "f1", "mcc")


@dataclass(frozen=True)
class TaskDescription:
    """A task of your own; ``name``, ``prompt`` and ``words`` must be given.

    Args:
        name: its name in reports.
        prompt: text with a placeholder in braces for each field of a record that it shows; the label's word follows
            after one space.
        words: per class the text that names it, or a list of texts: the first one is shown in examples and scored by
            likelihood, any of them counts in a generated answer (whatever its case). In YAML, put Yes and No in quotes.
        labels: per class the value of the label in the data, or a list of values; default the class's number, counted
            from 0, and its words.
        label: field of a record that holds the label.
        main: the metric that is shown and drawn: accuracy, f1 or mcc.
        source: name of the data set for ``datasets``, where the probe's source is "datasets".
        config: its configuration.
        split: its labelled split.
    """

    # bool, and defaults where a value must be given, are there only so that ``task`` can say what is wrong by name
    name: str = ""
    prompt: str = ""
    words: list[str | bool | list[str | bool]] = field(default_factory=list)
    labels: list[int | str | bool | list[int | str | bool]] | None = None
    label: str = "label"
    main: str = "accuracy"
    source: str | None = None
    config: str | None = None
    split: str = "validation"

    def task(self) -> ProbeTask:
        """The task, checked.

        Raises:
            InputError: no name, a prompt without placeholders or with one of another form than ``{field}``, fewer than
                two classes, a word that is no text or names two classes, labels that are not one or more per class, or
                a metric that is none.
        """
        if not self.name.strip():
            raise self._error("name", "a name for reports", self.name, "give one")
        if self.main not in MAIN:
            raise self._error("main", f"one of {', '.join(MAIN)}", self.main, "choose one")
        words = self._per_class("words", self.words)
        for word in (word for known in words for word in known):
            if not isinstance(word, str) or not word.strip():
                remedy = "put Yes and No in quotes" if isinstance(word, bool) else "write one"
                raise self._error("words", "texts", word, remedy)
        words = tuple(tuple(word.strip() for word in known) for known in words)
        self._distinct("words", [tuple(word.casefold() for word in known) for known in words])
        values = self._values(words)
        source = self.source or "", self.config
        return ProbeTask(self.name, self._template(), words, values, self.label, self.main, source, self.split)

    def _template(self) -> str:
        try:
            parts = list(string.Formatter().parse(self.prompt))
        except ValueError as error:
            raise self._error("prompt", "fields in braces", self.prompt, f"write {{field}} ({error})") from error
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        if not fields:
            raise self._error("prompt", "at least one field in braces", self.prompt, "write {field} where it goes")
        for name, spec, conversion in fields:
            if not name.isidentifier() or spec or conversion:
                came = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
                raise self._error("prompt", "the names of a record's fields in braces", came, "write {field}")
            if name == self.label:
                raise self._error("prompt", "a question without its answer", f"{{{name}}}", "leave the label out")
        return self.prompt.rstrip(" ")

    def _values(self, words: Sequence[Sequence[str]]) -> tuple[tuple[Any, ...], ...]:
        if self.labels is None:
            labels: tuple[tuple[Any, ...], ...] = tuple((number, *known) for number, known in enumerate(words))
        else:
            labels = self._per_class("labels", self.labels)
        if len(labels) != len(words):
            expected = f"a label for each of the {len(words)} classes of words"
            raise self._error("labels", expected, self.labels, "give as many labels as words")
        for label in (label for known in labels for label in known):
            if isinstance(label, bool) or not isinstance(label, str | int):
                raise self._error("labels", "numbers or texts", label, "put a text in quotes there")
        values = tuple(tuple(map(as_number, known)) for known in labels)
        self._distinct("labels", values)
        return values

    def _per_class(self, field: str, given: Any) -> tuple[tuple[Any, ...], ...]:
        if not isinstance(given, list | tuple) or len(given) < 2:
            raise self._error(field, "a list of two classes or more", given, "give an entry per class")
        found = tuple(tuple(one) if isinstance(one, list | tuple) else (one,) for one in given)
        if not all(found):
            raise self._error(field, "at least one value per class", given, "fill in the empty list")
        return found

    def _distinct(self, field: str, given: Sequence[Sequence[Any]]) -> None:
        count = Counter(one for known in given for one in dict.fromkeys(known))
        if double := [one for one, times in count.items() if times > 1]:
            raise self._error(field, "values that tell the classes apart", double[0], "give each to one class only")

    def _error(self, field: str, expected: str, came: Any, remedy: str) -> InputError:
        return InputError(
            f"probes.task.{field}: task {self.name!r}: expected {expected}, got {shorten(came)}; {remedy}"
        )
