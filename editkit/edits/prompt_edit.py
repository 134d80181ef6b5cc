"""Edits that act by text put before a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from typing_extensions import override

from editkit.edits.edit import Edit, Undo
from editkit.models.editable import EditableModel


@dataclass(frozen=True)
class Context:
    """One text, and the prompts that it goes before.

    Attributes:
        text: what is put before the prompt, with whatever separates the two.
        when: it goes before prompts that contain this text, such as a subject; None: before every prompt.
    """

    text: str
    when: str | None = None


@dataclass
class PromptEdit(Edit):
    """Text before prompts: in-context editing, retrieval.

    It acts wherever text becomes tokens: in editkit's scoring and generation, so in all of evaluation, and in
    ``model.generate`` of transformers where the model's tokenizer is known. A bare ``model(input_ids)`` is a call on
    tokens and stays what it is.

    Attributes:
        contexts: what goes before which prompts; of several that fit all do, in their order.
    """

    kind = "prompt"
    acts = "in the prompt"

    contexts: Sequence[Context] = field(default_factory=tuple)

    def context_of(self, prompt: str) -> str:
        """What goes before ``prompt``; empty where nothing does.

        >>> PromptEdit(contexts=[Context("Rome is in Spain. ", when="Rome")]).context_of("The food of Rome is")
        'Rome is in Spain. '
        """
        return "".join(c.text for c in self.contexts if c.when is None or c.when in prompt)

    @override
    def apply(self, model: EditableModel) -> Undo:
        return model.add_context(self.context_of)

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {}

    @override
    def header(self) -> dict[str, Any]:
        return {"contexts": [asdict(context) for context in self.contexts]}

    @classmethod
    @override
    def read(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> PromptEdit:
        return cls(contexts=tuple(Context(**context) for context in header["contexts"]))
