"""UltraEdit's residual: a gradient, standardised by those of all facts so far. Nothing is searched for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor
from typing_extensions import override

from editkit.data.plan import RunPlan
from editkit.editors.closed_form.layers import GivenResiduals
from editkit.editors.closed_form.parts import EditedLayer, ResidualRule
from editkit.editors.closed_form.search import Group
from editkit.editors.closed_form.token_rows import TokenRows
from editkit.functional.statistics import RunningStatistics, ultraedit_residuals
from editkit.models.gradients import answer_gradients, answer_tokens
from editkit.utils.errors import InputError

if TYPE_CHECKING:
    from editkit.editors.closed_form.editor import ClosedFormEditor


@dataclass
class StandardisedGradient(ResidualRule):
    """R column = −η ‖k̂‖² ĝ, [k̂; ĝ] the standardised key and output gradient at a target's token (arXiv 2505.14679).

    One forward and one backward pass per fact; no search, no subject, no second moment. Each edited layer is on its
    own. The statistics of all facts so far, these included, are carried from batch to batch.

    Args:
        lr: η.
        variance: "paper": the variance of all rows so far; "code": the public code's, which counts each group's
            m/(m − 1) times.
        micro_batch: facts in each group that the statistics take up; matters under "code" alone. Default: the batch.
    """

    lr: PositiveFloat = 1e-6
    variance: Literal["paper", "code"] = "paper"
    micro_batch: PositiveInt | None = None
    searches = False

    def __post_init__(self) -> None:
        self.begin()

    @override
    def begin(self) -> None:
        self._statistics: dict[int, RunningStatistics] = {}
        self._present: dict[int, RunningStatistics] = {}  # with the batch at work

    @override
    def check(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        least = min(plan.batch_size, len(plan.facts), (self.micro_batch or plan.batch_size))
        if least > 1 or editor.language_model is None:
            return
        groups = [plan.facts[:1]] if self.variance == "paper" else [(fact,) for fact in plan.facts]
        for (fact,) in groups:
            if answer_tokens(editor.editable, editor.tokenizer, [fact.text()], [fact.target_new]) < 2:
                raise InputError(
                    f"data.batch_size: expected at least two target tokens to standardise gradients by, but "
                    f"{fact.target_new!r} has one and is alone; raise data.batch_size"
                    f"{' and micro_batch, or set variance to paper' * (self.variance == 'code')}"
                )

    @override
    def step(self, editor: ClosedFormEditor, groups: Sequence[Group], batch_idx: int) -> TokenRows:
        facts = [fact for group in groups for fact in group]
        began = time.perf_counter()
        rows = answer_gradients(
            editor.editable, editor.tokenizer, [fact.text() for fact in facts], [fact.target_new for fact in facts],
            editor.edited_layers, progress=lambda done: editor.show_progress(done, 0.0, 0.0),
        )  # fmt: skip
        loss, probability = float(rows.nll.mean()), float(rows.nll.neg().exp().mean())
        editor.show_progress(len(facts), loss, probability)
        speed = len(facts) / (time.perf_counter() - began)
        editor.log_dict({"loss": loss, "p(new)": probability, "facts_per_second": speed}, batch_size=len(facts))
        group_of = torch.tensor([n for n, group in enumerate(groups) for _ in group], device=rows.owners.device)
        return TokenRows(tuple(groups), rows.keys, rows.gradients, group_of[rows.owners])

    @override
    def goal(self, editor: ClosedFormEditor, found: Sequence[TokenRows]) -> GivenResiduals:
        rows = TokenRows.cat(found)
        residuals: dict[int, Tensor] = {}
        for layer, keys in rows.keys.items():
            gradients = rows.gradients[layer]
            features = torch.cat([keys, gradients]).T.to("cpu", torch.float64)
            statistics = self._statistics.get(layer) or RunningStatistics.zeros(features.shape[1])
            for part in self._groups(rows):
                statistics = statistics.updated(features[part], self.variance)
            self._present[layer] = statistics
            residuals[layer] = ultraedit_residuals(keys, gradients, statistics, self.lr)
        return GivenResiduals(rows.keys, residuals, rows.names)

    def _groups(self, rows: TokenRows) -> Iterator[Tensor]:
        """Columns that the statistics take up at a time."""
        size = self.micro_batch or max(1, len(rows.groups))
        for start in range(0, len(rows.groups), size):
            yield ((rows.owners >= start) & (rows.owners < start + size)).nonzero().flatten().cpu()

    @override
    def state(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{name}": tensor
            for layer, statistics in self._present.items()
            for name, tensor in statistics.tensors().items()
        }

    @override
    def observe(self, state: Mapping[str, Tensor], layers: Sequence[EditedLayer]) -> None:
        for layer in layers:
            own = {name.removeprefix(f"{layer.layer}."): t for name, t in state.items()}
            if f"{layer.layer}.count" in state:
                self._statistics[layer.layer] = RunningStatistics.read(own)
