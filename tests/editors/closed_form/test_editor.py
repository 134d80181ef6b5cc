"""Closed-form editors: the edit is met where it matters, methods agree, subclasses are short, and may be used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from editing import Loaded, facts, quiet_edit, same, weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from typing_extensions import override

import editkit
from editkit.callbacks import Evaluation, Report, WeightUpdate
from editkit.covariance import factored_second_moments
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule, group_by_key
from editkit.data.plan import RunPlan, Tuning
from editkit.data.rows import EvaluationRow
from editkit.editors import EMMET, MEMIT, ROME, ClosedFormEditor, LastLayer, LayerProblem, SquareRootSpread, ValueSearch
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits, EditBatch, WeightEdit
from editkit.functional import LowRankDelta, factor_second_moment, memit_update
from editkit.utils.errors import InputError

QUICK = {"num_steps": 6}
BARE = [["{}"]]
WEIGHT = "transformer.h.1.mlp.c_proj.weight"


class Remembering(EMMET):
    """EMMET that shows what it solved for last."""

    vectors: ValueVectors

    @override
    def edit_for(self, vectors: ValueVectors) -> WeightEdit:
        self.vectors = vectors
        return super().edit_for(vectors)


def delta_of(batch: EditBatch) -> Tensor:
    """The change of block 1."""
    return batch.edit.weight_changes()[WEIGHT].dense()


def unreached(editor: Remembering) -> float:
    """How far the model is from giving the values that were asked for, relative to them."""
    wanted = editor.vectors.values
    reached = editor.searcher.states(editor.vectors.groups)
    return float(((reached - wanted).norm(dim=0) / wanted.norm(dim=0)).max())


def test_the_block_gives_the_value_after_an_exact_edit(atlas: Loaded, moments: Path) -> None:
    editor = Remembering(layers=[1], values=ValueSearch(context_templates=BARE, **QUICK))
    quiet_edit(atlas, editor, moments)
    assert unreached(editor) < 1e-4


def test_only_the_edited_projection_changes(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments)
    changed = {name for name, p in atlas[0].named_parameters() if not torch.equal(p, before[name])}
    assert changed == {WEIGHT}


def test_a_fact_does_not_depend_on_its_neighbors(atlas: Loaded) -> None:
    given = facts(8)

    def values(groups: list[list[Fact]]) -> Tensor:
        editor = EMMET(layers=[1], values=ValueSearch(context_templates=[["{}"], ["And so it was. {}"]]))
        editor.attach(*atlas)
        return editor.find_values(groups).values

    together = values([[f] for f in given])
    for i in (0, 5):
        alone = values([[given[i]]])[:, 0]
        assert (alone - together[:, i]).norm() < 1e-5 * alone.norm()


def test_equal_keys_share_one_value(atlas: Loaded, moments: Path) -> None:
    base = facts(1)[0]
    twin = Fact(base.subject, base.prompt + " called", target_new="yen", target_true="euro", fact_id="twin")
    other = facts(3)[2]
    assert group_by_key([base, other, twin]) == [[base, twin], [other]]
    editor = Remembering(layers=[1], values=ValueSearch(**QUICK))
    edited = quiet_edit(atlas, editor, moments, [base, other, twin])
    assert editor.vectors.keys.shape[1] == 2  # ridge 0 goes through: no dependent columns
    assert list(map(list, editor.vectors.groups)) == [[base, twin], [other]]
    assert set(edited.edits.batches[0].facts) == {base, other, twin}


def test_rome_emmet_and_memit_agree_on_single_edits(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    deltas = []
    for editor in (ROME, EMMET, MEMIT):
        extra = {"preservation_weight": 0.0} if editor is MEMIT else {}
        made = editor(layers=[1], values=ValueSearch(**QUICK), **extra)
        edited = quiet_edit(atlas, made, moments, facts(1))
        deltas.append(delta_of(edited.edits.batches[0]))
        edited.undo()
    assert same(atlas[0], before)
    for delta in deltas[1:]:
        torch.testing.assert_close(delta, deltas[0], rtol=1e-5, atol=1e-7)


def test_independent_batches_start_from_the_unedited_weights(atlas: Loaded, moments: Path) -> None:
    given = facts(4)
    options: dict[str, Any] = {"layers": [1], "values": ValueSearch(**QUICK)}
    edited = quiet_edit(atlas, EMMET(**options), moments, given, batch_size=2, mode="independent")
    second = delta_of(edited.edits.batches[1])
    edited.undo()
    alone = delta_of(quiet_edit(atlas, EMMET(**options), moments, given[2:]).edits.batches[0])
    assert torch.equal(second, alone)


def test_sequential_batches_build_on_one_another(atlas: Loaded, moments: Path) -> None:
    before = atlas[0].transformer.h[1].mlp.c_proj.weight.double().clone()
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK))
    edited = quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential")
    assert [len(b.facts) for b in edited.edits.batches] == [2, 2]
    total = sum(delta_of(b).double() for b in edited.edits.batches)
    change = (atlas[0].transformer.h[1].mlp.c_proj.weight.double() - before).T
    torch.testing.assert_close(change, total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [editkit.Spread(), SquareRootSpread(), LastLayer()])
def test_several_layers_reach_the_value_together(atlas: Loaded, moments: Path, spread: editkit.Spread) -> None:
    before = weights(atlas[0])
    editor = Remembering(layers=[0, 1], spread=spread, values=ValueSearch(context_templates=BARE, **QUICK))
    quiet_edit(atlas, editor, moments)
    assert unreached(editor) < 1e-4
    moved = [n for n in (0, 1) if not torch.equal(editor.editable.weight(n), before[editor.editable.parameter_of(n)])]
    assert moved == ([1] if isinstance(spread, LastLayer) else [0, 1])


def test_a_solve_apart_from_a_run_leaves_the_model_as_it_was(atlas: Loaded, moments: Path) -> None:
    """``edit_for`` gives what a run would, of several layers too, and is put on the model by whoever wants it."""
    before = weights(atlas[0])
    options: dict[str, Any] = {"layers": [0, 1], "values": ValueSearch(**QUICK), "preservation_weight": 10.0}
    run = quiet_edit(atlas, MEMIT(**options), moments)
    edited = weights(atlas[0])
    run.undo()
    source = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    editor = MEMIT(second_moment=source, **options)
    editor.attach(*atlas)
    editor.prepare(RunPlan(tuple(facts()), 6))
    vectors = editor.find_values(group_by_key(facts()))
    edit = editor.edit_for(vectors)
    assert same(atlas[0], before)
    applied = AppliedEdits(editor.editable)
    applied.apply(edit.rounded())
    assert same(atlas[0], edited)
    applied.restore()
    assert same(atlas[0], before)

    other = MEMIT(**options)  # and with second moments at hand
    other.attach(*atlas)
    other.preserve(factored_second_moments(editor.editable, editor.tokenizer, [0, 1], source))
    for name, delta in other.edit_for(vectors).deltas.items():
        assert torch.equal(delta.dense(), edit.deltas[name].dense())


def test_a_layer_s_problem_has_all_that_a_method_may_want(atlas: Loaded) -> None:
    seen: list[LayerProblem] = []

    class Seeing(MEMIT):
        keeps_earlier_keys = True

        @override
        def solve(self, problem: LayerProblem) -> LowRankDelta:
            seen.append(problem)
            return super().solve(problem)

    editor = Seeing(preservation_weight=1.0, layers=[0, 1], values=ValueSearch(context_templates=BARE, **QUICK))
    editor.attach(*atlas)
    given = facts(5)
    moments = {n: factor_second_moment(torch.eye(1536, dtype=torch.float64) * (n + 1)) for n in (0, 1)}
    editor.preserve(moments)
    applied = AppliedEdits(editor.editable)
    for part in (given[:3], given[3:]):
        edit = editor.edit_for(editor.find_values(group_by_key(part))).rounded()
        applied.apply(edit)
        editor.observe(edit)
    assert [problem.layer for problem in seen] == [0, 1, 0, 1]
    assert [problem.keys.shape for problem in seen] == [(1536, 3)] * 2 + [(1536, 2)] * 2
    assert [problem.residuals.shape for problem in seen] == [(256, 3)] * 2 + [(256, 2)] * 2
    assert [problem.earlier_keys.shape for problem in seen] == [(1536, 0)] * 2 + [(1536, 3)] * 2
    for first, later in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(later.earlier_keys, first.keys)
        assert later.second_moment is moments[later.layer]  # kept, but without weight
    assert [list(problem.names) for problem in seen[1:3]] == [[f.subject for f in p] for p in (given[:3], given[3:])]


def test_a_non_finite_loss_names_the_fact(atlas: Loaded) -> None:
    editor = EMMET(layers=[1], values=ValueSearch(context_templates=BARE))
    editor.attach(*atlas)
    with torch.no_grad():
        atlas[0].transformer.h[3].mlp.c_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=facts(1)[0].subject):
        editor.find_values([[facts(1)[0]]])


def test_a_new_editor_is_a_short_subclass(atlas: Loaded, moments: Path) -> None:
    class Half(ClosedFormEditor):
        """Goes half the way that MEMIT would go."""

        @override
        def solve(self, problem: LayerProblem) -> LowRankDelta:
            return memit_update(problem.keys, problem.residuals / 2, problem.second_moment, preservation_weight=1.0)

    half = quiet_edit(atlas, Half(layers=[1], values=ValueSearch(**QUICK)), moments)
    delta = delta_of(half.edits.batches[0])
    half.undo()
    whole = quiet_edit(atlas, MEMIT(preservation_weight=1.0, layers=[1], values=ValueSearch(**QUICK)), moments)
    torch.testing.assert_close(2 * delta, delta_of(whole.edits.batches[0]), rtol=1e-5, atol=1e-7)


def test_an_editor_without_a_solve_says_what_to_write(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    with pytest.raises(InputError, match=r"ClosedFormEditor is a base of editors and leaves solve\(problem\)"):
        quiet_edit(atlas, ClosedFormEditor(layers=[1], values=ValueSearch(**QUICK)), moments, facts(1))
    assert same(atlas[0], before)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_other_families_are_edited_by_the_same_code(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    before = weights(model)
    editor = Remembering(
        layers=[1],
        values=ValueSearch(context_templates=BARE, **QUICK),
        second_moment=editkit.SecondMomentSource(text="atlas", num_tokens=4000),
    )
    edited = editkit.edit(model, tokenizer, facts(4), editor, progress=False, evaluate=False)
    assert unreached(editor) < 1e-4
    edited.undo()
    assert same(model, before)


def test_the_trainer_alone_is_enough(moments: Path) -> None:
    """The Lightning way, without ``edit`` or the command line: an epoch is a batch of edits."""
    editor = ROME(
        layers=[1],
        values=ValueSearch(**QUICK),
        second_moment=editkit.SecondMomentSource(path=str(moments), num_tokens=8000),
    )
    update, evaluation = WeightUpdate(), Evaluation()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[update, evaluation, Report()],
    )  # fmt: skip
    data = FactsDataModule(num_facts=3)
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert trainer.current_epoch == 3
    assert trainer.global_step > 0
    assert len(update.edits.batches) == 3
    assert evaluation.results is not None
    metrics = evaluation.results.metrics(evaluation.protocol)
    assert {"ES", "EM", "PS", "PM", "NS", "NM", "S"} <= set(metrics["before"]) == set(metrics["after"])
    assert metrics["after"]["ES"] >= metrics["before"]["ES"]


def test_rome_refuses_a_batch(atlas: Loaded, moments: Path) -> None:
    with pytest.raises(InputError, match="batch_size"):
        quiet_edit(atlas, ROME(layers=[1]), moments, batch_size=2)


# ---------------------------------------------------------------- keys of earlier batches


def test_earlier_keys_make_sequential_least_squares_one_solve(atlas: Loaded, moments: Path) -> None:
    """With β = 1/ρ, for the same keys and values: recursive least squares."""
    groups = [[fact] for fact in facts(6)]
    before = weights(atlas[0])
    source = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    plan = RunPlan(tuple(facts(6)), 4, sequential=True)

    def editor(earlier_keys: Any) -> MEMIT:
        made = MEMIT(
            preservation_weight=20.0, layers=[1], values=ValueSearch(context_templates=BARE, **QUICK),
            second_moment=source, earlier_keys=earlier_keys,
        )  # fmt: skip
        made.attach(*atlas)
        made.prepare(plan)
        return made

    def solved(parts: list[list[int]], earlier_keys: Any) -> Tensor:
        made = editor(earlier_keys)
        applied = AppliedEdits(made.editable)
        deltas = []
        for part in parts:
            edit = made.edit_for(vectors.select(part)).rounded()
            applied.apply(edit)
            made.observe(edit)
            deltas.append(edit.deltas[WEIGHT].dense().double())
        applied.restore()
        assert same(atlas[0], before)
        return torch.stack(deltas).sum(0)

    vectors = editor(0.0).find_values(groups)
    together = solved([[*range(6)]], 0.0)
    # the bare key is the mean key here, as there is one bare template, so that residuals add up too
    apart = solved([[0, 1, 2, 3], [4, 5]], "auto")
    forgotten = solved([[0, 1, 2, 3], [4, 5]], 0.0)
    assert (apart - together).norm() < 1e-4 * together.norm()
    assert (forgotten - together).norm() > 10 * (apart - together).norm()
    weighted = solved([[0, 1, 2, 3], [4, 5]], 1 / 20.0)  # the same number, given
    assert torch.equal(weighted, apart)


def test_a_run_preserves_earlier_keys_and_begins_without_any(atlas: Loaded, moments: Path) -> None:
    options: dict[str, Any] = {
        "preservation_weight": 20.0, "layers": [1], "values": ValueSearch(**QUICK), "earlier_keys": "auto",
    }  # fmt: skip
    editor = MEMIT(**options)
    edited = quiet_edit(atlas, editor, moments, batch_size=3)
    first, second = (delta_of(batch) for batch in edited.edits.batches)
    assert [list(b.edit.state) for b in edited.edits.batches] == [["keys.1"]] * 2
    edited.undo()
    forgetting = quiet_edit(atlas, MEMIT(**{**options, "earlier_keys": 0.0}), moments, batch_size=3)
    assert torch.equal(delta_of(forgetting.edits.batches[0]), first)
    assert not torch.equal(delta_of(forgetting.edits.batches[1]), second)
    assert not forgetting.edits.batches[0].edit.state
    forgetting.undo()
    again = quiet_edit(atlas, editor, moments, batch_size=3)  # what was gathered is of the run that is over
    assert [torch.equal(delta_of(b), d) for b, d in zip(again.edits.batches, (first, second), strict=True)] == [
        True
    ] * 2


def test_earlier_keys_need_sequential_batches_and_a_ridge(atlas: Loaded) -> None:
    plan = RunPlan(tuple(facts(2)), 1)
    for editor, sequential, told in (
        (EMMET(layers=[1], earlier_keys=1.0), False, "model.earlier_keys: independent"),
        (MEMIT(layers=[1], earlier_keys="auto"), False, "model.earlier_keys: independent"),
        (EMMET(layers=[1], earlier_keys="auto"), True, "ridge ρ is 0"),
    ):
        editor.attach(*atlas)
        with pytest.raises(InputError, match=told):
            editor.check(RunPlan(plan.facts, 1, sequential=sequential))
    fine = EMMET(layers=[1], earlier_keys="auto", ridge="auto")
    fine.attach(*atlas)
    row = EvaluationRow(0, 0, 0, "Rome is in", "Peru", "Italy")
    fine.check(RunPlan(plan.facts, 1, sequential=True, tuning=Tuning((), (row,), lambda rows: {})))
    with pytest.raises(InputError, match="'auto' chooses by scores"):
        fine.check(RunPlan(plan.facts, 1, sequential=True))


# ---------------------------------------------------------------- used again


@pytest.fixture
def other(tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Another model, which says other things and recommends another block."""
    torch.manual_seed(7)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                                  num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
                                  editkit_layers=[2])  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), tokenizer


def test_an_editor_used_on_a_second_model_takes_that_model_s_templates_and_layers(atlas: Loaded, other: Loaded) -> None:
    def made() -> EMMET:
        return EMMET(
            ridge=1.0,
            values=ValueSearch(num_steps=3),
            second_moment=editkit.SecondMomentSource(text="atlas", num_tokens=2000),
        )

    def edit(loaded: Loaded, editor: EMMET) -> editkit.EditedModel:
        return editkit.edit(*loaded, facts(2), editor, progress=False, evaluate=False)

    twice = made()
    first = edit(atlas, twice)
    assert first.edits.about["layers"] == atlas[0].config.editkit_layers
    second = edit(other, twice)
    assert second.edits.about["layers"] == [2]
    assert second.edits.about["templates"] != first.edits.about["templates"]
    assert [len(part) for part in second.edits.about["templates"]] == [1, 5]
    again = weights(other[0])
    second.undo()
    fresh = edit(other, made())
    assert fresh.edits.about == second.edits.about
    assert same(other[0], again)
    first.undo()
    third = edit(atlas, twice)  # and back on the first
    assert third.edits.about == first.edits.about


def test_a_model_s_folder_of_second_moments_is_not_taken_for_the_next(
    atlas: Loaded, other: Loaded, moments: Path
) -> None:
    editor = EMMET(ridge=1.0, values=ValueSearch(num_steps=3))
    quiet_edit(atlas, editor, moments, facts(2)).undo()
    editor.second_moment.text = "atlas"
    editkit.edit(*other, facts(2), editor, progress=False, evaluate=False)  # its own, in the user's cache
    assert editor.second_moment.path is None
