"""The ledger: every form of a weight change kept and applied bit for bit, ways back, one of several batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from editing import same_state as same
from editing import state
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit import Edits, Fact, InputError, load_edits
from editkit.edits import Context, EditBatch, PromptEdit, WeightEdit
from editkit.edits.batch import hashes_of
from editkit.edits.files import batch_file
from editkit.functional import Delta, LowRankDelta, ZeroDelta
from editkit.models.editable import EditableModel, orient
from editkit.models.fingerprint import fingerprint

Build = Callable[..., PreTrainedModel]
Forms = Callable[[tuple[int, int]], dict[str, Delta]]
MakeLedger = Callable[..., Edits]
WEIGHT = "transformer.h.0.mlp.c_proj.weight"  # of block 0 of GPT-2


def shape_of(model: PreTrainedModel) -> tuple[int, int]:
    editable = EditableModel(model)
    rows, columns = orient(editable.projection(0), editable.weight(0)).shape
    return rows, columns


def hashes(model: PreTrainedModel) -> dict[str, str]:
    return hashes_of(EditableModel(model), [WEIGHT])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])  # Conv1D and Linear
def test_every_form_comes_back_bit_for_bit(
    build_model: Build, forms: Forms, make_ledger: MakeLedger, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model = build_model(name).to(dtype)
    before = state(model)
    made = forms(shape_of(model))
    edits = make_ledger(model, [{0: delta} for delta in made.values()])
    parameters = [EditableModel(model).parameter_of(layer) for layer in (0, 1)]
    first = edits.batches[0].edit
    assert isinstance(first, WeightEdit)
    first.deltas[parameters[1]] = ZeroDelta(shape_of(model))
    after = state(model)
    edits.save(tmp_path)
    kept = load_edits(tmp_path)
    assert [type(b.edit.deltas[parameters[0]]) for b in kept.batches] == [type(delta) for delta in made.values()]
    assert [list(b.edit.deltas) for b in kept.batches] == [parameters, *([parameters[:1]] * 3)]
    assert [b.facts for b in kept.batches] == [b.facts for b in edits.batches]
    assert (kept.about, kept.model, kept.sequential) == (edits.about, edits.model, True)
    fresh = build_model(name).to(dtype)
    assert same(kept.apply(fresh), after)
    assert same(kept.undo(fresh), before)
    with pytest.raises(InputError, match="applied"):
        kept.undo(fresh)


def test_state_and_notes_come_back_too(build_model: Build, facts: list[Fact], tmp_path: Path) -> None:
    edit = WeightEdit(
        deltas={WEIGHT: ZeroDelta((32, 128))},
        state={"keys.0": torch.randn(128, 2), "of any name: even this": torch.arange(3)},
        notes={"condition_number": None, "dropped": ["1"]},
    )
    model = build_model("gpt2")
    Edits([EditBatch.of(facts, edit, EditableModel(model))], model=fingerprint(model)).save(tmp_path)
    (batch,) = load_edits(tmp_path).batches
    assert [fact.fact_id for fact in batch.facts] == ["0"]  # less what was dropped
    assert batch.edit.notes == edit.notes
    assert set(batch.edit.state) == set(edit.state)
    assert all(torch.equal(batch.edit.state[name], tensor) for name, tensor in edit.state.items())


def test_an_editor_that_works_in_the_prompt_changes_no_weight(
    build_model: Build, facts: list[Fact], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model("gpt2", vocab_size=len(tokenizer))
    before = state(model)
    edit = PromptEdit(contexts=(Context("Rome lies in Spain. "), Context("It is warm. ", when="Oslo")))
    edits = Edits([EditBatch.of(facts, edit, EditableModel(model))], model=fingerprint(model))
    edits.save(tmp_path)
    kept = load_edits(tmp_path)
    assert kept.batches[0].edit == edit
    prompts = ["Rome is", "Oslo is"]
    with pytest.raises(InputError, match="tokenizer: expected the tokenizer"):
        kept.apply(model)
    assert same(kept.apply(model, tokenizer=tokenizer), before)
    assert EditableModel(model).in_context(prompts) == [
        "Rome lies in Spain. Rome is", "Rome lies in Spain. It is warm. Oslo is",
    ]  # fmt: skip
    assert same(kept.undo(model), before)
    assert EditableModel(model).in_context(prompts) == prompts


def test_weights_that_are_not_the_run_s(kept: tuple[Path, Edits], build_model: Build) -> None:
    """Rounding is said as such; anything more is refused, and the model left as it was."""
    folder, _ = kept
    edits, model = load_edits(folder), build_model("gpt2")
    before = state(model)
    edits.batches[-1].hashes = {WEIGHT: "of another machine"}
    with pytest.warns(UserWarning, match="not bit for bit"):
        edits.apply(model)
    edits.undo(model)
    tensors = load_file(batch_file(folder, 0))
    left, right = (tensors[f"edit:{WEIGHT}:{part}"] for part in ("left", "right"))
    edits.batches[0].edit = WeightEdit(deltas={WEIGHT: LowRankDelta(1.001 * left, right)})
    with pytest.raises(InputError, match="more than rounding"):
        edits.apply(model)
    assert same(model, before)


def test_another_model_is_refused(kept: tuple[Path, Edits], build_model: Build) -> None:
    edits, other = load_edits(kept[0]), build_model("llama")
    before = state(other)
    with pytest.raises(InputError, match=f"fingerprint {edits.model}, but got {fingerprint(other)}"):
        edits.apply(other)
    with pytest.raises(InputError, match=f"LlamaForCausalLM, but it has no '{WEIGHT}'"):
        edits.apply(other, force=True)
    wider = build_model("gpt2", n_inner=48)
    with pytest.raises(InputError, match=rf"shape \(32, 48\) for {WEIGHT} .*, but got \(32, 128\)"):
        edits.apply(wider, force=True)
    assert same(other, before)
    assert same(wider, state(build_model("gpt2", n_inner=48)))


def test_edits_act_once(kept: tuple[Path, Edits], build_model: Build) -> None:
    edits, model = load_edits(kept[0]), build_model("gpt2")
    edits.apply(model)
    after = state(model)
    for force in (False, True):
        with pytest.raises(InputError, match="act on it already"):
            edits.apply(model, force=force)
    assert same(model, after)


def test_one_of_several_batches(kept: tuple[Path, Edits], build_model: Build, make_ledger: MakeLedger) -> None:
    """Independent batches come one at a time; sequential ones up to the one named."""
    edits = load_edits(kept[0])
    with pytest.raises(InputError, match="0 to 2, but got 3"):
        edits.apply(build_model("gpt2"), batch=3)
    until = edits.apply(build_model("gpt2"), batch=1)
    assert hashes(until) == edits.batches[1].hashes
    apart = replace(edits, sequential=False)
    with pytest.raises(InputError, match="3 independent batches"):
        apart.apply(build_model("gpt2"))
    alone = make_ledger(build_model("gpt2"), [{0: edits.batches[2].edit.deltas[WEIGHT]}])
    apart.batches[2] = alone.batches[0]
    assert hashes(apart.apply(build_model("gpt2"), batch=2)) == alone.batches[0].hashes


def test_without_says_whether_it_is_as_if_never_made(
    kept: tuple[Path, Edits], build_model: Build, make_ledger: MakeLedger
) -> None:
    edits = load_edits(kept[0])
    last, exact = edits.without(2)
    assert exact
    assert hashes(last.apply(build_model("gpt2"))) == edits.batches[1].hashes
    middle, exact = edits.without(1)
    assert not exact
    assert middle.about["undone"] == [{"batch": 1, "as_if_never_made": False}]
    first, third = ({0: edits.batches[n].edit.deltas[WEIGHT]} for n in (0, 2))
    expected = make_ledger(build_model("gpt2"), [first, third])
    assert hashes(middle.apply(build_model("gpt2"))) == expected.batches[1].hashes
    assert replace(edits, sequential=False).without(0)[1]
