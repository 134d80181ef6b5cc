"""NSE: a few neurons, chosen anew in each of several rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.parts import Share
from editkit.editors.closed_form.preservations import Neurons
from editkit.editors.closed_form.search import ValueSearch
from editkit.utils.errors import InputError


class NSE(ClosedForm):
    """Neuron-level sequential editing (Jiang et al. 2024, arXiv 2410.04045): H = S(Sᵀ(λC + M)S)⁻¹Sᵀ, ρ = 1.

    Values are found on the unedited model. Each round is about the facts of which between ``least`` and ``most`` is
    still missing; it goes through the layers, on the neurons that these facts' keys use most. M has the keys of all
    facts of earlier batches, also of those that no round was about.

    Args:
        preservation_weight: λ on the second moment C.
        share: p, of the keys' sum of absolute values that the neurons have.
        least: α: facts with a ‖v* − state‖ up to this are done.
        most: facts with as much missing are given up. Default: none is.
        rounds: at most (the public code's iterations less one, which measures only).
        kwargs: see ``ClosedForm``.
    """

    chooses_facts = True
    needs_search = "asks anew what is missing of each value"

    def __init__(
        self,
        preservation_weight: PositiveFloat = 15000.0,
        share: Share = 0.8,  # type: ignore[valid-type]
        least: NonNegativeFloat = 0.0,
        most: PositiveFloat | None = None,
        rounds: PositiveInt = 2,
        values: ValueSearch | None = None,
        **kwargs: Any,
    ) -> None:
        values = replace(values or ValueSearch(), weights="unedited")
        super().__init__(preservation=Neurons(preservation_weight, share), values=values, **kwargs)
        self.least, self.most, self.rounds = least, most, rounds

    @override
    def check_settings(self) -> None:
        super().check_settings()
        if self.most is not None and self.most <= self.least:
            raise InputError(
                f"model.most: expected more than model.least = {self.least:g}, but got {self.most:g}; raise it"
            )

    @override
    def choose(self, missing: Tensor) -> Sequence[int]:
        norms = missing.norm(dim=0)
        kept = norms > self.least
        if self.most is not None:
            kept &= norms < self.most
        chosen: list[int] = kept.nonzero().flatten().tolist()
        return chosen
