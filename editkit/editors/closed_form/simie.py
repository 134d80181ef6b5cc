"""SimIE: what another editor would change, put together by recursive ridge regression."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import PositiveFloat

from editkit.editors.base import Editor
from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.memit import MEMIT
from editkit.editors.closed_form.of_editor import OfEditor
from editkit.editors.closed_form.preservations import Identity


class SimIE(ClosedForm):
    """SimIE (Guo et al. 2025, ICML, openreview VdEG08ZJCH): R = (W_editor − W)K, H = (λI + M)⁻¹, ρ = 1.

    K are the keys of all tokens of prompts and targets, and M those of earlier batches.

    Args:
        editor: whose edits are put together. Default: ``MEMIT()``. Its layers are those of this editor, too.
        damping: λ.
        start: whether the editor starts from the "unedited" weights for each batch, as published for ROME, or from the
            "present" ones.
        kwargs: see ``ClosedForm``; how values are found is the other editor's.
    """

    def __init__(
        self,
        editor: Editor | None = None,
        damping: PositiveFloat = 1.0,
        start: Literal["unedited", "present"] = "unedited",
        **kwargs: Any,
    ) -> None:
        editor = editor or MEMIT(layers=kwargs.get("layers"))
        if kwargs.get("layers") is None:  # as the command line gives it
            kwargs["layers"] = getattr(editor, "layers", None)
        super().__init__(preservation=Identity(damping), residual=OfEditor(editor, start), **kwargs)
        self.max_batch_size, self.shards_facts = editor.max_batch_size, editor.shards_facts
