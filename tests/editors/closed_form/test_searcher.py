"""The search for value vectors: exact on every family, the same in any micro-batch, bounded in memory, never silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from editing import Loaded, facts
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit.data.facts import Fact
from editkit.editors import EMMET, ROME, ValueSearch
from editkit.editors.closed_form import searcher as searcher_module
from editkit.editors.closed_form.search import MicroBatch, SearchTotals, group_rows
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits
from editkit.functional import factor_second_moment
from editkit.models.editable import hidden_of
from editkit.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
TEMPLATES = [["{}"], ["And so it was. {}", "Long ago, {}"]]


def attached(loaded: Loaded, editor: EMMET | ROME) -> Any:
    editor.attach(*loaded)
    editor.configure_model()
    return editor


def searched(loaded: Loaded, given: list[Fact], layer: int = 1, **options: Any) -> ValueVectors:
    editor: EMMET = attached(loaded, EMMET(layers=[layer], values=ValueSearch(context_templates=TEMPLATES, **options)))
    return editor.find_values([[fact] for fact in given])


def values(loaded: Loaded, given: list[Fact], layer: int = 1, **options: Any) -> Tensor:
    return searched(loaded, given, layer, **options).values


def test_an_exact_edit_reaches_the_value_on_every_family(
    build_model: Build, family_name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    reaches_the_value(build_model(family_name, vocab_size=len(tokenizer)), tokenizer)


@pytest.mark.parametrize(
    ("name", "change"), [("granite", {"residual_multiplier": 0.3}), ("opt", {"do_layer_norm_before": False})]
)
def test_an_exact_edit_reaches_the_value_behind_a_scale_or_norm(
    build_model: Build, name: str, change: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    reaches_the_value(build_model(name, vocab_size=len(tokenizer), **change), tokenizer)


def reaches_the_value(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    editor = attached((model, tokenizer), ROME(layers=[1], values=ValueSearch(context_templates=[["{}"]], num_steps=4)))
    fact = facts(1)[0]
    vectors = editor.find_values([[fact]])
    (rows,) = group_rows(tokenizer, [[fact]], ["{}"], "{} is a")
    ids, lookup = torch.tensor([rows.prompts[0].ids]), rows.prompts[0].lookup
    projection, block = editor.editable.projection(1), editor.editable.blocks[1]
    site = projection if editor.at_projection else block
    seen: dict[str, Tensor] = {}

    def see(module: object, inputs: object, output: Any) -> None:
        seen["block"] = hidden_of(output)[0, lookup].clone()

    def set_value(module: object, inputs: object, output: Any) -> Any:
        hidden_of(output).view(ids.shape[1], -1)[lookup] = vectors.values[:, 0]
        return output

    hooks = [site.register_forward_hook(set_value), block.register_forward_hook(see)]
    model(input_ids=ids)
    wanted = seen["block"]
    hooks[0].remove()
    model(input_ids=ids)
    assert (seen["block"] - wanted).norm() > 1e-3 * wanted.norm()  # there is something to reach

    keys = torch.randn(200, len(vectors.keys))
    editor.preserve({1: factor_second_moment(keys.T @ keys / 200)})
    AppliedEdits(editor.editable).apply(editor.edit_for(vectors))
    model(input_ids=ids)
    assert (seen["block"] - wanted).norm() < 1e-4 * wanted.norm()
    hooks[1].remove()


def test_several_layers_are_refused_where_a_residual_is_not_additive(
    build_model: Build, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model("gemma2", vocab_size=len(tokenizer))
    with pytest.raises(InputError, match=r"layers: .*expected one block, but got \[0, 1\]"):
        attached((model, tokenizer), EMMET(layers=[0, 1]))


def test_a_fact_alone_and_among_63_others(atlas: Loaded) -> None:
    given = facts(64)
    together = values(atlas, given)
    for i in (0, 17, 63):
        alone = values(atlas, [given[i]])[:, 0]
        assert (alone - together[:, i]).norm() < 1e-5 * alone.norm()


def test_micro_batches_change_nothing(atlas: Loaded) -> None:
    given = facts(9)
    whole = searched(atlas, given)
    parts = searched(atlas, given, max_tokens=150)
    single = searched(atlas, given, max_tokens=1)
    for other in (parts, single):
        assert other.groups == whole.groups
        torch.testing.assert_close(other.values, whole.values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.keys, whole.keys)


def test_facts_that_are_done_leave_the_rows(atlas: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    given = facts(6)
    rows: list[int] = []
    losses = MicroBatch.losses

    def counted(self: MicroBatch, offset: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(self.facts))
        return losses(self, offset)

    monkeypatch.setattr(MicroBatch, "losses", counted)
    monkeypatch.setattr(searcher_module, "COMPACT", 1000)  # leave at once, however few
    leaving = values(atlas, given, layer=0, num_steps=25, clamp=5.0, decay=0.0)
    assert rows[0] == 6
    assert rows[-1] < 6
    assert rows == sorted(rows, reverse=True)
    monkeypatch.setattr(searcher_module, "COMPACT", 0)  # never
    staying = values(atlas, given, layer=0, num_steps=25, clamp=5.0, decay=0.0)
    torch.testing.assert_close(leaving, staying, rtol=1e-4, atol=1e-4)


def test_out_of_memory_halves_the_micro_batches(atlas: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    given = facts(8)
    whole = values(atlas, given)
    sizes: list[int] = []
    losses = MicroBatch.losses

    def crowded(self: MicroBatch, offset: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(self.facts))
        if len(offset) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, offset)

    monkeypatch.setattr(MicroBatch, "losses", crowded)
    backed_off = searched(atlas, given)
    assert sizes[0] == 8
    assert [len(group) for group in backed_off.groups] == [1] * 8
    torch.testing.assert_close(backed_off.values, whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.OutOfMemoryError):  # a budget given by hand is kept to
        searched(atlas, given, max_tokens=100_000)
    monkeypatch.setattr(MicroBatch, "losses", lambda self, offset: crowded(self, torch.zeros(4)))
    with pytest.raises(InputError, match="the memory does not suffice"):
        searched(atlas, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_searches_in_float32(atlas: Loaded, dtype: torch.dtype) -> None:
    given = facts(2)
    exact = values(atlas, given, num_steps=3)
    search = ValueSearch(context_templates=TEMPLATES, num_steps=3)
    editor: EMMET = attached((atlas[0].to(dtype), atlas[1]), EMMET(layers=[1], values=search))
    half = editor.find_values([[fact] for fact in given])
    assert editor.offset.dtype == torch.float32
    assert half.values.dtype == half.keys.dtype == torch.float32
    assert (half.values - exact).norm() < 0.1 * exact.norm()


def test_a_loss_that_is_not_finite_names_the_fact_and_changes_nothing(atlas: Loaded) -> None:
    class Broken(EMMET):
        def value_loss(self, nll: Tensor, kl: Tensor, offset: Tensor, start: Tensor) -> Tensor:
            loss = super().value_loss(nll, kl, offset, start)
            return torch.where(torch.arange(len(loss)) == 1, torch.nan, loss)

    given = facts(3)
    before = {name: p.clone() for name, p in atlas[0].named_parameters()}
    (second,) = {rows.facts[0].subject for rows in _second_in_search(atlas, given)}
    editor = Broken(layers=[1], second_moment=editkit.SecondMomentSource(num_tokens=2000))
    with pytest.raises(InputError, match=f"not finite for '{second}'"):
        editkit.edit(*atlas, given, editor, progress=False, evaluate=False)
    assert all(torch.equal(p, before[name]) for name, p in atlas[0].named_parameters())


def _second_in_search(loaded: Loaded, given: list[Fact]) -> list[Any]:
    rows = group_rows(loaded[1], [[f] for f in given], ["{}"], "{} is a")
    return [sorted(rows, key=lambda r: -r.tail)[1]]


def test_progress_counts_facts(atlas: Loaded) -> None:
    told: list[tuple[int, float, float]] = []
    editor = attached(atlas, EMMET(layers=[0], values=ValueSearch(context_templates=TEMPLATES, num_steps=8, clamp=5.0)))
    given = facts(5)
    groups, before = [given[:1], given[1:3], given[3:]], SearchTotals(7, 1.0, 0.5)
    with torch.enable_grad():
        _, totals = editor.searcher.find(
            groups, editor.offset, editor.configure_optimizers(), before, lambda *args: told.append(args)
        )
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == totals.facts == 12
    assert min(done) >= 7  # those of the batch's earlier steps
    assert told[-1][1] < told[0][1]
    assert told[-1][2] > told[0][2]
