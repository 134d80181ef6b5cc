"""Facts that a model can be asked at all: they fit into its context window, and their target has tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from editkit.data.facts import Fact
from editkit.models.spans import encode, encode_prompts
from editkit.utils.errors import InputError, shorten
from editkit.utils.words import listed

SLACK = 8  # tokens by which a text may be longer than its parts
SHOWN = 5  # facts named in a message


def check_room(
    facts: Sequence[Fact],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    templates: Sequence[str] = ("{}",),
    essence: str = "{}",
) -> None:
    """Find the facts that a model cannot be asked, before anything is run on it.

    Refused and not left out: a run of fewer facts is another one than was asked for.

    Args:
        facts: the facts to edit.
        tokenizer: the model's fast tokenizer.
        context: tokens of its context window.
        templates: context templates with one "{}" for the prompt, in each of which every fact is run with its target.
        essence: prompt with one "{}" for the subject that is run too, up to the subject.

    Raises:
        InputError: facts that are longer than the window or whose target has no tokens; they are named.
    """
    spans = encode_prompts(tokenizer, facts, ["{}"], target="target_new")
    if empty := [fact for fact, span in zip(facts, spans, strict=True) if span.target >= len(span.ids)]:
        raise InputError(
            f"data.facts: expected targets that this model's tokenizer can write, but it makes no token of those of "
            f"{_named(empty)}; correct or take out these facts"
        )
    around = [text.replace("{}", "") for text in (*templates, essence)]
    most = max(len(span.ids) for span in encode(tokenizer, around)) + SLACK
    doubtful = [i for i, span in enumerate(spans) if len(span.ids) + most > context]
    longest: dict[int, int] = {}
    for i in doubtful:
        rows = encode_prompts(tokenizer, [facts[i]], templates, target="target_new")
        subject = encode_prompts(tokenizer, [Fact(facts[i].subject, essence, facts[i].target_new)], ["{}"])
        # the last token is only predicted
        longest[i] = max(len(subject[0].ids), *(len(span.ids) - 1 for span in rows))
    if long := {i: tokens for i, tokens in longest.items() if tokens > context}:
        raise InputError(
            f"data.facts: expected facts that fit into the context window of {context} tokens with their target and "
            f"the context templates, but {len(long)} of {len(facts)} do not: "
            f"{_named([facts[i] for i in long], [f'{tokens} tokens' for tokens in long.values()])}; shorten them or "
            "take them out"
        )


def _named(facts: Sequence[Fact], about: Sequence[str] | None = None) -> str:
    about = about or [""] * len(facts)
    parts = [
        f"fact {shorten(fact.fact_id, 24)} ({shorten(fact.subject, 32)}{', ' * bool(what)}{what})"
        for fact, what in zip(facts, about, strict=True)
    ]
    return listed(parts, SHOWN)
