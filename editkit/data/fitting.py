"""Few-shot examples that leave room for the questions in a model's context window."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from editkit.data.probes import ProbeSet, as_shown, balanced
from editkit.data.tasks import ProbeTask
from editkit.models.spans import encode

ANSWER_TOKENS = 5  # of a generated answer, beyond the longest word's own


def fitted(probes: ProbeSet, tokenizer: PreTrainedTokenizerBase, context: int, separator: str = " ") -> ProbeSet:
    """The same questions, after shorter examples where that lets more of them fit into the context window.

    Where every question fits after the pool's first examples, these stay. Else the pool's shortest ones are taken, as
    many and as balanced, for all questions alike; a warning says so.

    Args:
        probes: a probe that was read.
        tokenizer: the model's fast tokenizer.
        context: tokens of its context window.
        separator: what stands between a prompt and its label's word.
    """
    asked, shots = len(probes.rows), probes.probe.shots
    fit = sum(fits(probes, tokenizer, context, separator)) if shots else asked
    if fit == asked:
        return probes
    texts = encode(tokenizer, [as_shown([example], probes.task) for example in probes.pool])
    length = dict(zip(probes.pool, (len(span.ids) for span in texts), strict=True))
    shortest = balanced(sorted(probes.pool, key=length.__getitem__), shots, probes.task.classes)
    shown = as_shown(shortest, probes.task)
    rows = [replace(row, prompt=shown + row.prompt.removeprefix(probes.shown)) for row in probes.rows]
    other = replace(probes, rows=rows, shown=shown)
    fit_then = sum(fits(other, tokenizer, context, separator))
    if fit_then <= fit:
        return probes
    rank_zero_warn(
        f"probes.{probes.probe.title}: {asked - fit} of {asked} questions do not fit into the context window of "
        f"{context} tokens after the pool's first examples ({shots}); after its shortest ones, which are shown "
        f"instead, {asked - fit_then} do not",
        stacklevel=2,
    )
    return other


def fits(probes: ProbeSet, tokenizer: PreTrainedTokenizerBase, context: int, separator: str = " ") -> list[bool]:
    """Per question, whether it fits into the context window with what is scored after it; arguments as above."""
    prompts = [row.prompt.rstrip(" ") for row in probes.rows]
    found = [True] * len(prompts)
    if probes.probe.scored != "generation":
        for known in probes.task.words:
            spans = encode(tokenizer, [f"{prompt}{separator}{known[0]}" for prompt in prompts])
            found = [f and len(span.ids) <= context for f, span in zip(found, spans, strict=True)]
    if probes.probe.scored != "likelihood":
        room = answer_room(tokenizer, probes.task)
        found = [f and len(s.ids) + room <= context for f, s in zip(found, encode(tokenizer, prompts), strict=True)]
    return found


def answer_room(tokenizer: PreTrainedTokenizerBase, task: ProbeTask) -> int:
    """Tokens that a generated answer may have."""
    return max(len(span.ids) for span in encode(tokenizer, [known[0] for known in task.words])) + ANSWER_TOKENS
