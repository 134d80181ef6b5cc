"""In-context editing: the fact is told before each prompt about its subject."""

from __future__ import annotations

from collections.abc import Sequence

from editkit import Context, Editor, Fact, PromptEdit


class InContext(Editor):
    """Says the new fact before prompts that name its subject."""

    def edit(self, batch: Sequence[Fact]) -> PromptEdit:
        return PromptEdit(contexts=[Context(f"{fact.text()} {fact.target_new}. ", fact.subject) for fact in batch])
