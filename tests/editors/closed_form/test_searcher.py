"""The search for value vectors: exact on every family, the same in any micro-batch, bounded in memory, never silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit.callbacks import WeightUpdate
from editkit.callbacks.progress import EditProgress
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule
from editkit.editors import EMMET, ROME, ValueSearch
from editkit.editors.closed_form import editor as base_module
from editkit.editors.closed_form.search import MicroBatch, group_rows, search_bytes
from editkit.functional import factor_second_moment
from editkit.functional.values import row_wise, token_nll
from editkit.models.editable import EditableModel, hidden_of
from editkit.utils.errors import InputError

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Build = Callable[..., PreTrainedModel]
TEMPLATES = [["{}"], ["And so it was. {}", "Long ago, {}"]]


def facts(count: int) -> list[Fact]:
    module = FactsDataModule(num_facts=count)
    module.setup()
    return module.selected


def attached(loaded: Loaded, editor: EMMET | ROME) -> Any:
    editor.attach(*loaded)
    editor.configure_model()
    return editor


def values(editor: EMMET) -> Tensor:
    return torch.cat(editor.found.values, 1)


def searched(loaded: Loaded, given: list[Fact], layer: int = 1, **options: Any) -> EMMET:
    editor: EMMET = attached(loaded, EMMET(layers=[layer], values=ValueSearch(context_templates=TEMPLATES, **options)))
    editor.find_values([[fact] for fact in given])
    return editor


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
    editor.find_values([[fact]])
    (rows,) = group_rows(tokenizer, [[fact]], ["{}"], "{} is a")
    ids, lookup = torch.tensor([rows.prompts[0].ids]), rows.prompts[0].lookup
    projection, block = editor.editable.projection(1), editor.editable.blocks[1]
    site = projection if editor.at_projection else block
    seen: dict[str, Tensor] = {}

    def see(module: object, inputs: object, output: Any) -> None:
        seen["block"] = hidden_of(output)[0, lookup].clone()

    def set_value(module: object, inputs: object, output: Any) -> Any:
        hidden_of(output).view(ids.shape[1], -1)[lookup] = values(editor)[:, 0]
        return output

    hooks = [site.register_forward_hook(set_value), block.register_forward_hook(see)]
    model(input_ids=ids)
    wanted = seen["block"]
    hooks[0].remove()
    model(input_ids=ids)
    assert (seen["block"] - wanted).norm() > 1e-3 * wanted.norm()  # there is something to reach

    update = WeightUpdate()
    keys = torch.randn(200, editor.found.keys[0].shape[0])
    update.second_moments = {1: factor_second_moment(keys.T @ keys / 200)}
    update.update(editor)
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
    together = values(searched(atlas, given))
    for i in (0, 17, 63):
        alone = values(searched(atlas, [given[i]]))[:, 0]
        assert (alone - together[:, i]).norm() < 1e-5 * alone.norm()


def test_micro_batches_change_nothing(atlas: Loaded) -> None:
    given = facts(9)
    whole = searched(atlas, given)
    parts = searched(atlas, given, max_tokens=150)
    single = searched(atlas, given, max_tokens=1)
    for other in (parts, single):
        assert other.found.groups == whole.found.groups
        torch.testing.assert_close(values(other), values(whole), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.cat(other.found.keys, 1), torch.cat(whole.found.keys, 1))


def test_facts_that_are_done_leave_the_rows(atlas: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    given = facts(6)
    rows: list[int] = []
    losses = MicroBatch.losses

    def counted(self: MicroBatch, offset: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(self.facts))
        return losses(self, offset)

    monkeypatch.setattr(MicroBatch, "losses", counted)
    monkeypatch.setattr(base_module, "COMPACT", 1000)  # leave at once, however few
    leaving = values(searched(atlas, given, layer=0, num_steps=25, clamp=5.0, decay=0.0))
    assert rows[0] == 6
    assert rows[-1] < 6
    assert rows == sorted(rows, reverse=True)
    monkeypatch.setattr(base_module, "COMPACT", 0)  # never
    staying = values(searched(atlas, given, layer=0, num_steps=25, clamp=5.0, decay=0.0))
    torch.testing.assert_close(leaving, staying, rtol=1e-4, atol=1e-4)


def test_out_of_memory_halves_the_micro_batches(atlas: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    given = facts(8)
    whole = values(searched(atlas, given))
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
    assert [len(group) for group in backed_off.found.groups] == [1] * 8
    torch.testing.assert_close(values(backed_off), whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.OutOfMemoryError):  # a budget given by hand is kept to
        searched(atlas, given, max_tokens=100_000)
    monkeypatch.setattr(MicroBatch, "losses", lambda self, offset: crowded(self, torch.zeros(4)))
    with pytest.raises(InputError, match="the memory does not suffice"):
        searched(atlas, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_searches_in_float32(atlas: Loaded, dtype: torch.dtype) -> None:
    given = facts(2)
    exact = values(searched(atlas, given, num_steps=3))
    half = searched((atlas[0].to(dtype), atlas[1]), given, num_steps=3)
    assert half.offset.dtype == torch.float32
    assert all(s.dtype == torch.float32 for s in (*half.found.values, *half.found.keys))
    assert (values(half) - exact).norm() < 0.1 * exact.norm()


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


def test_what_the_search_keeps_for_backward_is_within_the_stated_bound(atlas: Loaded) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    flat = [t for group in TEMPLATES for t in group]
    groups = group_rows(tokenizer, [[f] for f in facts(6)], flat, "{} is a")
    work = MicroBatch(editable, groups, 0, 0, False)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not any(tensor.data_ptr() == p.data_ptr() for p in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    offset = torch.zeros(len(groups), editable.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nll, kl = work.losses(offset)
        (nll + kl).sum().backward()
    assert 0 < sum(kept.values()) <= sum(search_bytes(editable, 0, group) for group in groups)


def test_progress_counts_facts(atlas: Loaded) -> None:
    told: list[tuple[int, float, float]] = []
    editor = attached(atlas, EMMET(layers=[0], values=ValueSearch(context_templates=TEMPLATES, num_steps=8, clamp=5.0)))
    editor.progress = lambda *args: told.append(args)
    given = facts(5)
    editor.find_values([given[:1], given[1:3], given[3:]])
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == 5
    assert told[-1][1] < told[0][1]
    assert told[-1][2] > told[0][2]


def test_the_bar_is_lightnings_rich_one() -> None:
    assert issubclass(EditProgress, RichProgressBar)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_losses_in_chunks_have_the_gradient_of_the_whole(chunk: int) -> None:
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head, targets, weights = torch.randn(5, 11).double(), torch.randint(11, (7,)), torch.rand(7).double()
    ours = row_wise(lambda part, rows: token_nll(part @ head, targets[rows]), hidden, chunk)
    whole = -(hidden @ head).log_softmax(-1)[range(7), targets]
    torch.testing.assert_close(ours, whole)
    (grad,) = torch.autograd.grad((ours * weights).square().sum(), hidden)
    (expected,) = torch.autograd.grad((whole * weights).square().sum(), hidden)
    torch.testing.assert_close(grad, expected)
