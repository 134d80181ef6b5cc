"""The methods as editors against what their public code computes (tests/reference/methods), in float64.

Each file is met twice where it has a sequence: by problems put together by hand, and on a model whose projection has
the file's sizes, where problems, earlier keys, W₀ and the parts' state come from the editor itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from editkit.data.facts import Fact
from editkit.data.plan import RunPlan
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
    EditedLayer,
    Editor,
    Identity,
    LayerProblem,
    LyapLock,
    LyapunovQueue,
    Neurons,
    OfEditor,
    RescaledValues,
    SecondMoment,
    SequentialMEMIT,
    SimIE,
    StandardisedGradient,
    UltraEdit,
    ValueEditor,
)
from editkit.editors.closed_form import layers as layers_module
from editkit.editors.closed_form import of_editor as of_editor_module
from editkit.editors.closed_form.layers import GivenResiduals, ReachValues
from editkit.editors.closed_form.search import Group
from editkit.editors.closed_form.token_rows import TokenRows
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits, WeightEdit
from editkit.edits.weight_edit import apply_delta
from editkit.functional import DenseDelta, factor_second_moment
from editkit.functional.factored import NoSecondMoment
from editkit.functional.values import norm_anchor, rescaled_values

METHODS = Path(__file__).resolve().parents[2] / "reference" / "methods"
D_IN, D_OUT = 48, 32
LAYER = 1
Values = dict[str, Tensor]


def read(method: str) -> tuple[Values, dict[str, Any]]:
    """A method's tensors and its hyperparameters, numbers but for "true"."""
    with safe_open(METHODS / f"{method}.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        return values, {n: v if v == "true" else float(v) for n, v in (file.metadata() or {}).items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def groups_of(count: int) -> tuple[Group, ...]:
    return tuple([Fact(f"S{n}", "{} is", "so", fact_id=str(n))] for n in range(count))


def problem(values: Values, suffix: str = "", moment: str = "second_moment", **more: Any) -> LayerProblem:
    """A layer's problem from a file's keys, residuals and second moment."""
    keys, residuals = (more.pop(name, values.get(f"{name}{suffix}")) for name in ("keys", "residuals"))
    factored = factor_second_moment(values[moment]) if moment in values else NoSecondMoment()
    names = [str(number) for number in range(keys.shape[1])]
    return LayerProblem(LAYER, keys, residuals, factored, keys[:, :0], names, **more)


def change(editor: ClosedFormEditor, asked: LayerProblem) -> Tensor:
    """What the editor changes: solved for, and trimmed."""
    return editor.restrain(editor.solve(asked), asked).dense()


# ---------------------------------------------------------------- on a model of the files' sizes


@pytest.fixture
def model(build_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A GPT-2 in float64 whose projections are (48, 32), on which changes stay as exact as they were solved."""
    for module in (layers_module, of_editor_module):
        if hasattr(module, "rounded_delta"):
            monkeypatch.setattr(module, "rounded_delta", lambda delta: delta)
    return build_model("gpt2", n_inner=D_IN).double()


def weight_of(model: PreTrainedModel, layer: int = LAYER) -> Tensor:
    """W, (d_out, d_in)."""
    return model.transformer.h[layer].mlp.c_proj.weight.T


def on(editor: ClosedFormEditor, model: PreTrainedModel, values: Values, weight: Tensor | None = None) -> None:
    """The editor's run on the model begins, its projection (and C) as in the file."""
    with torch.no_grad():
        weight_of(model).copy_(torch.zeros(D_OUT, D_IN) if weight is None else weight)
    editor.attach(model, None)  # type: ignore[arg-type] - nothing is read
    ValueEditor.prepare(editor, RunPlan(tuple(g[0] for g in groups_of(3)), 1, sequential=True))
    moment = {LAYER: factor_second_moment(values["second_moment"])} if "second_moment" in values else {}
    editor.preserve(moment)
    editor._batches_left = 3


def in_sequence(editor: ClosedFormEditor, model: PreTrainedModel, values: Values, count: int = 3) -> Iterator[Tensor]:
    """The change of each of the file's batches, after which it acts on the model and the editor takes note of it."""
    applied = AppliedEdits(editor.editable)
    for batch in range(count):
        keys, residuals = values[f"keys.{batch}"], values[f"residuals.{batch}"]
        goal = GivenResiduals({LAYER: keys}, {LAYER: residuals}, [str(n) for n in range(keys.shape[1])])
        solved = editor.layer_solver.solve(goal, lambda asked: editor.restrain(editor.solve(asked), asked))
        edit = WeightEdit(deltas=solved.edit(editor.editable).deltas, state={f"keys.{LAYER}": keys})
        applied.apply(edit)
        editor.observe(edit)
        yield solved.deltas[LAYER].dense()


SEQUENTIAL: dict[str, Callable[[dict[str, Any]], ClosedFormEditor]] = {
    "memit_seq": lambda given: SequentialMEMIT(given["lam"], layers=[LAYER]),
    "encore": lambda given: ENCORE(given["lam"], given["mu"], layers=[LAYER]),
    "alphaedit": lambda given: AlphaEdit(given["thr"], given["L2"], layers=[LAYER]),
    "sphere": lambda given: AlphaEdit(
        given["nullspace_threshold"], given["L2"], layers=[LAYER], restraints=[SPHERE(given["eta"], given["alpha"])]
    ),
    "lyaplock": lambda given: LyapLock(given["lam"], given["alpha"], layers=[LAYER]),
}


@pytest.mark.parametrize("method", SEQUENTIAL)
def test_a_sequence_of_batches_on_a_model(method: str, model: PreTrainedModel) -> None:
    values, given = read(method)
    editor = SEQUENTIAL[method](given)
    on(editor, model, values, values.get("weight"))
    count = 2 if method == "sphere" else 3
    found = list(in_sequence(editor, model, values, count))
    for batch, delta in enumerate(found):
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9
    # and once more, as if nothing had been
    on(editor, model, values, values.get("weight"))
    again = next(in_sequence(editor, model, values, count))
    assert torch.equal(again, found[0])


def test_memit_with_weighted_earlier_keys_is_the_same(model: PreTrainedModel) -> None:
    values, given = read("memit_seq")
    editor = MEMIT(given["lam"], earlier_keys="auto", layers=[LAYER])
    on(editor, model, values)
    for batch, delta in enumerate(in_sequence(editor, model, values)):
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9


@pytest.mark.parametrize("method", ["memit_seq", "encore", "alphaedit"])
def test_a_sequence_of_batches_by_hand(method: str) -> None:
    values, given = read(method)
    editor, past = SEQUENTIAL[method](given), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    earlier = past[:, :0]
    for batch in range(3):
        if batch == 2:
            assert relative(past, values["past"]) < 1e-12
        asked = problem(values, f".{batch}", past=past if batch else None)
        assert relative(change(editor, asked), values[f"delta.{batch}"]) < 1e-9
        columns = LayerProblem(
            LAYER, asked.keys, asked.residuals, asked.second_moment, earlier, asked.names
        )  # the same M, of keys that are there one by one
        assert relative(change(editor, columns), values[f"delta.{batch}"]) < 1e-9
        past = past + asked.keys @ asked.keys.T
        earlier = torch.cat([earlier, asked.keys], 1)


# ---------------------------------------------------------------- one batch


@pytest.mark.parametrize("form", ["EMMET", "ClosedForm"])
def test_emmet(form: str) -> None:
    values, given = read("emmet")
    editor = (
        EMMET(given["alpha"], given["w"]) if form == "EMMET" else ClosedForm(SecondMoment(given["w"]), given["alpha"])
    )
    assert relative(change(editor, problem(values)), values["delta"]) < 1e-9


@pytest.mark.parametrize(("key", "name"), [("averaged", "delta_one_key"), ("both", "delta")])
def test_rome(key: Any, name: str) -> None:
    values, _ = read("rome")
    asked = problem(values, prompt_keys=values["prompt_keys"])
    assert relative(change(ROME(key), asked), values[name]) < 1e-9
    assert relative(values["context_keys"].mean(1, keepdim=True), values["keys"]) < 1e-9
    other = values["delta" if key == "averaged" else "delta_one_key"]
    assert relative(change(ROME(key), asked), other) > 1e-3


def test_rome_with_the_prompt_s_key_is_rome_of_that_key() -> None:
    values, _ = read("rome")
    asked = problem(values, prompt_keys=values["prompt_keys"])
    found = change(ROME("prompt"), asked)
    assert relative(found @ values["prompt_keys"], values["residuals"]) < 1e-9  # met there, not at the averaged key
    assert relative(found @ values["keys"], values["residuals"]) > 1e-3
    alone = problem(values, keys=values["prompt_keys"])
    assert relative(found, change(ROME("averaged"), alone)) < 1e-12


@dataclass
class Layerwise:
    """Stands in for a searcher on a model where each layer's keys and what is then missing are known."""

    values: Values
    asked: int = field(default=0)

    def states(self, groups: Sequence[Group]) -> Tensor:
        self.asked += 1
        return -self.values[f"residuals.{self.asked - 1}"]  # the values to be reached are 0

    def keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        return self.values[f"keys.{layer}"]


@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_several_layers_take_their_shares(method: str, model: PreTrainedModel) -> None:
    values, given = read(method)
    layers = list(range(int(given["L"])))
    editors: list[ClosedFormEditor] = (
        [MEMIT(given["lam"], layers=layers), SequentialMEMIT(given["lam"], layers=layers)]
        if method == "memit"
        else [PMET(given["lam"], layers=layers)]
    )
    for editor in editors:
        for layer in layers:
            share = editor.spread.share(len(layers) - layer)
            asked = problem(
                values, f".{layer}", f"second_moment.{layer}", residuals=values[f"residuals.{layer}"] * share
            )
            assert relative(change(editor, asked), values[f"delta.{layer}"]) < 1e-9
        editor.attach(model, None)  # type: ignore[arg-type]
        editor.preserve({layer: factor_second_moment(values[f"second_moment.{layer}"]) for layer in layers})
        count = values["keys.0"].shape[1]
        vectors = ValueVectors(groups_of(count), values["keys.0"], torch.zeros(D_OUT, count).double())
        goal = ReachValues(vectors, Layerwise(values), editor.spread)  # type: ignore[arg-type]
        before = [weight_of(model, layer).clone() for layer in layers]
        solved = editor.layer_solver.solve(goal, editor.solve)
        for layer in layers:
            assert relative(solved.deltas[layer].dense(), values[f"delta.{layer}"]) < 1e-9
            assert torch.equal(weight_of(model, layer), before[layer])


@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_malmen_s_step(kind: str) -> None:
    values, given = read("malmen")
    prefix, ridge = ("", math.exp(given["log_ridge"])) if kind == "trained" else ("untrained_", 1.0)
    editor = ClosedForm(Identity(), ridge, earlier_keys=0.0)
    asked = problem(values, residuals=values[f"{prefix}residuals"])
    assert relative(change(editor, asked), values[f"{prefix}delta"]) < 1e-9


def test_the_solve_does_not_agree_with_another_method_by_chance() -> None:
    values, given = read("alphaedit")
    asked = problem(values, ".0")
    for editor in (SequentialMEMIT(given["L2"]), AlphaEdit(given["thr"], 2 * given["L2"]), ClosedForm(Identity())):
        assert relative(change(editor, asked), values["delta.0"]) > 0.05


# ---------------------------------------------------------------- NSE


@dataclass
class Linear:
    """Stands in for a searcher on a model that is linear in the edited weight: a state is (W − W₀) k."""

    model: PreTrainedModel
    original: Tensor
    k: Tensor

    def states(self, groups: Sequence[Group]) -> Tensor:
        return (weight_of(self.model).detach() - self.original) @ self.k

    def keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        return self.k


@pytest.mark.parametrize("exact", [True, False])
def test_nse(exact: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts and neurons of each round, and the change of all rounds; rounded to float32 as a run does it, too."""
    values, given = read("nse")
    rounds = int(given["iters"]) - 1
    editor = NSE(given["lam"], given["thr"], given["alpha"], given["upper"], rounds, layers=[LAYER])
    on(editor, model, values)
    if not exact:
        monkeypatch.undo()
    applied = AppliedEdits(editor.editable)
    for batch in range(3):
        keys, residuals = values[f"keys.{batch}"], values[f"residuals.{batch}"]
        seen: list[tuple[list[int], list[int], Tensor]] = []
        facts: list[list[int]] = []

        def choose(missing: Tensor, facts: list[list[int]] = facts) -> Sequence[int]:
            chosen = list(editor.choose(missing))
            if chosen:
                facts.append(chosen)
            return chosen

        def solve(asked: LayerProblem, seen: list[Any] = seen, facts: list[list[int]] = facts) -> Any:
            delta = editor.solve(asked)
            rows = editor.preservation.of(asked).basis
            assert rows is not None
            others = torch.ones(D_IN, dtype=torch.bool).index_fill_(0, rows, False)
            assert not delta.dense()[:, others].any()
            seen.append((facts[-1], rows.tolist(), delta.dense()))
            return delta

        assert isinstance(editor.preservation, Neurons)
        vectors = ValueVectors(groups_of(keys.shape[1]), keys, residuals)
        original = weight_of(model).detach().clone()
        goal = ReachValues(vectors, Linear(model, original, keys), editor.spread)  # type: ignore[arg-type]
        solved = editor.layer_solver.solve(goal, solve, rounds=editor.rounds, choose=choose)
        expected = [n for n in range(rounds) if f"facts.{batch}.{n}" in values]
        assert [kept for kept, _, _ in seen] == [values[f"facts.{batch}.{n}"].tolist() for n in expected]
        assert [rows for _, rows, _ in seen] == [values[f"neurons.{batch}.{n}"].tolist() for n in expected]
        limit = 1e-9 if exact else 1e-6
        assert relative(solved.deltas[LAYER].dense(), values[f"delta.{batch}"]) < limit
        for turn, (_, _, delta) in enumerate(seen):
            if (name := f"delta.{batch}.{turn}") in values:
                assert relative(delta, values[name]) < limit
        assert torch.equal(solved.keys[LAYER], keys)  # of all facts, for M
        edit = WeightEdit(deltas=solved.edit(editor.editable).deltas, state={f"keys.{LAYER}": keys})
        applied.apply(edit)
        editor.observe(edit)
        if batch == 1:
            past = editor._preserved.past(LAYER, keys)
            assert past is not None and relative(past, values["past"]) < 1e-12


# ---------------------------------------------------------------- LyapLock


def test_lyaplock_s_queue_by_hand() -> None:
    values, given = read("lyaplock")
    editor = LyapLock(given["lam"], given["alpha"])
    queue = editor.preservation
    assert isinstance(queue, LyapunovQueue)
    moment, original = factor_second_moment(values["second_moment"]), values["weight"]
    weight, past = original.clone(), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for batch in range(3):
        assert queue.present_weight(LAYER) == pytest.approx(float(values[f"weight_of_C.{batch}"]), rel=1e-9)
        asked = problem(
            values, f".{batch}", past=past if batch else None, weight=weight.clone(), original=original, last=batch == 2
        )
        if batch == 2:
            restoring = queue.restoring(asked, queue.of(asked))
            assert restoring is not None and relative(restoring, values["restoring_delta"]) < 1e-9
            assert relative(queue._value_keys[LAYER], values["past_value_key"]) < 1e-9
            assert relative(past, values["past"]) < 1e-12
        else:
            assert (queue.restoring(asked, queue.of(asked)) is None) == (batch == 0)
        delta = change(editor, asked)
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9
        weight, past = weight + delta, past + asked.keys @ asked.keys.T
        queue.observe({}, [EditedLayer(LAYER, asked.keys, weight.clone(), original, moment)])
        present = queue._queues[LAYER]
        assert present.length == pytest.approx(float(values[f"queue.{batch}"]), rel=1e-9)
        assert present.gain == pytest.approx(float(values["queue_gain"]), rel=1e-9)
        assert present.allowed == pytest.approx(given["alpha"] * float(values["base_loss"]), rel=1e-9)
    queue.begin()
    assert queue.present_weight(LAYER) == given["lam"]


# ---------------------------------------------------------------- restraints


@pytest.mark.parametrize(
    ("restraint", "name", "kept"),
    [
        (lambda given: RECT(given["keep_percent"] / 100), "delta", "kept"),
        (lambda given: RECT(1 - given["original_drop"], "rect"), "original_delta", "original_kept"),
    ],
)
def test_rect(restraint: Callable[[dict[str, Any]], RECT], name: str, kept: str) -> None:
    values, given = read("rect")
    editor = MEMIT(given["lam"], restraints=[restraint(given)])
    asked = problem(values, weight=values["weight"])
    assert relative(editor.solve(asked).dense(), values["delta_in"]) < 1e-9
    found = change(editor, asked)
    assert relative(found, values[name]) < 1e-9
    assert int(found.count_nonzero()) == given[kept]
    assert torch.equal(found != 0, values[name] != 0)


@pytest.mark.parametrize(
    ("name", "base"), [("linear", "linear"), ("log", math.e), ("log2", 2.0), ("log1_5", 1.5), ("log1_2", 1.2)]
)
@pytest.mark.parametrize("batches", [1, 3])
def test_prune(name: str, base: Any, batches: int) -> None:
    """However many batches the change came in, the last leaves what the code makes of all of them."""
    values, _ = read("prune")
    editor = MEMIT(restraints=[PRUNE(base)])
    original, total = values["weight"], values["delta_in"]
    parts = torch.rand(batches, D_OUT, D_IN, dtype=torch.float64)
    parts[-1] = total - parts[:-1].sum(0)
    weight = original.clone()
    for batch, part in enumerate(parts):
        last = batch == batches - 1
        keys = torch.eye(D_IN, dtype=torch.float64)
        asked = problem({}, keys=keys, residuals=part, weight=weight.clone(), original=original, last=last)
        made = editor.restrain(DenseDelta(part), asked).dense()
        assert last or torch.equal(made, part)
        weight = weight + made
    assert relative(weight - original, values[f"delta.{name}"]) < 1e-9


def test_prune_on_a_model(model: PreTrainedModel) -> None:
    """W₀ and which batch is the last come from the editor; every change is met exactly, then pulled down at the end."""
    values, _ = read("prune")
    parts = torch.rand(3, D_OUT, D_IN, dtype=torch.float64)
    parts[-1] = values["delta_in"] - parts[:-1].sum(0)
    given = {f"keys.{n}": torch.eye(D_IN, dtype=torch.float64) for n in range(3)}
    given |= {f"residuals.{n}": part for n, part in enumerate(parts)}
    editor = ClosedForm(Identity(), ridge=0.0, earlier_keys=0.0, restraints=[PRUNE(1.5)], layers=[LAYER])
    on(editor, model, {}, values["weight"])
    found = list(in_sequence(editor, model, given))
    assert relative(found[0], parts[0]) < 1e-9 and relative(found[1], parts[1]) < 1e-9
    assert relative(weight_of(model) - values["weight"], values["delta.log1_5"]) < 1e-9


def test_sphere_on_a_given_change() -> None:
    values, given = read("sphere")
    asked = problem(values, ".0", weight=values["weight"])
    delta = DenseDelta(values["delta_in"])
    for side, name in (("input", "delta"), ("output", "conv1d_delta")):
        editor = AlphaEdit(restraints=[SPHERE(given["eta"], given["alpha"], side)])  # type: ignore[arg-type]
        assert relative(editor.restrain(delta, asked).dense(), values[name]) < 1e-9


def test_sphere_on_alphaedit_by_hand() -> None:
    values, given = read("sphere")
    editor = SEQUENTIAL["sphere"](given)
    weight, past = values["weight"], torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for batch in range(2):
        asked = problem(values, f".{batch}", past=past if batch else None, weight=weight)
        delta = change(editor, asked)
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9
        weight, past = weight + delta, past + asked.keys @ asked.keys.T


# ---------------------------------------------------------------- NAS


def test_nas() -> None:
    values, given = read("nas")
    anchor = norm_anchor(values["reference_norms"], 1 - given["upper_quantile"])
    assert anchor == pytest.approx(float(values["anchor"]), rel=1e-9)
    output, skip = values["module_output"], given["skip_factor"]
    rescaled = rescaled_values(output, values["optimised"], anchor, skip)
    assert relative(rescaled, values["value"]) < 1e-8
    skipped = (rescaled == output).all(0)
    assert torch.equal(skipped, values["skipped"]) and 0 < int(skipped.sum()) < len(skipped)
    assert rescaled[:, ~skipped].norm(dim=0).sub(anchor).abs().max() < 1e-9 * anchor

    # as the editor's residual: the search found δ at the block's output
    block = values["block_output"]
    count = block.shape[1]
    searched = SimpleNamespace(searcher=SimpleNamespace(start=lambda groups: (block, output)))
    residual = RescaledValues(anchor=anchor, skip_factor=skip)
    vectors = ValueVectors(groups_of(count), values["keys"], block + values["optimised"])
    revised = residual.revised(searched, vectors)  # type: ignore[arg-type]
    assert relative(revised.values, values["target"]) < 1e-8
    assert relative(revised.values - block, values["residuals"]) < 1e-8

    editor = AlphaEdit(given["nullspace_threshold"], given["L2"], residual=residual)
    found = change(editor, problem(values, residuals=revised.values - block))
    assert relative(found, values["delta"]) < 1e-8


def test_nas_measures_its_anchor_on_a_run_s_facts() -> None:
    """The lengths of v₀ + δ, of which the longest are left out; a resumed run takes what was found."""
    values, given = read("nas")
    norms, count = values["reference_norms"], len(values["reference_norms"])
    output = torch.randn(D_OUT, count, dtype=torch.float64)
    block = torch.randn(D_OUT, count, dtype=torch.float64)
    reference = torch.nn.functional.normalize(torch.randn(D_OUT, count, dtype=torch.float64), dim=0) * norms
    facts = tuple(group[0] for group in groups_of(count))

    def find(groups: Any, totals: Any, progress: Any) -> Any:
        index = [facts.index(group[0]) for group in groups]
        return ValueVectors(tuple(groups), output[:, index], (block + reference - output)[:, index]), totals

    stand_in: Any = SimpleNamespace(
        find=find, global_rank=0, editable=SimpleNamespace(device="cpu"),
        searcher=SimpleNamespace(start=lambda groups: (block, output)),
    )  # fmt: skip
    residual = RescaledValues(dropped=1 - given["upper_quantile"])
    residual.prepare(stand_in, RunPlan(facts, count))
    assert residual.findings()["norm_anchor"] == pytest.approx(float(values["anchor"]), rel=1e-9)
    again = RescaledValues()
    again.prepare(None, RunPlan(facts, count, findings={"norm_anchor": 3.0}))  # type: ignore[arg-type]
    assert again.findings() == {"norm_anchor": 3.0}


# ---------------------------------------------------------------- UltraEdit


@pytest.mark.parametrize("steps", [1, 2])
def test_ultraedit(steps: int, model: PreTrainedModel) -> None:
    """Statistics, residuals and change of each batch, its rows found in one step or in several."""
    values, given = read("ultraedit")
    editor = UltraEdit(given["lr"], "code", int(given["micro_batch"]), layers=[LAYER])
    residual = editor.residual
    assert isinstance(residual, StandardisedGradient)
    on(editor, model, values)
    applied = AppliedEdits(editor.editable)
    for batch in range(2):
        keys, gradients = values[f"keys.{batch}"], values[f"value_grads.{batch}"]
        count = keys.shape[1]
        parts = [
            TokenRows(
                groups_of(count)[: len(rows)],
                {LAYER: keys[:, rows]},
                {LAYER: gradients[:, rows]},
                torch.arange(len(rows)),
            )
            for rows in torch.arange(count).chunk(steps)
        ]
        goal = residual.goal(editor, parts)
        solved = editor.layer_solver.solve(goal, editor.solve)
        assert relative(goal.residuals[LAYER], values[f"residuals.{batch}"]) < 1e-9
        state = residual.state()
        assert int(state[f"{LAYER}.count"]) == int(values[f"count.{batch}"])
        for name in ("mean", "sum_squares"):
            assert relative(state[f"{LAYER}.{name}"], values[f"{name}.{batch}"]) < 1e-9
        delta = solved.deltas[LAYER].dense()
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9
        assert relative(delta, values[f"float32_delta.{batch}"].double()) < 1e-4
        edit = WeightEdit(
            deltas=solved.edit(editor.editable).deltas, state={f"residual.{n}": t for n, t in state.items()}
        )
        applied.apply(edit)
        editor.observe(edit)
        assert relative(residual._statistics[LAYER].std, values[f"std.{batch}"]) < 1e-9


def test_ultraedit_s_statistics_are_taken_up_once_a_batch_acts(model: PreTrainedModel) -> None:
    values, given = read("ultraedit")
    residual = StandardisedGradient(given["lr"], "code", int(given["micro_batch"]))
    keys, gradients = values["keys.0"], values["value_grads.0"]
    rows = TokenRows(groups_of(12), {LAYER: keys}, {LAYER: gradients}, torch.arange(12))
    for _ in range(2):  # a batch that failed and is made again is as if it had been made once
        found = residual.goal(None, [rows]).residuals[LAYER]  # type: ignore[arg-type]
        assert relative(found, values["residuals.0"]) < 1e-9


def test_float32_solves_of_the_public_code_are_near() -> None:
    values, given = read("alphaedit")
    editor, past = SEQUENTIAL["alphaedit"](given), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for batch in range(3):
        asked = problem(values, f".{batch}", past=past)
        assert relative(change(editor, asked), values[f"float32_delta.{batch}"].double()) < 1e-4
        past = past + asked.keys @ asked.keys.T


# ---------------------------------------------------------------- SimIE


class Given(WeightEdit):
    """A change that is not rounded to float32."""

    def rounded(self) -> WeightEdit:
        return self


def test_simie_by_hand() -> None:
    values, given = read("simie")
    assert given["init_model"] == "true"
    editor = SimIE(damping=given["lam"], layers=[LAYER])
    past, run = torch.zeros(D_IN, D_IN, dtype=torch.float64), torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for batch in range(3):
        keys = values[f"keys.{batch}"]
        residuals = (values[f"base_delta.{batch}"] - run) @ keys
        delta = change(editor, problem(values, f".{batch}", residuals=residuals, past=past if batch else None))
        assert relative(delta, values[f"delta.{batch}"]) < 1e-9
        run, past = run + delta, past + keys @ keys.T
        if batch == 1:
            assert relative(past, values["past"]) < 1e-12


def test_simie_on_a_model(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """W₀ + what the other editor adds, less what the weight is now, at the keys of all tokens; then one ridge solve."""
    values, given = read("simie")
    name = f"transformer.h.{LAYER}.mlp.c_proj.weight"
    batch = 0

    class Adds(Editor):
        """Adds what the file's base editor adds, and sees on which weights."""

        def edit(self, batch_of: Sequence[Fact]) -> WeightEdit:
            assert torch.equal(weight_of(model), values["weight"])  # from the unedited ones each time
            return Given(deltas={name: DenseDelta(values[f"base_delta.{batch}"])})

    editor = SimIE(Adds(), given["lam"], layers=[LAYER])
    residual = editor.residual
    assert isinstance(residual, OfEditor) and residual.needs_original
    on(editor, model, values, values["weight"])
    applied = AppliedEdits(editor.editable)
    for batch in range(3):
        keys = values[f"keys.{batch}"]
        monkeypatch.setattr(
            of_editor_module, "all_keys", lambda *_, k=keys: ({LAYER: k}, torch.zeros(k.shape[1], dtype=torch.long))
        )
        found = of_editor_module.EditedFacts(groups_of(1))
        solved = editor.layer_solver.solve(residual.goal(editor, [found]), editor.solve)
        assert relative(solved.deltas[LAYER].dense(), values[f"delta.{batch}"]) < 1e-9
        edit = WeightEdit(deltas=solved.edit(editor.editable).deltas, state={f"keys.{LAYER}": keys})
        applied.apply(edit)
        editor.observe(edit)
    together = sum(values[f"delta.{n}"] for n in range(3))
    assert relative(weight_of(model) - values["weight"], together) < 1e-9


def test_changes_are_put_on_as_exactly_as_the_files_are(model: PreTrainedModel) -> None:
    """Without which nothing above would say anything: the stand-in model adds up in float64."""
    editor = MEMIT(layers=[LAYER])
    editor.attach(model, None)  # type: ignore[arg-type]
    before, delta = weight_of(model).clone(), torch.randn(D_OUT, D_IN, dtype=torch.float64)
    apply_delta(editor.editable, editor.editable.parameter_of(LAYER), DenseDelta(delta))
    assert relative(weight_of(model) - before, delta) < 1e-14
