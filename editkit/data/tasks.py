"""The labelled tasks that probe what editing left of a model's other abilities: one table.

The prompts are those of the papers' setting (Gupta et al. 2024, EMMET, and "Model Editing at Scale leads to Gradual and
Catastrophic Forgetting", whose evaluations have the few-shot formats of Brown et al. 2020, appendix G), with what is
wrong in their code put right: RTE's label 0 is *entailment*, so its word is "True", and a label follows its prompt
after exactly one space.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from editkit.atlas.builtin import BuiltIn
from editkit.utils.errors import InputError, shorten


@dataclass(frozen=True)
class ProbeTask:
    """One task.

    Attributes:
        name: its name.
        prompt: text with a placeholder for each field of an example; the label's word follows after one space.
        words: per class the words that name it; the first one is shown in examples and scored by likelihood, any of
            them counts in a generated answer (whatever its case).
        values: per class the values of ``label`` in data: GLUE's number, and the name of the class.
        label: field of an example that holds the label.
        main: the metric that GLUE reports for it.
        source: name and configuration of the data set for ``datasets``.
        split: its labelled split.
        prepare: makes the fields of the prompt from a record, where they are not the record's own.
        two_classes: the task for data of the same fields with two classes, where this one has three.
    """

    name: str
    prompt: str
    words: tuple[tuple[str, ...], ...]
    values: tuple[tuple[Any, ...], ...]
    label: str = "label"
    main: str = "accuracy"
    source: tuple[str, str | None] = ("", None)
    split: str = "validation"
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=dict)
    two_classes: str | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.words)

    @property
    def fields(self) -> list[str]:
        """Placeholders of the prompt."""
        return [name for _, name, _, _ in string.Formatter().parse(self.prompt) if name]

    def read(self, record: Any, place: str) -> tuple[str, int]:
        """The prompt and the class of a record.

        Raises:
            InputError: a field is absent or no text, or the label is none of the task's.
        """
        if not isinstance(record, Mapping):
            raise InputError(f"{place}: expected an object with fields, got {shorten(record)}; see the task's fields")
        values = self.prepare(record)
        for name in self.fields:
            if not isinstance(values.get(name), str):
                raise InputError(
                    f"{place}: field {name!r}: expected a text for task {self.name!r}, got "
                    f"{shorten(values.get(name))}; its fields are {', '.join([*self.fields, self.label])}"
                )
        label = record.get(self.label)
        number = self.class_of(label)
        if number is not None:
            # a label's word brings its own space, and so does a field its own end
            return self.prompt.format_map({n: values[n].strip() for n in self.fields}), number
        expected = ", ".join(repr(v) for known in self.values for v in known)
        remedy = "correct or remove the record"
        if self.two_classes and TASKS[self.two_classes].class_of(label) is not None:
            remedy = f"data of two classes is task {self.two_classes!r}"
        raise InputError(
            f"{place}: field {self.label!r}: expected a label of task {self.name!r} ({expected}), got "
            f"{shorten(label)}; {remedy}"
        )

    def class_of(self, label: Any) -> int | None:
        """The class that a label of the data means, or None; digits in quotes are the number.

        >>> TASKS["rte"].class_of("1"), TASKS["rte"].class_of("entailment"), TASKS["rte"].class_of(2)
        (1, 0, None)
        """
        label = as_number(label)
        if isinstance(label, bool):  # True would equal 1
            return None
        return next((number for number, known in enumerate(self.values) if label in known), None)

    def check_labels(self, labels: Iterable[Any], place: str) -> None:
        """Tell data of another task by its labels: all valid here, but only the numbers of two of three classes.

        Args:
            labels: of all records.
            place: what the message calls where they come from.

        Raises:
            InputError: these labels are those of the task ``two_classes``.
        """
        found = {label if isinstance(label, str | int) else repr(label) for label in map(as_number, labels)}
        if self.two_classes and found == {0, 1}:
            names = ", ".join(f"{known[0]} is {known[1]}" for known in TASKS[self.two_classes].values)
            raise InputError(
                f"{place}: field {self.label!r}: expected {self.classes} classes for task {self.name!r}, got only the "
                f"labels 0 and 1; data of two classes is task {self.two_classes!r} ({names}); if these are two of "
                "three, give the classes' names instead of numbers"
            )


def as_number(label: Any) -> Any:
    """A label that is a string of digits as the number; any other as it is.

    >>> as_number(" 1"), as_number("-1"), as_number("one"), as_number(None)
    (1, -1, 'one', None)
    """
    return int(label) if isinstance(label, str) and re.fullmatch(r"\s*-?\d+\s*", label) else label


def _choices(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """MMLU's list of four choices as fields of their own."""
    choices = record.get("choices")
    if not isinstance(choices, (list, tuple)) or len(choices) != 4:
        return {"question": record.get("question")}
    return {"question": record.get("question"), **dict(zip("ABCD", choices, strict=True))}


def _pair(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Premise and hypothesis, whichever of the two pairs of names the data set has."""
    return {
        "premise": record.get("premise", record.get("sentence1")),
        "hypothesis": record.get("hypothesis", record.get("sentence2")),
    }


_YES_NO = (("No",), ("Yes",))
_ENTAILMENT = "{premise}\nquestion: {hypothesis} True or False?\nanswer:"

TASKS: dict[str, ProbeTask] = {
    task.name: task
    for task in (
        ProbeTask(
            "sst2",
            "Review : {sentence}\nSentiment :",
            (("negative",), ("positive",)),
            ((0, "negative"), (1, "positive")),
            source=("nyu-mll/glue", "sst2"),
        ),
        ProbeTask(
            "mrpc",
            "Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:",
            _YES_NO,
            ((0, "not_equivalent"), (1, "equivalent")),
            main="f1",
            source=("nyu-mll/glue", "mrpc"),
        ),
        ProbeTask(
            "cola",
            "Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer:",
            _YES_NO,
            ((0, "unacceptable"), (1, "acceptable")),
            main="mcc",
            source=("nyu-mll/glue", "cola"),
        ),
        ProbeTask(
            "rte",
            _ENTAILMENT,
            (("True",), ("False",)),
            ((0, "entailment"), (1, "not_entailment")),
            source=("nyu-mll/glue", "rte"),
            prepare=_pair,
        ),
        ProbeTask(
            "nli",
            "{premise}\nquestion: {hypothesis} True, False or Neither?\nanswer:",
            (("True",), ("Neither",), ("False",)),
            ((0, "entailment"), (1, "neutral"), (2, "contradiction")),
            source=("nyu-mll/glue", "mnli"),
            split="validation_matched",
            prepare=_pair,
            two_classes="rte",
        ),
        ProbeTask(
            "mmlu",
            "Question: {question}\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}\nAnswer:",
            (("A", "(A)"), ("B", "(B)"), ("C", "(C)"), ("D", "(D)")),
            ((0, "A"), (1, "B"), (2, "C"), (3, "D")),
            label="answer",
            source=("cais/mmlu", "all"),
            split="test",
            prepare=_choices,
        ),
    )
}
"""Every task by its name."""


def taught_task(name: str, built_in: BuiltIn) -> ProbeTask:
    """A task as a built-in model was taught it: the same fields and labels, its own prompt and words."""
    taught = built_in.probe(name)
    if taught is None:
        raise InputError(
            f"probes.task: expected one of the {built_in.name}'s {', '.join(built_in.probes)}, but got {name!r}; "
            "choose one, or give the probe a source"
        )
    (template, words), known = taught, TASKS[name]
    return ProbeTask(name, template, tuple((word,) for word in words), known.values, known.label, known.main)
