"""The ledger: every form of a weight change kept and applied bit for bit, older schemas, ways back, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from editkit import Edits, Fact, InputError, load_edits
from editkit.edits import EditBatch, apply_delta, stored
from editkit.edits.files import SCHEMA, batch_file
from editkit.edits.weights import hashes, samples
from editkit.functional import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.models.editable import EditableModel, orient
from editkit.models.fingerprint import fingerprint

Build = Callable[..., PreTrainedModel]
FACTS = [Fact("Rome", "{} lies in", "Spain", "Italy", fact_id="0"), Fact("Oslo", "{} is", "warm", fact_id="1")]


def deltas(shape: tuple[int, int]) -> dict[str, Delta]:
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


def ledger(model: PreTrainedModel, made: list[dict[int, Delta]], sequential: bool = True) -> Edits:
    """What a run would have kept, its model edited meanwhile."""
    editable = EditableModel(model)
    edits = Edits(sequential=sequential, model=fingerprint(model), about={"editor": "none", "layers": [0, 1]})
    for index, changes in enumerate(made):
        batch = EditBatch([FACTS[index % 2]], {layer: stored(delta) for layer, delta in changes.items()})
        for layer, delta in batch.deltas.items():
            apply_delta(editable, layer, delta)
        batch.hashes, batch.samples = hashes(editable, changes), samples(editable, changes)
        edits.batches.append(batch)
    return edits


def shape_of(model: PreTrainedModel) -> tuple[int, int]:
    editable = EditableModel(model)
    rows, columns = orient(editable.projection(0), editable.weight(0)).shape
    return rows, columns


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: PreTrainedModel, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])  # Conv1D and Linear
def test_every_form_comes_back_bit_for_bit(build_model: Build, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = build_model(name).to(dtype)
    before = state(model)
    forms = deltas(shape_of(model))
    edits = ledger(model, [{0: delta} for delta in forms.values()])
    edits.batches[0].deltas[1] = ZeroDelta(shape_of(model))
    after = state(model)
    edits.save(tmp_path)
    kept = load_edits(tmp_path)
    assert [type(b.deltas[0]) for b in kept.batches] == [type(delta) for delta in forms.values()]
    assert [b.facts for b in kept.batches] == [b.facts for b in edits.batches]
    assert (kept.about, kept.model, kept.sequential) == (edits.about, edits.model, True)
    fresh = build_model(name).to(dtype)
    assert same(kept.apply(fresh), after)
    assert same(kept.undo(fresh), before)
    with pytest.raises(InputError, match="applied"):
        kept.undo(fresh)


def test_forms_agree_with_their_matrices() -> None:
    for delta in deltas((5, 7)).values():
        assert delta.dense().shape == delta.shape
        assert delta.norm() == pytest.approx(float(delta.dense().norm()))
        torch.testing.assert_close(stored(delta).dense(torch.float64), delta.dense(torch.float64), atol=1e-7, rtol=1e-6)


def test_an_editor_that_works_in_the_prompt_changes_no_weight(build_model: Build, tmp_path: Path) -> None:
    model = build_model("gpt2")
    before = state(model)
    edits = Edits([EditBatch(FACTS, prompt="Rome lies in Spain.")], model=fingerprint(model))
    edits.save(tmp_path)
    kept = load_edits(tmp_path)
    assert kept.batches[0].prompt == "Rome lies in Spain."
    assert same(kept.apply(model), before)


def old_schema(folder: Path, edits: Edits) -> None:
    """A ledger as editkit 0.1 wrote it, schema 1."""
    folder.mkdir()
    for index, batch in enumerate(edits.batches):
        tensors = {}
        for layer, delta in batch.deltas.items():
            if isinstance(delta, LowRankDelta):
                tensors |= {f"{layer}.left": delta.left, f"{layer}.right": delta.right}
            else:
                tensors[f"{layer}.left"] = delta.dense()
        save_file(tensors, batch_file(folder, index))
    batches = [
        {"facts": [asdict(f) for f in b.facts], "hashes": {str(k): v for k, v in b.hashes.items()}}
        for b in edits.batches
    ]
    header = {"schema": 1, "sequential": edits.sequential, "model": edits.model, "about": edits.about}
    (folder / "edits.json").write_text(json.dumps({**header, "batches": batches}), encoding="utf-8")


def test_a_ledger_of_schema_1_is_read(build_model: Build, tmp_path: Path) -> None:
    model = build_model("gpt2")
    forms = deltas(shape_of(model))
    edits = ledger(model, [{0: forms["low_rank"]}, {0: forms["dense"]}])
    old_schema(tmp_path / "old", edits)
    kept = load_edits(tmp_path / "old")
    assert same(kept.apply(build_model("gpt2")), state(model))
    kept.save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "edits.json").read_text(encoding="utf-8"))["schema"] == SCHEMA
    assert same(load_edits(tmp_path / "new").apply(build_model("gpt2")), state(model))


@pytest.fixture
def kept(build_model: Build, tmp_path: Path) -> tuple[Path, Edits]:
    model = build_model("gpt2")
    forms = deltas(shape_of(model))
    edits = ledger(model, [{0: forms["low_rank"]}, {0: forms["dense"]}, {0: forms["low_rank"]}])
    edits.save(tmp_path / "edits")
    return tmp_path / "edits", edits


def test_batches_made_after_the_index_was_written_count(kept: tuple[Path, Edits]) -> None:
    folder, edits = kept
    edits.batches, made = [], edits.batches
    edits.save_index(folder)  # as a run does when it begins
    assert [b.hashes for b in load_edits(folder).batches] == [b.hashes for b in made]


def test_a_shorter_ledger_replaces_a_longer_one(kept: tuple[Path, Edits]) -> None:
    folder, edits = kept
    replace(edits, batches=edits.batches[:1]).save(folder)
    assert len(load_edits(folder).batches) == 1


@pytest.mark.parametrize("harm", ["truncated", "missing", "empty index", "newer", "no index", "foreign"])
def test_harmed_files_are_one_clear_line(kept: tuple[Path, Edits], harm: str) -> None:
    folder, _ = kept
    index, file = folder / "edits.json", batch_file(folder, 1)
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    elif harm == "missing":
        file.unlink()
    elif harm == "foreign":
        save_file({"weight": torch.zeros(2)}, file)
    elif harm == "no index":
        index.unlink()
    elif harm == "newer":
        index.write_text(index.read_text(encoding="utf-8").replace(f'"schema": {SCHEMA}', '"schema": 99'))
    else:
        index.write_text("")
    with pytest.raises(InputError, match="edits: expected") as caught:
        load_edits(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_that_are_not_the_run_s(kept: tuple[Path, Edits], build_model: Build) -> None:
    """Rounding is said as such; anything more is refused, and the model left as it was."""
    folder, _ = kept
    edits, model = load_edits(folder), build_model("gpt2")
    before = state(model)
    edits.batches[-1].hashes = {0: "of another machine"}
    with pytest.warns(UserWarning, match="not bit for bit"):
        edits.apply(model)
    edits.undo(model)
    tensors = load_file(batch_file(folder, 0))
    edits.batches[0].deltas[0] = LowRankDelta(1.001 * tensors["0.left"], tensors["0.right"])
    with pytest.raises(InputError, match="more than rounding"):
        edits.apply(model)
    assert same(model, before)


def test_another_model_is_refused(kept: tuple[Path, Edits], build_model: Build) -> None:
    edits, other = load_edits(kept[0]), build_model("llama")
    before = state(other)
    with pytest.raises(InputError, match=f"fingerprint {edits.model}, but got {fingerprint(other)}"):
        edits.apply(other)
    with pytest.raises(InputError, match=r"shape \(32, 48\) for block 0 .*, but got \(32, 128\)"):
        edits.apply(other, force=True)
    assert same(other, before)


def test_one_of_several_batches(kept: tuple[Path, Edits], build_model: Build) -> None:
    """Independent batches come one at a time; sequential ones up to the one named."""
    edits = load_edits(kept[0])
    with pytest.raises(InputError, match="0 to 2, but got 3"):
        edits.apply(build_model("gpt2"), batch=3)
    until = edits.apply(build_model("gpt2"), batch=1)
    assert hashes(EditableModel(until), [0]) == edits.batches[1].hashes
    apart = replace(edits, sequential=False)
    with pytest.raises(InputError, match="3 independent batches"):
        apart.apply(build_model("gpt2"))
    alone = ledger(build_model("gpt2"), [edits.batches[2].deltas])
    apart.batches[2] = alone.batches[0]
    assert hashes(EditableModel(apart.apply(build_model("gpt2"), batch=2)), [0]) == alone.batches[0].hashes


def test_without_says_whether_it_is_as_if_never_made(kept: tuple[Path, Edits], build_model: Build) -> None:
    edits = load_edits(kept[0])
    last, exact = edits.without(2)
    assert exact
    assert hashes(EditableModel(last.apply(build_model("gpt2"))), [0]) == edits.batches[1].hashes
    middle, exact = edits.without(1)
    assert not exact
    assert middle.about["undone"] == [{"batch": 1, "as_if_never_made": False}]
    expected = ledger(build_model("gpt2"), [edits.batches[0].deltas, edits.batches[2].deltas])
    assert hashes(EditableModel(middle.apply(build_model("gpt2"))), [0]) == expected.batches[1].hashes
    assert replace(edits, sequential=False).without(0)[1]
