"""What the fields of a fact are called in the formats that are read, and fields that only look like them."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from typing import Literal

#: which answer of a zsRE record is written: the first of ``answers``, or ``alt``
ZsreTarget = Literal["answers", "alt"]

REQUIRED = ("subject", "prompt", "target_new")
PROMPT_LISTS = (
    "paraphrase_prompts",
    "neighborhood_prompts",
    "generation_prompts",
    "unrelated_prompts",
    "unrelated_answers",
    "reference_texts",
)
ALIASES: dict[str, tuple[str, ...]] = {
    "subject": (),
    "prompt": ("src",),
    "target_new": ("answers",),
    "target_true": ("ground_truth",),
    "paraphrase_prompts": ("paraphrase_prompt", "rephrase_prompt", "rephrase", "paraphrases"),
    "neighborhood_prompts": ("neighborhood_prompt", "locality_prompt", "neighbors"),
    "generation_prompts": (),
    "unrelated_prompts": ("loc",),
    "unrelated_answers": ("loc_ans",),
    "reference_texts": (),
    "fact_id": ("case_id", "id"),
    "relation": ("relation_id",),
}
"""A fact's fields, and their other names, in the order in which they are looked for."""
CSV_LISTS = (*PROMPT_LISTS, "paraphrases", "neighbors")  # whose cells hold texts separated by |

_READ = {*ALIASES, *(name for names in ALIASES.values() for name in names)}
_READ |= {"requested_rewrite", "locality_ground_truth"}
# of the known formats: they are no prompts or answers that anyone expects to be measured
_PASSED_OVER = {
    "alt", "pred", "cond",  # zsRE
    "attribute_prompts", "pararel_idx",  # CounterFact
    "answer", "answer_alias", "new_answer", "new_answer_alias", "question", "questions",  # MQuAKE
}  # fmt: skip
_MEANT = {
    "target": "target_new", "new_target": "target_new", "true_target": "target_true",
    "paraphrase": "paraphrases", "neighbor": "neighbors", "neighbour": "neighbors", "neighborhood": "neighbors",
    "neighbourhood": "neighbors", "generation": "generation_prompts", "reference": "reference_texts",
    "references": "reference_texts", "unrelated": "unrelated_prompts",
    "locality": "unrelated_prompts and unrelated_answers",
}  # fmt: skip
CLOSE = 0.8  # difflib's ratio from which a name looks like another


def aliases(zsre_target: ZsreTarget) -> dict[str, tuple[str, ...]]:
    """``ALIASES``, where zsRE's ``alt`` is written: with ``answers`` as what was true before."""
    if zsre_target == "answers":
        return ALIASES
    return {**ALIASES, "target_new": ("alt",), "target_true": (*ALIASES["target_true"], "answers")}


def is_field(name: str) -> bool:
    """Whether a column of this name is known, read or not.

    >>> is_field("target_new"), is_field("Lyon")
    (True, False)
    """
    return name in _READ or name in _PASSED_OVER


def meant_field(name: str) -> str | None:
    """The field that one which is not read looks like, or None.

    >>> meant_field("neighbours"), meant_field("Subject"), meant_field("source"), meant_field("subject_id")
    ('neighbors', 'subject', None, None)
    """
    if is_field(name):
        return None
    plain = re.sub(r"[\W_]+", "_", name.strip().lower())
    if plain in _MEANT or plain in _READ:
        return _MEANT.get(plain, plain)
    if plain.endswith(("id", "ids", "idx")):
        return None
    close = difflib.get_close_matches(plain, sorted(_READ), n=1, cutoff=CLOSE)
    return close[0] if close else None


@lru_cache(maxsize=256)
def unread_fields(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of a record's fields those that hold what would be measured and are not read, each with the reason.

    >>> unread_fields(("prompt", "target", "source", "rephrase", "paraphrases"))
    ("'target' (target_new?)", "'paraphrases' (rephrase is read)")
    """
    found = [f"{name!r} ({meant}?)" for name in names if (meant := meant_field(name))]
    found += [f"{name!r} (not measured)" for name in names if name == "portability"]
    for field in PROMPT_LISTS:
        first, *others = [name for name in (field, *ALIASES[field]) if name in names] or [""]
        found += [f"{name!r} ({first} is read)" for name in others]
    return tuple(found)
