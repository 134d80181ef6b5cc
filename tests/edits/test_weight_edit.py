"""Changes of parameters: the kept form agrees with the matrix, and any parameter can be changed by its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from editkit.edits import WeightEdit
from editkit.edits.weight_edit import rounded_delta
from editkit.functional import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
Forms = Callable[[tuple[int, int]], dict[str, Delta]]


def test_forms_agree_with_their_matrices(forms: Forms) -> None:
    for delta in forms((5, 7)).values():
        assert delta.dense().shape == delta.shape
        assert delta.norm() == pytest.approx(float(delta.dense().norm()))
        rounded = rounded_delta(delta)
        assert all(t.dtype == torch.float32 for t in rounded.tensors().values() if t.is_floating_point())
        torch.testing.assert_close(rounded.dense(torch.float64), delta.dense(torch.float64), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # Conv1D stores the transpose
def test_a_change_is_d_out_by_d_in_whatever_the_orientation(build_model: Build, name: str) -> None:
    model = build_model(name)
    editable = EditableModel(model)
    parameter = editable.parameter_of(1)
    d_out, d_in = editable.oriented(parameter, editable.parameter(parameter)).shape
    left, right, keys = torch.randn(d_out, 2), torch.randn(d_in, 2), torch.randn(3, d_in)
    projection = editable.projection(1)
    before = projection(keys)
    WeightEdit(deltas={parameter: LowRankDelta(left, right)}).apply(editable)
    torch.testing.assert_close(projection(keys) - before, keys @ right @ left.T, rtol=1e-4, atol=1e-4)


def test_any_parameter_by_its_name(build_model: Build) -> None:
    """A bias, a norm's weight, an embedding: each in its own shape."""
    model = build_model("gpt2")
    editable = EditableModel(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    names = ["transformer.h.0.mlp.c_fc.bias", "transformer.ln_f.weight", "transformer.wpe.weight"]
    changes: dict[str, Delta] = {name: DenseDelta(torch.randn(before[name].shape)) for name in names}
    changes["transformer.h.1.ln_1.bias"] = SparseDelta(torch.tensor([3]), torch.tensor([0.5]), (32,))
    changes["transformer.h.2.ln_1.bias"] = ZeroDelta((32,))
    edit = WeightEdit(deltas=changes)
    edit.check(editable)
    edit.apply(editable)
    for name, parameter in model.named_parameters():
        expected = before[name] + changes[name].dense() if name in changes else before[name]
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-7)
    assert "transformer.h.2.ln_1.bias" not in edit.weight_changes()


def test_a_change_that_does_not_fit_is_named(build_model: Build) -> None:
    editable = EditableModel(build_model("gpt2"))
    name = "transformer.h.0.mlp.c_fc.bias"
    with pytest.raises(InputError, match=rf"shape \(128,\) for {name} of GPT2LMHeadModel, but got \(127,\)"):
        WeightEdit(deltas={name: ZeroDelta((127,))}).check(editable)
    with pytest.raises(InputError, match="GPT2LMHeadModel, but it has no 'nothing'"):
        WeightEdit(deltas={"nothing": ZeroDelta((1,))}).check(editable)
