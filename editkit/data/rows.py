"""What is asked of a model: prompts at which targets are compared, prompts to continue, questions, windows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from editkit.data.facts import Fact
from editkit.data.probes import ProbeRow

REWRITE, PARAPHRASE, NEIGHBORHOOD, UNRELATED = range(4)

NATURAL_QUESTION = "nq question:"  # what zsRE's files put before the questions that editing should leave alone
LocalityQuestion = Literal["as_given", "question_mark", "bare", "bare_question_mark"]


@dataclass(frozen=True)
class EvaluationRow:
    """One prompt at which the targets of a fact are compared.

    Attributes:
        fact: position of its fact among the run's facts.
        kind: 0 rewrite, 1 paraphrase, 2 neighborhood, 3 unrelated.
        number: its place among the fact's prompts of that kind.
        prompt: the text, subject filled in.
        target_new: the fact's new target; of an unrelated prompt, its own answer.
        target_true: its true target, None where there is none.
    """

    fact: int
    kind: int
    number: int
    prompt: str
    target_new: str
    target_true: str | None

    @property
    def wanted(self) -> str | None:
        """The answer whose accuracy is measured here."""
        return self.target_true if self.kind == NEIGHBORHOOD else self.target_new


@dataclass(frozen=True)
class GenerationRow:
    """One text to generate.

    Attributes:
        fact: position of its fact among the run's facts.
        prompt: what to continue.
        number: its number among the fact's generations.
        reference: the fact's reference texts, joined; empty where there are none.
    """

    fact: int
    prompt: str
    number: int
    reference: str


@dataclass(frozen=True)
class TextRow:
    """One window of held-out text.

    Attributes:
        window: its number.
        ids: its tokens; all but the first are predicted.
    """

    window: int
    ids: tuple[int, ...]


Row = EvaluationRow | GenerationRow | ProbeRow | TextRow


@dataclass(frozen=True)
class Questions:
    """How a run's questions are put, as its evaluation protocol has it.

    Attributes:
        generations: texts generated for each generation prompt.
        locality: how zsRE's unrelated questions are asked, see :func:`locality_question`.
        separator: text between a prompt and its target.
    """

    generations: int = 1
    locality: LocalityQuestion = "as_given"
    separator: str = " "


def locality_question(prompt: str, form: LocalityQuestion) -> str:
    """One of zsRE's unrelated questions in the form in which it is asked; any other prompt stays as it is.

    Args:
        prompt: an unrelated prompt.
        form: "as_given"; "question_mark": with a "?" at its end; "bare": without "nq question: " before it;
            "bare_question_mark": both.

    >>> [locality_question("nq question: who sang it", form) for form in ("as_given", "bare_question_mark")]
    ['nq question: who sang it', 'who sang it?']
    """
    if form == "as_given" or not prompt.startswith(NATURAL_QUESTION):
        return prompt
    asked = prompt.removeprefix(NATURAL_QUESTION).strip() if form.startswith("bare") else prompt
    return asked + "?" * form.endswith("question_mark")


def evaluation_rows(
    facts: Sequence[Fact], indices: Sequence[int], form: LocalityQuestion = "as_given"
) -> list[EvaluationRow]:
    """Rows of ``facts`` whose positions in the run are ``indices``; ``form`` is for :func:`locality_question`.

    A neighbourhood prompt of a fact without a ``target_true`` has nothing to be compared with, and no row.
    """
    rows = []
    for index, fact in zip(indices, facts, strict=True):
        about_others = () if fact.target_true is None else fact.neighborhood_prompts
        for kind, prompts in enumerate(([fact.text()], fact.paraphrase_prompts, about_others)):
            rows += [EvaluationRow(index, kind, n, p, fact.target_new, fact.target_true) for n, p in enumerate(prompts)]
        asked = [locality_question(prompt, form) for prompt in fact.unrelated_prompts]
        answered = zip(asked, fact.unrelated_answers, strict=True)
        rows += [EvaluationRow(index, UNRELATED, n, p, answer, None) for n, (p, answer) in enumerate(answered)]
    return rows


def generation_rows(facts: Sequence[Fact], indices: Sequence[int], times: int = 1) -> list[GenerationRow]:
    """``times`` texts to generate for each generation prompt of ``facts``, whose positions are ``indices``."""
    return [
        GenerationRow(index, prompt, number, "\n".join(fact.reference_texts))
        for index, fact in zip(indices, facts, strict=True)
        for number, prompt in enumerate(p for p in fact.generation_prompts for _ in range(times))
    ]
