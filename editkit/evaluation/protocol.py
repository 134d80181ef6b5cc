"""Evaluation protocols: every choice that changes a number, in one place, named and stored with the numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from editkit.data.rows import LocalityQuestion, Questions
from editkit.utils.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """How edits are measured. The defaults are the papers' definitions.

    Args:
        separator: text between a prompt and its target, and between a probe's prompt and its label.
        likelihood: what compares two targets: "mean" (negative log-likelihood per token, so that targets of different
            length compare) or "total" (of the whole target).
        neighborhood: what neighbourhood and unrelated prompts must still say for their accuracy: "gold" (the answer
            of the record) or "original" (what the unedited model said, right or wrong).
        locality_question: how zsRE's unrelated questions, which begin with "nq question: " in its files, are asked:
            "as_given", "question_mark" (with a "?" at their end), "bare" (without that beginning) or
            "bare_question_mark" (both).
        generation_length: tokens of a generated text.
        length_counts: what these tokens are: "text" (prompt and continuation, as in the papers' code) or
            "continuation".
        top_k: sampling among the k most likely tokens; 1 is greedy.
        generations: texts generated per generation prompt.
        seed: of the sampling; a text's draws depend on the seed, its fact and its number alone.
        ngrams: what n-grams are made of: "words" (runs of letters and digits, and single other characters; close to
            NLTK's word tokeniser, which the papers' code takes), "whitespace" (pieces between spaces), or "tokens" (of
            the model).
        entropy_over: "continuation" (what the model said) or "text" (the prompt too).
    """

    separator: str = " "
    likelihood: Literal["mean", "total"] = "mean"
    neighborhood: Literal["gold", "original"] = "gold"
    locality_question: LocalityQuestion = "as_given"
    generation_length: PositiveInt = 100
    length_counts: Literal["text", "continuation"] = "text"
    top_k: PositiveInt = 5
    generations: PositiveInt = 1
    seed: NonNegativeInt = 0
    ngrams: Literal["words", "whitespace", "tokens"] = "words"
    entropy_over: Literal["continuation", "text"] = "continuation"

    @classmethod
    def named(cls, name: str) -> Protocol:
        """A protocol of ``PROTOCOLS`` by its name.

        Raises:
            InputError: there is none of that name.

        Example:
            >>> Protocol.named("public").entropy_over
            'text'
        """
        if name not in PROTOCOLS:
            raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, or its fields, but got {name!r}")
        return PROTOCOLS[name]

    @classmethod
    def of(cls, given: Protocol | str | None) -> Protocol:
        """A protocol from a user's option: one, the name of one, or None for the papers'."""
        if given is None:
            return cls()
        return cls.named(given) if isinstance(given, str) else given

    @property
    def name(self) -> str:
        """Its name among ``PROTOCOLS``, else "own".

        >>> Protocol().name, Protocol(top_k=1).name
        ('paper', 'own')
        """
        return next((name for name, known in PROTOCOLS.items() if known == self), "own")

    @property
    def questions(self) -> Questions:
        """What of it the rows are made by."""
        return Questions(self.generations, self.locality_question, self.separator)

    def about(self) -> dict[str, Any]:
        """Name and fields, as JSON values."""
        return {"name": self.name, **asdict(self)}


PROTOCOLS: dict[str, Protocol] = {
    "paper": Protocol(),
    # the evaluation code of EMMET: n-gram entropy over prompt and continuation together
    "public": replace(Protocol(), entropy_over="text", locality_question="bare_question_mark"),
    # that of ROME and MEMIT, which differs on zsRE
    "rome": replace(Protocol(), entropy_over="text", locality_question="question_mark"),
    # EasyEdit: locality is agreement with what the unedited model said; greedy words
    "easyedit": replace(Protocol(), neighborhood="original", top_k=1, entropy_over="text"),
}
"""The protocols that have names."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """A text cut into runs of letters and digits and single other characters.

    >>> words("It's 5.3 km, isn't it?")
    ['It', "'", 's', '5', '.', '3', 'km', ',', 'isn', "'", 't', 'it', '?']
    """
    return _WORDS.findall(text)


def cut(text: str, tokens: Sequence[int], how: Literal["words", "whitespace", "tokens"]) -> list[str]:
    """What n-grams of a text are made of; ``tokens`` are its token ids."""
    if how == "tokens":
        return [str(t) for t in tokens]
    return text.split() if how == "whitespace" else words(text)
