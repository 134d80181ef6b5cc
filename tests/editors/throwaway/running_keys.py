"""A closed form that keeps earlier keys in its own state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from editkit import ClosedFormEditor, Edit, LayerProblem
from editkit.data.plan import RunPlan
from editkit.functional import LowRankDelta, memit_update


class RunningKeys(ClosedFormEditor):
    """MEMIT that adds up KKᵀ of earlier batches by itself.

    Args:
        weight: λ on C.
        kwargs: see ``editkit.ClosedFormEditor``.
    """

    keeps_earlier_keys = True  # so that they are in the ledger, and come back in ``observe``

    def __init__(self, weight: float = 30.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = weight
        self.past: dict[str, Tensor] = {}

    def prepare(self, plan: RunPlan) -> None:
        super().prepare(plan)
        self.past = {}

    def solve(self, problem: LayerProblem) -> LowRankDelta:
        factor = problem.second_moment.factor
        total = factor @ factor.T
        if (past := self.past.get(f"keys.{problem.layer}")) is not None:
            total = total + past / self.weight
        return memit_update(problem.keys, problem.residuals, total, self.weight, problem.names)

    def observe(self, edit: Edit) -> None:
        for name, keys in edit.state.items():
            keys = keys.double()
            self.past[name] = self.past.get(name, 0) + keys @ keys.T
