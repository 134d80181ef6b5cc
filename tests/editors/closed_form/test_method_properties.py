"""What each method promises, on the shipped atlas with real edits, and on small numbers where those say more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import Loaded, facts, quiet_edit, same, weights
from torch import Tensor
from typing_extensions import override

import editkit
from editkit.data.module import group_by_key
from editkit.editors import (
    EMMET,
    ENCORE,
    MEMIT,
    NSE,
    PMET,
    PRUNE,
    RECT,
    ROME,
    SPHERE,
    AlphaEdit,
    ClosedForm,
    ClosedFormEditor,
    CurvatureWeighted,
    Editor,
    Identity,
    LayerProblem,
    LyapLock,
    NullSpace,
    RescaledValues,
    SecondMoment,
    SequentialMEMIT,
    SimIE,
    SoftEMMET,
    UltraEdit,
    ValueSearch,
)
from editkit.editors.closed_form.search import Group
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import WeightEdit
from editkit.functional import (
    Curvature,
    Delta,
    RunningStatistics,
    closed_form_update,
    crowding,
    curvature_path,
    curvature_update,
    factor_second_moment,
    preservation,
    ultraedit_residuals,
)
from editkit.functional.preservation import Preservation
from editkit.functional.restraint import principal_directions
from editkit.models.gradients import all_keys, answer_gradients
from editkit.models.spans import encode_prompts

BARE = [["{}"]]
LAYER = 1


def slow(*values: Any, name: str | None = None) -> Any:
    """A parameter that is like another, and is tried in the long run alone."""
    return pytest.param(*values, marks=pytest.mark.slow, id=name)


WEIGHT = f"transformer.h.{LAYER}.mlp.c_proj.weight"


def search(**options: Any) -> ValueSearch:
    return ValueSearch(**{"num_steps": 4, "context_templates": BARE, **options})


def made(kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """An editor of block 1 with a short search."""
    return kind(*args, **{"layers": [LAYER], "values": search(), **options})


def deltas(edited: editkit.EditedModel, name: str = WEIGHT) -> list[Tensor]:
    """Each batch's change, float64."""
    return [batch.edit.weight_changes()[name].dense(torch.float64) for batch in edited.edits.batches]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def second_moment(editor: ClosedFormEditor) -> Tensor:
    factor = editor.second_moments[LAYER].factor
    return factor @ factor.T


# ---------------------------------------------------------------- null space, neurons, main directions


@pytest.mark.parametrize("ridge", [1.0, slow(0.0)])
def test_alphaedit_leaves_what_text_uses(atlas: Loaded, moments: Path, ridge: float) -> None:
    editor = made(AlphaEdit, damping=0.1, ridge=ridge)
    edited = quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential")
    values, vectors = torch.linalg.eigh(second_moment(editor))
    used, free = vectors[:, values >= 0.02], vectors[:, values < 0.02]
    assert 50 < used.shape[1] < 1486
    for delta in deltas(edited):  # as the ledger has them, in float32
        assert (delta @ used).norm() < 1e-6 * delta.norm()
        assert (delta @ free).norm() > 0.99 * delta.norm()
    edited.undo()
    plain = quiet_edit(atlas, made(SequentialMEMIT, 0.1), moments, facts(2))
    (delta,) = deltas(plain)
    assert (delta @ used).norm() > 1e-3 * delta.norm()


def test_nse_changes_chosen_columns_only(atlas: Loaded, moments: Path) -> None:
    chosen: list[Tensor] = []

    class Seeing(NSE):
        @override
        def solve(self, problem: LayerProblem) -> Delta:
            basis = self.preservation.of(problem).basis
            assert basis is not None
            chosen.append(basis)
            return super().solve(problem)

    editor = made(Seeing, 15.0, share=0.4, rounds=2)
    edited = quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential")
    assert len(chosen) == 4
    for delta, rounds in zip(deltas(edited), (chosen[:2], chosen[2:]), strict=True):
        columns = torch.cat(rounds).unique()
        assert 0 < len(columns) < 1000
        others = torch.ones(delta.shape[1], dtype=torch.bool).index_fill_(0, columns, False)
        assert not delta[:, others].any()
        assert (delta[:, columns] != 0).any(0).all()


@pytest.mark.parametrize("strength", [1.0, slow(0.5)])
def test_sphere_spares_the_weight_s_main_directions(atlas: Loaded, moments: Path, strength: float) -> None:
    """Those of the weight as it is before each batch."""
    editor = made(AlphaEdit, damping=0.1, restraints=[SPHERE(strength=strength)])
    weight = atlas[0].transformer.h[LAYER].mlp.c_proj.weight.T.double()
    edited = quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential")
    changes = deltas(edited)
    edited.undo()
    (free,) = deltas(quiet_edit(atlas, made(AlphaEdit, damping=0.1), moments, facts(2)))
    for number, delta in enumerate(changes):
        main = principal_directions(weight, 0.5)
        if strength == 1.0:
            assert (delta @ main).norm() < 1e-5 * delta.norm()
        elif not number:  # the same change, halved there and left as it was elsewhere
            assert (free @ main).norm() > 0.05 * free.norm()
            assert relative(delta @ main, 0.5 * (free @ main)) < 1e-4
            assert relative(delta - delta @ main @ main.T, free - free @ main @ main.T) < 1e-4
        weight = weight + delta


# ---------------------------------------------------------------- batches one after the other


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda: SecondMoment(20.0), id="memit"),
        slow(lambda: SecondMoment(20.0, 0.5), name="encore"),
        pytest.param(lambda: NullSpace(damping=0.1), id="alphaedit"),
        slow(lambda: Identity(2.0), name="identity"),
    ],
)
def test_batches_with_accumulated_keys_are_one_batch(atlas: Loaded, moments: Path, part: Callable[[], Any]) -> None:
    """For the same keys and values, residuals measured anew: recursive least squares."""

    def total(batch_size: int, earlier_keys: Any = "auto") -> Tensor:
        editor = made(ClosedForm, preservation=part(), earlier_keys=earlier_keys, values=search(weights="unedited"))
        edited = quiet_edit(atlas, editor, moments, facts(6), batch_size=batch_size, mode="sequential")
        found = torch.stack(deltas(edited)).sum(0)
        edited.undo()
        return found

    together, apart, forgotten = total(6), total(2), total(2, 0.0)
    assert relative(apart, together) < 1e-4
    assert relative(forgotten, together) > 10 * relative(apart, together)


def test_memit_with_weighted_earlier_keys_is_sequential_memit(atlas: Loaded, moments: Path) -> None:
    found = []
    for editor in (
        made(MEMIT, 20.0, earlier_keys="auto", values=search(weights="unedited")),
        made(SequentialMEMIT, 20.0, values=search(weights="unedited")),
    ):
        edited = quiet_edit(atlas, editor, moments, facts(6), batch_size=2, mode="sequential")
        found.append(deltas(edited))
        edited.undo()
    for theirs, ours in zip(*found, strict=True):
        assert relative(ours, theirs) < 1e-6


def test_ultraedit_is_a_ridge_solve_in_the_identity(atlas: Loaded) -> None:
    given, layers = facts(4), [0, LAYER]
    editor = UltraEdit(1e-3, layers=layers)
    edited = editkit.edit(*atlas, given, editor, batch_size=2, mode="sequential", progress=False, evaluate=False)
    ledger = edited.edits
    edited.undo()
    known = {layer: RunningStatistics.zeros(1536 + 256) for layer in layers}
    applied = editkit.edits.AppliedEdits(editor.editable)
    for number, batch in enumerate(ledger.batches):
        part = given[2 * number : 2 * number + 2]
        rows = answer_gradients(
            editor.editable, atlas[1], [f.text() for f in part], [f.target_new for f in part], layers
        )
        for layer in layers:
            keys, gradients = rows.keys[layer], rows.gradients[layer]
            known[layer] = known[layer].updated(torch.cat([keys, gradients]).T)
            residuals = ultraedit_residuals(keys, gradients, known[layer], 1e-3)
            expected = closed_form_update(keys, residuals, preservation.identity(1536), 1.0).dense()
            name = editor.editable.parameter_of(layer)
            assert relative(batch.edit.weight_changes()[name].dense(torch.float64), expected) < 1e-5
        applied.apply(batch.edit)
    applied.restore()


def test_simie_is_one_ridge_solve_on_what_its_editor_would_make(atlas: Loaded, moments: Path) -> None:
    given, damping = facts(4), 3.0

    def base() -> MEMIT:
        editor = made(MEMIT, 20.0)
        editor.second_moment = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
        return editor

    # independent batches are what the editor makes of each from the unedited weights
    alone = quiet_edit(atlas, base(), moments, given, batch_size=2, mode="independent")
    targets = deltas(alone)
    alone.undo()
    editor = SimIE(base(), damping)
    edited = quiet_edit(atlas, editor, moments, given, batch_size=2, mode="sequential")
    found = torch.stack(deltas(edited)).sum(0)
    edited.undo()
    keys = []
    for part in (given[:2], given[2:]):
        texts = [f.text() for f in part], [f.target_new for f in part]
        keys.append(all_keys(editor.editable, atlas[1], *texts, [LAYER])[0][LAYER].double())
    goals = torch.cat([target @ k for target, k in zip(targets, keys, strict=True)], 1)
    expected = closed_form_update(torch.cat(keys, 1), goals, preservation.identity(1536), damping).dense()
    assert relative(found, expected) < 1e-4


def test_prune_acts_on_all_changes_at_the_last_batch(atlas: Loaded, moments: Path) -> None:
    options: dict[str, Any] = {
        "values": search(weights="unedited", clamp=40.0, decay=0.0, num_steps=8),
        "earlier_keys": 0.0,
    }
    original = atlas[0].transformer.h[LAYER].mlp.c_proj.weight.T.double()
    free = quiet_edit(atlas, made(MEMIT, 0.01, **options), moments, facts(4), batch_size=2, mode="sequential")
    plain = deltas(free)
    free.undo()
    editor = made(MEMIT, 0.01, restraints=[PRUNE(2.0)], **options)
    pruned = deltas(quiet_edit(atlas, editor, moments, facts(4), batch_size=2, mode="sequential"))
    assert torch.equal(pruned[0], plain[0])
    most = torch.linalg.matrix_norm(original, 2)
    before, after = (torch.linalg.svdvals(sum(found)) for found in (plain, pruned))  # type: ignore[arg-type]
    assert before[0] > most  # or there would be nothing to pull down
    expected = torch.where(before >= most, most + (before.log2() - most.log2()), before)
    torch.testing.assert_close(after, expected.sort(descending=True).values, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- curvature, ridges per fact


def small(d_in: int = 7, d_out: int = 5, count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, residuals, C and B."""
    keys, residuals = torch.randn(d_in, count).double(), torch.randn(d_out, count).double()
    text, slopes = torch.randn(d_in, 3 * d_in).double(), torch.randn(d_out, 3 * d_out).double()
    return keys, residuals, text @ text.T / (3 * d_in), slopes @ slopes.T / (3 * d_out)


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("weight", [1e-2, 3.0])
def test_curvature_solve_is_the_dense_kronecker_solve(count: int, weight: float) -> None:
    """ΔKKᵀ + λBΔH⁻¹ = RKᵀ, all of Δ's entries as one vector, column by column."""
    keys, residuals, c, b = small(count=count)
    system = torch.kron(keys @ keys.T, torch.eye(5).double()) + weight * torch.kron(c, b)
    expected = torch.linalg.solve(system, (residuals @ keys.T).T.flatten()).view(7, 5).T
    h = preservation.second_moment(c)
    assert relative(curvature_update(keys, residuals, h, b, weight).dense(), expected) < 1e-10
    assert relative(curvature_path(keys, residuals, h, b).delta(weight).dense(), expected) < 1e-10
    editor = CurvatureWeighted(weight)
    editor.weigh({0: Curvature.of(b)})  # scaled to a mean eigenvalue of 1
    given = LayerProblem(0, keys, residuals, factor_second_moment(c), keys[:, :0], [""] * count)
    scaled = curvature_update(keys, residuals, h, b / b.diagonal().mean(), weight)
    assert relative(editor.solve(given).dense(), scaled.dense()) < 1e-10


@pytest.mark.parametrize("count", [4, 12])
def test_curvature_of_power_0_is_memit(count: int) -> None:
    keys, residuals, c, b = small(count=count)
    given = LayerProblem(0, keys, residuals, factor_second_moment(c), keys[:, :0], [""] * count)
    editor = CurvatureWeighted(3.0, power=0.0)
    editor.weigh({0: Curvature.of(b, editor.power)})
    assert relative(editor.solve(given).dense(), MEMIT(3.0).solve(given).dense()) < 1e-10
    editor.weigh({0: Curvature.of(b, 1.0)})
    assert relative(editor.solve(given).dense(), MEMIT(3.0).solve(given).dense()) > 1e-2


def test_a_run_with_curvature_of_power_0_is_memit_s(atlas: Loaded, moments: Path) -> None:
    found = []
    for editor in (made(CurvatureWeighted, 20.0, power=0.0), made(MEMIT, 20.0), made(CurvatureWeighted, 20.0)):
        edited = quiet_edit(atlas, editor, moments, facts(3))
        found += deltas(edited)
        edited.undo()
    assert relative(found[0], found[1]) < 1e-6
    assert relative(found[2], found[1]) > 1e-2


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize(
    "make",
    [
        preservation.second_moment,
        lambda c: preservation.null_space(c, float(torch.linalg.eigvalsh(c)[5:6].mean())),
        lambda c: preservation.neurons(c, torch.tensor([0, 2, 3, 6])),
        lambda c: preservation.identity(len(c)),
    ],
    ids=["second_moment", "null_space", "neurons", "identity"],
)
def test_equal_ridges_per_fact_are_one_ridge(count: int, make: Callable[[Tensor], Preservation]) -> None:
    keys, residuals, c, _ = small(count=count)
    for rho in (0.3, 40.0):
        one = closed_form_update(keys, residuals, make(c), rho).dense()
        ridges = torch.full((count,), rho, dtype=torch.float64)
        each = closed_form_update(keys, residuals, make(c), ridges).dense()
        assert relative(each, one) < 1e-11
        ridges[0] *= 2
        assert relative(closed_form_update(keys, residuals, make(c), ridges).dense(), one) > 1e-3


def test_soft_emmet_is_exact_where_it_can_be() -> None:
    """A key at right angles to the others, by C⁻¹, is met; two nearly equal ones that disagree are not."""
    _, _, c, _ = small(d_in=9)
    factor = torch.linalg.cholesky(c)
    whitened = torch.zeros(9, 3).double()
    whitened[0, 0] = 2.0
    whitened[1, 1:] = 1.0
    whitened[2, 2] = 1e-2
    keys, residuals = factor @ whitened, torch.tensor([[1.0, 1.0, -1.0], [0.0, 2.0, -2.0]]).double()
    given = LayerProblem(0, keys, residuals, factor_second_moment(c), keys[:, :0], ["a", "b", "c"])
    h = preservation.second_moment(c)
    shares = crowding(keys, h)
    assert float(shares[0]) < 1e-12 and float(shares[1:].min()) > 0.999
    soft = SoftEMMET(ridge=1.0).solve(given).dense()
    assert relative(soft @ keys[:, 0], residuals[:, 0]) < 1e-10
    assert relative(soft @ keys[:, 1:], residuals[:, 1:]) > 0.9  # what both ask for cancels
    exact, memit = EMMET().solve(given).dense(), MEMIT(1.0).solve(given).dense()
    assert relative(exact @ keys, residuals) < 1e-8
    assert soft.norm() < 0.05 * exact.norm()
    assert relative(memit @ keys[:, 0], residuals[:, 0]) > 0.1
    shared = soft @ keys[:, 1:] - memit @ keys[:, 1:]
    assert shared.norm() < 1e-2 * residuals.norm()  # as softly as MEMIT


@pytest.mark.parametrize("count", [1, 4, 7, 12])
def test_crowding_is_a_share_and_follows_its_facts(count: int) -> None:
    keys, _, c, _ = small(count=count)
    h = preservation.second_moment(c)
    shares = crowding(keys, h)
    assert bool((shares >= 0).all()) and bool((shares <= 1).all())
    order = torch.randperm(count)
    torch.testing.assert_close(crowding(keys[:, order], h), shares[order], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(crowding(keys * torch.rand(count).add(0.5), h), shares, rtol=1e-9, atol=1e-11)
    if count == 1:
        assert float(shares) < 1e-12
    if count == 12:
        assert float(shares.min()) > 0.999  # more keys than dimensions
    if count == 4:  # the coefficient of determination, by regression
        white = h.whiten(keys)
        others = white[:, 1:]
        fitted = others @ torch.linalg.lstsq(others, white[:, 0]).solution
        assert float(shares[0]) == pytest.approx(float(fitted.norm() ** 2 / white[:, 0].norm() ** 2), rel=1e-9)


# ---------------------------------------------------------------- values


def attached(atlas: Loaded, editor: Any) -> Any:
    editor.attach(*atlas)
    return editor


def test_encore_stops_early_or_changes_nothing(atlas: Loaded) -> None:
    groups = group_by_key(facts(4))

    def found(stop: int | None) -> tuple[ValueVectors, int]:
        steps: list[int] = []
        values = search(num_steps=25, stop_after_first=stop, clamp=5.0, decay=0.0, loss_threshold=0.0)
        editor = attached(atlas, made(MEMIT, values=values))
        return editor.find(groups, progress=lambda done, *_: steps.append(done))[0], len(steps)

    never, all_steps = found(None)
    large, as_many = found(10_000)
    early, fewer = found(1)
    assert torch.equal(large.values, never.values) and torch.equal(large.keys, never.keys)
    assert as_many == all_steps
    assert fewer < all_steps
    assert not torch.equal(early.values, never.values)
    later = found(4)[1]
    assert fewer < later <= all_steps
    assert ENCORE().values.stop_after_first == 3
    assert ENCORE(values=search(stop_after_first=7)).values.stop_after_first == 7


@pytest.mark.parametrize("anchor", [4.0, None])
def test_nas_gives_values_the_anchor_s_length(atlas: Loaded, moments: Path, anchor: float | None) -> None:
    residual = RescaledValues(anchor=anchor, skip_factor=100.0)
    asked: list[ValueVectors] = []

    class Seeing(SequentialMEMIT):
        @override
        def edit_for(self, vectors: ValueVectors) -> WeightEdit:
            asked.append(vectors)
            return super().edit_for(vectors)

    edited = quiet_edit(atlas, made(Seeing, 20.0, residual=residual), moments, facts(4))
    length = anchor or edited.edits.about["norm_anchor"]
    edited.undo()
    editor = attached(atlas, made(MEMIT))
    start, outputs = editor.searcher.start(asked[0].groups)
    norms = (outputs + asked[0].values - start).norm(dim=0)
    torch.testing.assert_close(norms, torch.full_like(norms, length), rtol=1e-5, atol=0)
    searched = editor.find_values(asked[0].groups)
    before = outputs + searched.values - start
    cosines = torch.nn.functional.cosine_similarity(before, outputs + asked[0].values - start, dim=0)
    assert cosines.min() > 0.99999  # as long, the same way
    if anchor is None:  # the mean of all but the longest ⌊5 %⌋ of the run's own, none of four
        assert length == pytest.approx(float(before.norm(dim=0).mean()), rel=1e-5)


def test_nas_leaves_facts_out_that_ask_too_much(atlas: Loaded) -> None:
    editor = attached(atlas, made(MEMIT, residual=RescaledValues(anchor=1e-3)))
    vectors = editor.find_values(group_by_key(facts(2)))
    start, _ = editor.searcher.start(vectors.groups)
    torch.testing.assert_close(vectors.values, start, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [[LAYER], [0, LAYER]])
def test_values_of_the_unedited_model(atlas: Loaded, moments: Path, layers: list[int]) -> None:
    """In a later batch of a sequential run, bit for bit, and the edited weights stay as they are."""
    asked: list[ValueVectors] = []

    class Seeing(MEMIT):
        @override
        def find(self, groups: Any, *args: Any, **kwargs: Any) -> Any:
            before = weights(atlas[0])
            found = super().find(groups, *args, **kwargs)
            assert same(atlas[0], before)
            asked.append(found[0])
            return found

    given = facts(4)
    for option, equal in (("unedited", True), ("present", False)):
        asked.clear()
        editor = made(Seeing, 1.0, layers=layers, values=search(weights=option))
        edited = quiet_edit(atlas, editor, moments, given, batch_size=2, mode="sequential")
        assert all(edited.edits.batches[0].edit.weight_changes())
        edited.undo()
        fresh = attached(atlas, made(MEMIT, layers=layers))
        expected = fresh.find_values(group_by_key(given[2:]))
        assert torch.equal(asked[0].values, fresh.find_values(group_by_key(given[:2])).values)
        assert torch.equal(asked[1].values, expected.values) == equal
        assert torch.equal(asked[1].keys, expected.keys)  # which the edited layers are not before


def test_pmet_s_values_are_of_the_module(atlas: Loaded, moments: Path) -> None:
    """After an edit that meets them, that is what the MLP gives at the subject's last token."""
    asked: list[ValueVectors] = []

    class Seeing(PMET):
        @override
        def edit_for(self, vectors: ValueVectors) -> WeightEdit:
            asked.append(vectors)
            return super().edit_for(vectors)

    def given_by_mlp(group: Group) -> Tensor:
        span = encode_prompts(atlas[1], [group[0]], ["{}"])[0]
        seen: list[Tensor] = []
        hook = atlas[0].transformer.h[LAYER].mlp.register_forward_hook(lambda m, i, out: seen.append(out))
        with torch.no_grad():
            atlas[0](input_ids=torch.tensor([list(span.ids)]))
        hook.remove()
        return seen[0][0, span.lookup]

    editor = made(Seeing, 1e-8, layers=[0, LAYER])
    unedited = torch.stack([given_by_mlp(group) for group in group_by_key(facts(3))], 1)
    edited = quiet_edit(atlas, editor, moments, facts(3))
    (vectors,) = asked
    reached = torch.stack([given_by_mlp(group) for group in vectors.groups], 1)
    assert relative(unedited, vectors.values) > 1e-2
    assert relative(reached, vectors.values) < 1e-3
    edited.undo()


# ---------------------------------------------------------------- used again, undone

METHODS: dict[str, Callable[[], Editor]] = {
    "ROME": lambda: made(ROME),
    "ROME of two keys": lambda: made(ROME, "both"),
    "EMMET": lambda: made(EMMET),
    "MEMIT": lambda: made(MEMIT, 20.0, earlier_keys="auto"),
    "SequentialMEMIT": lambda: made(SequentialMEMIT, 20.0),
    "PMET": lambda: made(PMET, 20.0, layers=[0, LAYER]),
    "ENCORE": lambda: made(ENCORE, 20.0, 0.5),
    "AlphaEdit": lambda: made(AlphaEdit, damping=0.1),
    "NSE": lambda: made(NSE, 20.0),
    "UltraEdit": lambda: UltraEdit(1e-3, layers=[LAYER]),
    "SimIE": lambda: SimIE(made(MEMIT, 20.0)),
    "LyapLock": lambda: made(LyapLock, 20.0, 0.5),
    "NAS": lambda: made(AlphaEdit, damping=0.1, residual=RescaledValues()),
    "SPHERE, RECT and PRUNE": lambda: made(SequentialMEMIT, 20.0, restraints=[SPHERE(), RECT(), PRUNE(when="each")]),
    "CurvatureWeighted": lambda: made(CurvatureWeighted, 20.0),
    "SoftEMMET": lambda: made(SoftEMMET),
}


LIKE_OTHERS = ("ROME of two keys", "EMMET", "SequentialMEMIT", "ENCORE", "NAS", "SoftEMMET")


@pytest.mark.parametrize("name", [slow(name) if name in LIKE_OTHERS else name for name in METHODS])
def test_used_twice_it_makes_the_same_edits_and_undoes_them(atlas: Loaded, moments: Path, name: str) -> None:
    editor, before = METHODS[name](), weights(atlas[0])
    if isinstance(editor, SimIE):
        editor.residual.editor.second_moment = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    ledgers: list[Any] = []
    for used in (editor, editor):
        size = used.max_batch_size or 2
        edited = quiet_edit(atlas, used, moments, facts(2 * size), batch_size=size, mode="sequential")
        assert not same(atlas[0], before)
        assert all(batch.edit.weight_changes() for batch in edited.edits.batches)
        tensors = [batch.edit.tensors() | dict(batch.edit.state) for batch in edited.edits.batches]
        hashes = [batch.hashes for batch in edited.edits.batches]
        edited.undo()
        assert same(atlas[0], before)
        ledgers.append((tensors, hashes, {**edited.edits.about, "hyperparameters": None}))
    for tensors, hashes, about in ledgers[1:]:
        assert hashes == ledgers[0][1]
        assert about == ledgers[0][2]
        for ours, first in zip(tensors, ledgers[0][0], strict=True):
            assert ours.keys() == first.keys()
            assert all(torch.equal(ours[n], first[n]) for n in ours)


@pytest.mark.parametrize("name", [slow("AlphaEdit"), "LyapLock", "UltraEdit", slow("NSE")])
def test_a_batch_that_is_undone_is_as_if_it_had_never_been(atlas: Loaded, moments: Path, name: str) -> None:
    """What the parts gathered of a batch goes with it; ``recompute`` goes on from what is left of the ledger."""
    given = facts(6)
    edited = quiet_edit(atlas, METHODS[name](), moments, given, batch_size=2, mode="sequential")
    edited.undo(batch=1, recompute=True)
    found = deltas(edited)
    edited.undo()
    fresh = quiet_edit(atlas, METHODS[name](), moments, [*given[:2], *given[4:]], batch_size=2, mode="sequential")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, deltas(fresh), strict=True))
    fresh.undo()


# ---------------------------------------------------------------- ridges that are chosen


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (AlphaEdit, "ridge"),
        (SoftEMMET, "ridge"),
        (CurvatureWeighted, "preservation_weight"),
        slow(ClosedForm, "ridge"),
    ],
)
def test_a_ridge_is_chosen(atlas: Loaded, moments: Path, kind: type[ClosedForm], field: str) -> None:
    options: dict[str, Any] = {"damping": 0.1} if kind is AlphaEdit else {}
    values = search(num_steps=12, clamp=5.0, decay=0.0)
    before = weights(atlas[0])
    tuned = quiet_edit(atlas, made(kind, values=values, **{field: "auto"}, **options), moments, facts(4))
    about = tuned.edits.about
    path = {row["rho"]: row for row in about["ridge_path"]}
    assert len(path) == 14
    assert about["rho"] in path and path[about["rho"]]["S"] == max(row["S"] for row in path.values())
    norms = [row["norm"] for row in path.values()]
    assert norms == sorted(norms, reverse=True) and norms[0] > 1.01 * norms[-1]
    tuned.undo()
    assert same(atlas[0], before)
    given = quiet_edit(atlas, made(kind, values=values, **{field: about["rho"]}, **options), moments, facts(4))
    assert all(torch.equal(a, b) for a, b in zip(deltas(tuned), deltas(given), strict=True))
