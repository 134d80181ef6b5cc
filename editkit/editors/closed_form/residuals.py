"""What a closed form must change, as parts that a config can choose: R of the one solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from typing_extensions import override

from editkit.data.module import group_by_key
from editkit.data.plan import RunPlan
from editkit.editors.closed_form.parts import ResidualRule
from editkit.editors.closed_form.tuning import find_all
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.functional.values import norm_anchor, rescaled_values
from editkit.utils.progress import progress_bar

if TYPE_CHECKING:
    from editkit.editors.closed_form.editor import ClosedFormEditor


@dataclass
class SearchedValues(ResidualRule):
    """v* − state: the difference to value vectors that are searched for by gradient (ROME and all that came of it)."""


@dataclass
class RescaledValues(ResidualRule):
    """v* rescaled to the norm that values of this model have (NAS, arXiv 2602.02543).

    With v₀ the output of the edited module at the fact's token and δ what the search found, v* = v₀ + δ is given the
    length ``anchor``; where it is longer than ``skip_factor`` times that, the fact is left unchanged.

    Args:
        anchor: the length. Default: the mean of the v* of the run's own facts on the unedited model, less the longest.
        facts: how many of these facts at most.
        dropped: share of the longest that are left out of the mean.
        skip_factor: how much longer a v* may be.
    """

    anchor: PositiveFloat | None = None
    facts: PositiveInt = 1000
    dropped: ClosedUnitInterval = 0.05
    skip_factor: PositiveFloat = 2.0

    def __post_init__(self) -> None:
        self.begin()

    @override
    def begin(self) -> None:
        self._anchor: float | None = self.anchor

    @override
    def prepare(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        if self.anchor is None:
            self._anchor = plan.findings.get("norm_anchor") or self._measured(editor, plan)

    @override
    def findings(self) -> dict[str, Any]:
        return {} if self.anchor is not None else {"norm_anchor": self._anchor}

    def _measured(self, editor: ClosedFormEditor, plan: RunPlan) -> float:
        with progress_bar(shown=plan.progress and editor.global_rank == 0) as bar:
            facts = [fact for group in group_by_key(plan.facts[: self.facts]) for fact in group]
            vectors = find_all(editor.find, facts, bar, "NAS: norms of values").to(editor.editable.device)
            start, outputs = editor.searcher.start(vectors.groups)
            return norm_anchor((outputs + vectors.values - start).norm(dim=0), self.dropped)

    @override
    def revised(self, editor: ClosedFormEditor, vectors: ValueVectors) -> ValueVectors:
        if self._anchor is None:  # apart from a run, or in the search for the anchor itself
            return vectors
        start, outputs = editor.searcher.start(vectors.groups)
        values = rescaled_values(outputs, vectors.values - start, self._anchor, self.skip_factor)
        return ValueVectors(vectors.groups, vectors.keys, start - outputs + values)
