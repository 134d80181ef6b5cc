"""LyapLock's preservation: a queue of past damage decides its weight, and it pulls back to the unedited weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jsonargparse.typing import PositiveFloat
from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.parts import EditedLayer, PreservationRule
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import preservation
from editkit.functional.lyapunov import DamageQueue, damage
from editkit.functional.preservation import Preservation


@dataclass
class LyapunovQueue(PreservationRule):
    """H = (μₜC + M)⁻¹, μₜ from a queue of the damage done so far, and Δ₀ = [μₜ(W₀ − W)C + VKᵀ − WM]H (2505.15702).

    D = tr((W − W₀)C(W − W₀)ᵀ) is the damage to text, and D₀ that of the first batch. The queue grows while D is above
    ``tolerance`` · D₀.

    Args:
        weight: λ on the second moment C in the first batch.
        tolerance: α.
    """

    weight: PositiveFloat = 1000.0
    tolerance: PositiveFloat = 60.0
    needs_original = True

    def __post_init__(self) -> None:
        self.begin()

    @override
    def begin(self) -> None:
        self._queues: dict[int, DamageQueue] = {}
        self._value_keys: dict[int, Tensor] = {}

    def present_weight(self, layer: int) -> float:
        """μₜ: the weight of C at a layer in the next batch."""
        return self.weight * (self._queues[layer].factor if layer in self._queues else 1.0)

    @override
    def of(self, problem: LayerProblem) -> Preservation:
        return preservation.second_moment(
            problem.second_moment, self.present_weight(problem.layer), past=problem.past_sum
        )

    @override
    def restoring(self, problem: LayerProblem, preservation: Preservation) -> Tensor | None:
        past = problem.past_sum
        if past is None or problem.layer not in self._queues:
            return None
        assert problem.weight is not None
        factor = problem.second_moment.factor
        weight = problem.weight.to(factor)
        pull = (self._value_keys[problem.layer] - weight @ past).to(factor)
        pull -= self.present_weight(problem.layer) * (problem.accumulated @ factor) @ factor.T
        return preservation.times(pull)

    @override
    def observe(self, state: Mapping[str, Tensor], layers: Sequence[EditedLayer]) -> None:
        for layer in layers:
            if layer.keys is None or layer.original is None or layer.second_moment is None:
                continue
            keys = layer.keys.to(layer.second_moment.factor)
            weight = layer.weight.to(keys)
            given = weight @ keys @ keys.T
            known = self._value_keys.get(layer.layer)
            self._value_keys[layer.layer] = given if known is None else known + given
            done = damage(weight - layer.original.to(keys), layer.second_moment)
            queue = self._queues.get(layer.layer)
            self._queues[layer.layer] = (DamageQueue.begin(done, self.tolerance) if queue is None else queue).after(
                done
            )
