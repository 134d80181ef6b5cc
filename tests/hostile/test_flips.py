"""One bit of a file is another: the file is refused, or the flip has no effect; never is a changed result accepted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import facts, state
from hostile import Places

import editkit
from editkit import InputError, SecondMomentSource, load_edits
from editkit.covariance.estimate import ensure
from editkit.data.module import group_by_key
from editkit.editors.closed_form.checkpoint import ValueCheckpoint
from editkit.editors.closed_form.search import SearchTotals
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.export import export_checkpoint
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model

Outcome = Callable[[], Any]


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    """One bit of a file is another inside the block."""
    written = file.read_bytes()
    harmed = bytearray(written)
    harmed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(harmed)
    try:
        yield
    finally:
        file.write_bytes(written)


def try_flips(files: list[Path], outcome: Outcome, count: int) -> int:
    """Flip random bits of files, one at a time, each file as likely as it is long; returns how many were refused."""
    expected, refused, drawn = outcome(), 0, random.Random(1)
    sizes = [file.stat().st_size for file in files]
    for _ in range(count):
        (file,) = drawn.choices(files, sizes)
        bit = drawn.randrange(8 * file.stat().st_size)
        with flipped(file, bit):
            try:
                found = outcome()
            except InputError:
                refused += 1
                continue
        assert same(found, expected), f"bit {bit} of {file.name} changes the result"
    return refused


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.fixture(scope="module")
def ledger(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger on the tiny model: two sequential batches, with the keys that later ones would preserve."""
    folder = tmp_path_factory.mktemp("ledger")
    editor = editkit.MEMIT(layers=[0, 1], earlier_keys="auto")
    editor.values.num_steps = 2
    editor.second_moment = SecondMomentSource(text="atlas", num_tokens=2000)
    edited = editkit.edit(
        *load_language_model(str(places.tiny)), facts(4), editor, folder / "moments", 2, evaluate=False, progress=False
    )
    edited.save(folder / "edits")
    return folder


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_ledger(ledger: Path, places: Places, count: int) -> None:
    model, _ = load_language_model(str(places.tiny))

    def outcome() -> Any:
        edits = load_edits(ledger / "edits")
        weights = state(edits.apply(model))
        edits.undo(model)
        kept = [batch.edit.state for batch in edits.batches]
        about = [[vars(fact) for fact in edits.facts], [batch.edit.notes for batch in edits.batches], edits.about]
        return {"weights": weights, "state": dict(enumerate(kept)), "about": about}

    files = sorted((ledger / "edits").glob("batch_*")) + [ledger / "edits" / "edits.json"]
    assert try_flips(files, outcome, count) > 0.9 * count


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_second_moments(ledger: Path, places: Places, count: int) -> None:
    model, tokenizer = load_language_model(str(places.tiny))
    source = SecondMomentSource(text="atlas", num_tokens=2000, path=str(ledger / "moments"))
    folder = ensure(EditableModel(model), tokenizer, [0, 1], source, progress=False)
    factors = [file.read_bytes() for file in sorted((ledger / "moments").glob("*cholesky*"))]

    def outcome() -> Any:
        found = {
            layer: {"c": folder.read(layer), "l": folder.factored(layer).factor, "d": folder.conditioning(layer)}
            for layer in (0, 1)
        }
        # a factor that is made again is written again
        assert [file.read_bytes() for file in sorted((ledger / "moments").glob("*cholesky*"))] == factors
        return found

    files = sorted((ledger / "moments").glob("*.safetensors"))
    assert try_flips(files, outcome, count) > 0.4 * count  # of factors none: they are made again


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_exported_checkpoint(ledger: Path, places: Places, tmp_path: Path, count: int) -> None:
    edits, (model, tokenizer) = load_edits(ledger / "edits"), load_language_model(str(places.tiny))
    export_checkpoint(edits, model, tokenizer, tmp_path / "checkpoint")

    def outcome() -> Any:
        loaded, _ = load_language_model(str(tmp_path / "checkpoint"))
        return state(loaded)

    files = [file for file in (tmp_path / "checkpoint").iterdir() if file.suffix != ".md"]
    assert try_flips(files, outcome, count) > 0.9 * count


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_checkpoint_that_a_ledger_was_made_for(ledger: Path, places: Places, tmp_path: Path, count: int) -> None:
    """Whatever made it: a model of which one entry is another is not the one on record."""
    edits, (model, _) = load_edits(ledger / "edits"), load_language_model(str(places.tiny))
    drawn = random.Random(2)
    parameters = list(model.parameters())
    for _ in range(count):
        (parameter,) = drawn.choices(parameters, [p.numel() for p in parameters])
        flat = parameter.data.view(-1).view(torch.int32)
        place, bit = drawn.randrange(len(flat)), drawn.randrange(32)
        flat[place] ^= 1 << bit if bit < 31 else -(1 << 31)
        with pytest.raises(InputError, match="fingerprint"):
            edits.apply(model)
        flat[place] ^= 1 << bit if bit < 31 else -(1 << 31)
    edits.apply(model)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_values_of_an_interrupted_batch(tmp_path: Path, count: int) -> None:
    checkpoint, groups = ValueCheckpoint(tmp_path), group_by_key(facts(3))
    found = ValueVectors(tuple(groups), torch.randn(16, 3), torch.randn(8, 3))
    checkpoint.write(0, 0, found, SearchTotals())
    (file,) = (tmp_path / "found").iterdir()

    def outcome() -> Any:
        kept = checkpoint.read(0, 0, groups, torch.device("cpu"))
        if kept is None:
            raise InputError("searched again")
        return {"keys": kept[0].keys, "values": kept[0].values, "totals": kept[1]}

    assert try_flips([file], outcome, count) > 0.9 * count


@pytest.mark.parametrize(
    ("shape", "harm"),
    [
        (shape, harm)
        for shape in ((512, 96), (96, 512), (1024, 64))  # where every 512th entry lies in one column
        for harm in ("zeroed", "times -3", "one exponent bit", "one entry")
    ],
)
def test_a_ledger_made_to_look_whole(shape: tuple[int, int], harm: str, tmp_path: Path) -> None:
    """Factors that were changed and sealed again give other weights than those on record: no part of them is unseen."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from editkit.edits import AppliedEdits, EditBatch, Edits, WeightEdit
    from editkit.functional import LowRankDelta
    from editkit.models.fingerprint import fingerprint

    torch.manual_seed(0)
    inner, width = shape
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=width, n_inner=inner, n_layer=1, n_head=4, n_positions=16))
    editable, name = EditableModel(model), "transformer.h.0.mlp.c_proj.weight"
    left, right = 0.05 * torch.randn(width, 2), 0.05 * torch.randn(inner, 2)
    edits = Edits(model=fingerprint(model))
    applied = AppliedEdits(editable)
    edit = WeightEdit(deltas={name: LowRankDelta(left, right)})
    applied.apply(edit)
    edits.batches.append(EditBatch.of(facts(2), edit, editable))
    applied.restore()
    before = state(model)
    harmed = left.clone()
    if harm == "zeroed":
        harmed[1:] = 0
    elif harm == "times -3":
        harmed *= -3
    elif harm == "one exponent bit":
        harmed.view(torch.int32)[3, 1] ^= 1 << 29
    else:
        harmed[5, 0] *= 1.001
    edits.batches[0].edit = WeightEdit(deltas={name: LowRankDelta(harmed, right)})
    edits.save(tmp_path)
    with pytest.raises(InputError, match=r"more than rounding|not finite|finite"):
        load_edits(tmp_path).apply(model)
    assert same(state(model), before)
