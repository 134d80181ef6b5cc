"""Weight changes of every form, and ledgers as a run would have kept them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from editkit import Edits, Fact
from editkit.edits import AppliedEdits, EditBatch, WeightEdit
from editkit.functional import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import fingerprint

#: from (d_out, d_in) to a change of that shape in every form, by its name in a ledger
Forms = Callable[[tuple[int, int]], dict[str, Delta]]
#: from a model, which is edited, and the changes of each batch by block to the ledger
MakeLedger = Callable[..., Edits]


@pytest.fixture
def facts() -> list[Fact]:
    return [Fact("Rome", "{} lies in", "Spain", "Italy", fact_id="0"), Fact("Oslo", "{} is", "warm", fact_id="1")]


@pytest.fixture
def forms() -> Forms:
    def made(shape: tuple[int, int]) -> dict[str, Delta]:
        generator = torch.Generator().manual_seed(3)

        def random(*size: int) -> Tensor:
            return 0.1 * torch.randn(*size, generator=generator, dtype=torch.float64)

        few = torch.zeros(shape, dtype=torch.float64)
        few[1, 2], few[3, 0] = 0.5, -0.25
        return {
            "low_rank": LowRankDelta(random(shape[0], 2), random(shape[1], 2)),
            "dense": DenseDelta(random(*shape)),
            "sparse": SparseDelta.of(few),
            "none": ZeroDelta(shape),
        }

    return made


@pytest.fixture
def make_ledger(facts: list[Fact]) -> MakeLedger:
    def made(model: PreTrainedModel, batches: Sequence[dict[int, Delta]], sequential: bool = True) -> Edits:
        editable = EditableModel(model)
        edits = Edits(sequential=sequential, model=fingerprint(model), about={"editor": "none", "layers": [0, 1]})
        applied = AppliedEdits(editable)
        for index, changes in enumerate(batches):
            edit = WeightEdit(deltas={editable.parameter_of(n): delta for n, delta in changes.items()}).rounded()
            applied.apply(edit)
            edits.batches.append(EditBatch.of([facts[index % 2]], edit, editable))
        return edits

    return made


@pytest.fixture
def kept(
    build_model: Callable[..., PreTrainedModel], make_ledger: MakeLedger, forms: Forms, tmp_path: Path
) -> tuple[Path, Edits]:
    """A ledger of three sequential batches of a tiny GPT-2, on disk and in memory."""
    made = forms((32, 128))
    batches = [{0: made["low_rank"]}, {0: made["dense"]}, {0: made["low_rank"]}]
    edits = make_ledger(build_model("gpt2"), batches)
    edits.save(tmp_path / "edits")
    return tmp_path / "edits", edits
