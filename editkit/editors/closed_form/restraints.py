"""What is trimmed from a layer's change after it was solved for, as parts that a config can choose: Π of the one solve.

With several, one after the other. Each layer is trimmed before the next one's residual is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, restricted_number_type
from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.parts import RestraintRule, Share
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import Delta, DenseDelta, restraint
from editkit.utils.errors import InputError

Ratio = restricted_number_type(None, float, [(">=", 0), ("<", 1)])
Base = restricted_number_type(None, float, (">", 1))


@dataclass
class RECT(RestraintRule):
    """Keep the entries that change the weight most, relative to it (arXiv 2401.04700).

    Args:
        share: of the entries that are kept: 0.4 in AlphaEdit's comparison, 0.2 in the first code.
        code: "alphaedit" or "rect", which count them differently; see ``restraint.top_share``.
    """

    share: Share = 0.4  # type: ignore[valid-type]
    code: Literal["alphaedit", "rect"] = "alphaedit"

    @override
    def apply(self, delta: Delta, problem: LayerProblem) -> Delta:
        return restraint.top_share(delta, _weight(problem), self.share, self.code)


@dataclass
class SPHERE(RestraintRule):
    """Weaken a change along the weight's own main directions (arXiv 2510.01172).

    Args:
        ratio: η, the share of the spectrum of W's rows that counts as main.
        strength: α: 0.5 on AlphaEdit, 0.8 on MEMIT, PRUNE and RECT.
        side: "input" as in the paper; "output" is what the public code does where a weight is stored (d_in, d_out).
    """

    ratio: Ratio = 0.5  # type: ignore[valid-type]
    strength: ClosedUnitInterval = 0.5
    side: Literal["input", "output"] = "input"

    @override
    def apply(self, delta: Delta, problem: LayerProblem) -> Delta:
        return restraint.off_principal(delta, _weight(problem), self.ratio, self.strength, self.side)


@dataclass
class PRUNE(RestraintRule):
    """Pull down singular values of all changes together that exceed the unedited weight's (arXiv 2405.16821).

    Args:
        base: b > 1 of the logarithm by which they are pulled down, or "linear".
        when: "end" with the run's last batch, as published; "each" with every batch.
    """

    base: Base | Literal["linear"] = 1.2  # type: ignore[valid-type]
    when: Literal["end", "each"] = "end"
    needs_original = True

    @override
    def apply(self, delta: Delta, problem: LayerProblem) -> Delta:
        if self.when == "end" and not problem.last:
            return delta
        weight, earlier = _weight(problem), problem.accumulated
        original = weight if problem.original is None else problem.original
        together = earlier + delta.dense().to(earlier)
        return DenseDelta(restraint.singular_values(together, original, self.base).dense() - earlier)


def _weight(problem: LayerProblem) -> Tensor:
    if problem.weight is None:
        raise InputError("restraints: expected a problem with the layer's weight, but got none; give weight=…")
    return problem.weight.detach()
