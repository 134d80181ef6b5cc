"""Editors under the Trainer: the edit is met where it matters, methods agree, weights come back, subclasses work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

import editkit
from editkit.callbacks import Report, WeightUpdate
from editkit.covariance import factored_second_moments
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule, group_by_key
from editkit.editors import EMMET, MEMIT, ROME, Editor, LastLayer, SquareRootSpread, ValueSearch
from editkit.editors.closed_form.editor import ValueVectors
from editkit.functional import FactoredSecondMoment, LowRankDelta, memit_update
from editkit.utils.errors import InputError

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
QUICK = {"num_steps": 6}
BARE = [["{}"]]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Second moments of the atlas, estimated once for this file."""
    return tmp_path_factory.mktemp("moments")


def facts(count: int = 6) -> list[Fact]:
    module = FactsDataModule(num_facts=count)
    module.setup()
    return module.selected


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def quiet_edit(loaded: Loaded, editor: Editor, moments: Path, given: Sequence[Fact] | None = None, **kwargs: object):  # type: ignore[no-untyped-def]
    editor.second_moment.num_tokens = 8000
    options = {"progress": False, "evaluate": False, "second_moment": moments, **kwargs}
    return editkit.edit(*loaded, given or facts(), editor, **options)  # type: ignore[arg-type]


def test_the_block_gives_the_value_after_an_exact_edit(atlas: Loaded, moments: Path) -> None:
    editor = EMMET(layers=[1], values=ValueSearch(context_templates=BARE, **QUICK))
    quiet_edit(atlas, editor, moments)
    wanted = torch.cat(editor.found.values, 1)
    reached = editor.states(editor.found.groups)
    assert ((reached - wanted).norm(dim=0) / wanted.norm(dim=0)).max() < 1e-4


def test_only_the_edited_projection_changes(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments)
    changed = {name for name, p in atlas[0].named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"transformer.h.1.mlp.c_proj.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_undo_is_bit_exact(atlas: Loaded, dtype: torch.dtype) -> None:
    model = atlas[0].to(dtype)
    before = weights(model)
    editor = EMMET(
        layers=[1],
        values=ValueSearch(context_templates=BARE, num_steps=3),
        second_moment=editkit.SecondMomentSource(num_tokens=2000),
    )
    with editkit.edit(model, atlas[1], facts(2), editor, progress=False, evaluate=False) as edited:
        assert not same(edited.model, before)
    assert same(model, before)


def test_a_fact_does_not_depend_on_its_neighbors(atlas: Loaded) -> None:
    given = facts(8)

    def values(groups: list[list[Fact]]) -> Tensor:
        editor = EMMET(layers=[1], values=ValueSearch(context_templates=[["{}"], ["And so it was. {}"]]))
        editor.attach(*atlas)
        editor.find_values(groups)
        return torch.cat(editor.found.values, 1)

    together = values([[f] for f in given])
    for i in (0, 5):
        alone = values([[given[i]]])[:, 0]
        assert (alone - together[:, i]).norm() < 1e-5 * alone.norm()


def test_equal_keys_share_one_value(atlas: Loaded, moments: Path) -> None:
    base = facts(1)[0]
    twin = Fact(base.subject, base.prompt + " called", target_new="yen", target_true="euro", fact_id="twin")
    other = facts(3)[2]
    assert group_by_key([base, other, twin]) == [[base, twin], [other]]
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    edited = quiet_edit(atlas, editor, moments, [base, other, twin])
    assert torch.cat(editor.found.keys, 1).shape[1] == 2  # ridge 0 goes through: no dependent columns
    assert set(edited.edits.batches[0].facts) == {base, other, twin}


def test_rome_emmet_and_memit_agree_on_single_edits(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    deltas = []
    for editor in (ROME, EMMET, MEMIT):
        extra = {"preservation_weight": 0.0} if editor is MEMIT else {}
        made = editor(layers=[1], values=ValueSearch(**QUICK), **extra)
        edited = quiet_edit(atlas, made, moments, facts(1))
        deltas.append(edited.edits.batches[0].deltas[1].dense())
        edited.undo()
    assert same(atlas[0], before)
    for delta in deltas[1:]:
        torch.testing.assert_close(delta, deltas[0], rtol=1e-5, atol=1e-7)


def test_independent_batches_start_from_the_unedited_weights(atlas: Loaded, moments: Path) -> None:
    given = facts(4)
    options = {"layers": [1], "values": ValueSearch(**QUICK)}
    edited = quiet_edit(atlas, EMMET(**options), moments, given, batch_size=2, mode="independent")
    second = edited.edits.batches[1].deltas[1].dense()
    edited.undo()
    alone = quiet_edit(atlas, EMMET(**options), moments, given[2:]).edits.batches[0].deltas[1].dense()
    assert torch.equal(second, alone)


def test_sequential_batches_build_on_one_another(atlas: Loaded, moments: Path) -> None:
    before = atlas[0].transformer.h[1].mlp.c_proj.weight.double().clone()
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    edited = quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential")
    assert [len(b.facts) for b in edited.edits.batches] == [2, 2]
    total = sum(b.deltas[1].dense().double() for b in edited.edits.batches)
    change = (atlas[0].transformer.h[1].mlp.c_proj.weight.double() - before).T
    torch.testing.assert_close(change, total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [editkit.Spread(), SquareRootSpread(), LastLayer()])
def test_several_layers_reach_the_value_together(atlas: Loaded, moments: Path, spread: editkit.Spread) -> None:
    editor = EMMET(layers=[0, 1], spread=spread, values=ValueSearch(context_templates=BARE, **QUICK))
    quiet_edit(atlas, editor, moments / "two")
    wanted = torch.cat(editor.found.values, 1)
    reached = editor.states(editor.found.groups)
    assert ((reached - wanted).norm(dim=0) / wanted.norm(dim=0)).max() < 1e-4
    moved = editor.edited_layers if not isinstance(spread, LastLayer) else [1]
    assert [n for n in (0, 1) if editor.editable.projection(n).weight.ne(0).any()] == [0, 1]
    assert moved[-1] == 1


def test_ledger_round_trip_is_bit_exact(atlas: Loaded, moments: Path, tmp_path: Path) -> None:
    before = weights(atlas[0])
    edited = quiet_edit(
        atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments, facts(4), batch_size=2, mode="sequential"
    )
    after = weights(atlas[0])
    edited.save(tmp_path / "edits")
    edited.undo()
    assert same(atlas[0], before)
    loaded = editkit.load_edits(tmp_path / "edits")
    loaded.apply(atlas[0])
    assert same(atlas[0], after)
    assert loaded.batches[0].facts == edited.edits.batches[0].facts
    with pytest.raises(InputError, match="fingerprint"):
        loaded.apply(atlas[0])  # already edited


def test_an_exception_leaves_the_model_as_it_was(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])

    class Broken(EMMET):
        @override
        def solve(
            self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]
        ) -> LowRankDelta:
            if self.found.groups[0][0] == facts(4)[2]:
                raise KeyboardInterrupt
            return super().solve(keys, residuals, moment, names)

    atlas[0].train()
    with pytest.raises(KeyboardInterrupt):
        quiet_edit(atlas, Broken(layers=[1], values=ValueSearch(**QUICK)), moments, facts(4), batch_size=2)
    assert same(atlas[0], before)
    assert atlas[0].training


def test_a_non_finite_loss_names_the_fact(atlas: Loaded) -> None:
    editor = EMMET(layers=[1], values=ValueSearch(context_templates=BARE))
    editor.attach(*atlas)
    with torch.no_grad():
        atlas[0].transformer.h[3].mlp.c_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=facts(1)[0].subject):
        editor.find_values([[facts(1)[0]]])


def test_a_new_editor_is_a_short_subclass(atlas: Loaded, moments: Path) -> None:
    class Half(Editor):
        """Goes half the way that MEMIT would go."""

        @override
        def solve(
            self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]
        ) -> LowRankDelta:
            return memit_update(keys, residuals / 2, moment, preservation_weight=1.0)

    half = quiet_edit(atlas, Half(layers=[1], values=ValueSearch(**QUICK)), moments)
    delta = half.edits.batches[0].deltas[1].dense()
    half.undo()
    whole = quiet_edit(atlas, MEMIT(preservation_weight=1.0, layers=[1], values=ValueSearch(**QUICK)), moments)
    torch.testing.assert_close(2 * delta, whole.edits.batches[0].deltas[1].dense(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_other_families_are_edited_by_the_same_code(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    before = weights(model)
    editor = EMMET(
        layers=[1],
        values=ValueSearch(context_templates=BARE, **QUICK),
        second_moment=editkit.SecondMomentSource(num_tokens=4000),
    )
    edited = editkit.edit(model, tokenizer, facts(4), editor, progress=False, evaluate=False)
    wanted = torch.cat(editor.found.values, 1)
    assert ((editor.states(editor.found.groups) - wanted).norm(dim=0) / wanted.norm(dim=0)).max() < 1e-4
    edited.undo()
    assert same(model, before)


def test_the_trainer_alone_is_enough(moments: Path) -> None:
    """The Lightning way, without ``edit`` or the command line: an epoch is a batch of edits."""
    editor = ROME(
        layers=[1],
        values=ValueSearch(**QUICK),
        second_moment=editkit.SecondMomentSource(path=str(moments), num_tokens=8000),
    )
    update, report = WeightUpdate(), Report()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[update, report],
    )  # fmt: skip
    data = FactsDataModule(num_facts=3)
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert trainer.current_epoch == 3
    assert trainer.global_step > 0
    assert len(update.edits.batches) == 3
    metrics = report.metrics()
    assert {"ES", "EM", "PS", "PM", "NS", "NM", "S"} <= set(metrics["before"]) == set(metrics["after"])
    assert metrics["after"]["ES"] >= metrics["before"]["ES"]


def test_rome_refuses_a_batch(atlas: Loaded, moments: Path) -> None:
    with pytest.raises(InputError, match="batch_size"):
        quiet_edit(atlas, ROME(layers=[1]), moments, batch_size=2)


def batches_of_two(atlas: Loaded, moments: Path, given: list[Fact], mode: str = "sequential") -> editkit.EditedModel:
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    return quiet_edit(atlas, editor, moments, given, batch_size=2, mode=mode)


def test_one_batch_is_undone_and_the_later_ones_made_again(atlas: Loaded, moments: Path) -> None:
    given, before = facts(6), weights(atlas[0])
    batches_of_two(atlas, moments, given[:2] + given[4:])
    never_made = weights(atlas[0])
    for name, parameter in atlas[0].named_parameters():
        parameter.data.copy_(before[name])
    edited = batches_of_two(atlas, moments, given)
    edited.undo(batch=1, recompute=True)
    assert same(atlas[0], never_made)
    assert edited.facts == given[:2] + given[4:]
    assert edited.edits.about["undone"] == [{"batch": 1, "as_if_never_made": True}]
    edited.undo()
    assert same(atlas[0], before)


def test_one_batch_is_taken_out_of_sequential_ones_and_the_difference_told(atlas: Loaded, moments: Path) -> None:
    given = facts(6)
    edited = batches_of_two(atlas, moments, given)
    with pytest.warns(UserWarning, match="not as if it had never been made: the 1 later"):
        edited.undo(batch=1)
    deltas = [b.deltas[1].dense().double() for b in edited.edits.batches]
    assert len(deltas) == 2
    now = atlas[0].transformer.h[1].mlp.c_proj.weight.double()
    edited.undo()
    change = (now - atlas[0].transformer.h[1].mlp.c_proj.weight.double()).T
    torch.testing.assert_close(change, deltas[0] + deltas[1], rtol=1e-4, atol=1e-6)


def test_undoing_the_last_batch_is_exact(atlas: Loaded, moments: Path) -> None:
    given, before = facts(4), weights(atlas[0])
    first = batches_of_two(atlas, moments, given[:2])
    after_first = weights(atlas[0])
    first.undo()
    edited = batches_of_two(atlas, moments, given)
    edited.undo(batch=1)
    assert same(atlas[0], after_first)
    edited.undo()
    apart = batches_of_two(atlas, moments, given, mode="independent")
    stands = weights(atlas[0])
    apart.undo(batch=0)  # whose weights are not those that stand
    assert same(atlas[0], stands)
    apart.undo(batch=0)
    assert same(atlas[0], before)
    with pytest.raises(InputError, match="batch"):
        apart.undo(batch=0)


def test_two_editors_on_two_models_do_not_disturb_each_other(atlas: Loaded, moments: Path, tmp_path: Path) -> None:
    other = editkit.load_language_model("atlas")
    alone = batches_of_two(atlas, moments, facts(4))
    expected = weights(atlas[0])
    alone.undo()
    before = weights(other[0])
    one = batches_of_two(atlas, moments, facts(4))
    two = quiet_edit(other, MEMIT(layers=[2], values=ValueSearch(**QUICK)), tmp_path / "two", facts(2))
    assert same(atlas[0], expected)
    one.undo()
    assert not same(other[0], before)
    two.undo()
    assert same(other[0], before)


def test_earlier_keys_make_sequential_least_squares_one_solve(atlas: Loaded, moments: Path) -> None:
    """With β = 1/ρ, for the same keys and values: recursive least squares."""
    editor = MEMIT(preservation_weight=20.0, layers=[1], values=ValueSearch(context_templates=BARE, **QUICK))
    editor.attach(*atlas)
    groups = [[fact] for fact in facts(6)]
    before = weights(atlas[0])

    def solved(parts: list[list[list[Fact]]], earlier_keys: float | str) -> Tensor:
        for name, parameter in atlas[0].named_parameters():
            parameter.data.copy_(before[name])
        update = WeightUpdate("sequential", earlier_keys)
        source = replace(editor.second_moment, path=str(moments))
        update.second_moments = factored_second_moments(editor.editable, editor.tokenizer, [1], source)
        for part in parts:
            keys = torch.stack([columns[part_fact[0].fact_id][0] for part_fact in part], 1)
            values = torch.stack([columns[part_fact[0].fact_id][1] for part_fact in part], 1)
            editor.found = ValueVectors(part, [keys], [values])
            update.update(editor)
        return sum(b.deltas[1].dense().double() for b in update.edits.batches)

    editor.find_values(groups)
    keys, values = editor.found.keys[0], editor.found.values[0]
    columns = {g[0].fact_id: (keys[:, i], values[:, i]) for i, g in enumerate(groups)}
    together = solved([groups], 0.0)
    # the bare key is the mean key here, as there is one bare template, so that residuals add up too
    apart = solved([groups[:4], groups[4:]], "auto")
    forgotten = solved([groups[:4], groups[4:]], 0.0)
    assert (apart - together).norm() < 1e-4 * together.norm()
    assert (forgotten - together).norm() > 10 * (apart - together).norm()


def test_earlier_keys_need_sequential_batches_and_a_ridge(atlas: Loaded, moments: Path) -> None:
    with pytest.raises(InputError, match="earlier_keys: independent"):
        WeightUpdate("independent", 1.0)
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    editor.attach(*atlas)
    with pytest.raises(InputError, match="ridge ρ is 0"):
        WeightUpdate("sequential", "auto")._weight_of_keys(editor)


@pytest.mark.parametrize("choice", ["keep", "drop", "fail"])
def test_facts_whose_keys_depend_on_others(atlas: Loaded, moments: Path, choice: str) -> None:
    editor = EMMET(layers=[1], ridge=0.0 if choice == "drop" else 1.0, values=ValueSearch(**QUICK))
    editor.attach(*atlas)
    given = facts(4)
    editor.find_values([[fact] for fact in given])
    keys, values = editor.found.keys[0], editor.found.values[0]
    # a fifth fact whose key is a combination of two others
    extra = Fact("Zzyzx", "{} is", "Peru", fact_id="extra")
    editor.found = ValueVectors(
        [[fact] for fact in [*given, extra]],
        [torch.cat([keys, keys[:, :1] + 2 * keys[:, 2:3]], 1)],
        [torch.cat([values, values[:, :1]], 1)],
    )
    update = WeightUpdate(dependent=choice)  # type: ignore[arg-type]
    editor.second_moment.num_tokens, editor.second_moment.path = 8000, str(moments)
    update.second_moments = factored_second_moments(editor.editable, editor.tokenizer, [1], editor.second_moment)
    before = weights(atlas[0])
    if choice == "fail":
        with pytest.raises(InputError, match=r"weight_update.dependent: .* 1 facts \(Zzyzx\)"):
            update.update(editor)
        assert same(atlas[0], before)
        return
    with pytest.warns(UserWarning, match=f"Zzyzx.*{'dropped' if choice == 'drop' else 'kept'}"):
        batch = update.update(editor)
    involved = [given[0].fact_id, given[2].fact_id, "extra"]
    assert batch.notes["dependent"] == [involved]
    assert batch.notes["condition_number"] is None
    assert batch.notes.get("dropped") == (["extra"] if choice == "drop" else None)
    assert len(batch.facts) == (4 if choice == "drop" else 5)


def test_nan_keys_are_named_and_nothing_is_changed(atlas: Loaded, moments: Path) -> None:
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    editor.attach(*atlas)
    editor.find_values([[fact] for fact in facts(2)])
    editor.found.keys[0][3, 1] = torch.nan
    editor.second_moment.num_tokens, editor.second_moment.path = 8000, str(moments)
    update = WeightUpdate()
    update.second_moments = factored_second_moments(editor.editable, editor.tokenizer, [1], editor.second_moment)
    before = weights(atlas[0])
    with pytest.raises(InputError, match=f"keys: expected finite numbers.*{facts(2)[1].subject}"):
        update.update(editor)
    assert same(atlas[0], before)
    assert not update.edits.batches


def test_offloaded_weights_are_refused(atlas: Loaded) -> None:
    model = AutoModelForCausalLM.from_config(atlas[0].config).to("meta")
    with pytest.raises(InputError, match="offloaded"):
        editkit.edit(model, atlas[1], facts(1))


def test_a_model_in_train_mode_is_edited_in_evaluation_mode_and_put_back(atlas: Loaded, moments: Path) -> None:
    atlas[0].train().requires_grad_(True)
    inside: list[bool] = []

    class Watching(EMMET):
        @override
        def solve(self, *args: object, **kwargs: object) -> LowRankDelta:
            inside.append(atlas[0].training)
            return super().solve(*args, **kwargs)  # type: ignore[arg-type]

    quiet_edit(atlas, Watching(layers=[1], values=ValueSearch(**QUICK)), moments, facts(1))
    assert inside == [False]
    assert atlas[0].training
    assert all(p.requires_grad for p in atlas[0].parameters())
