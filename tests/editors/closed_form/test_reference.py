"""Parity with the public EMMET code on a tiny random GPT-2 (tests/reference): keys, values, deltas, likelihoods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from editkit.data.facts import Fact, load_facts
from editkit.editors import EMMET, MEMIT, ClosedFormEditor, ValueSearch
from editkit.edits import AppliedEdits
from editkit.functional import factor_second_moment
from editkit.models.loading import load_language_model
from editkit.models.scoring import target_nll


@pytest.fixture(scope="module")
def shared() -> Path:
    """The folder of reference/, which ships with the tests."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gold(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "reference" / "golden.safetensors")


@pytest.fixture(scope="module")
def facts(shared: Path) -> list[Fact]:
    return load_facts(shared / "reference" / "facts.json")


def attached(shared: Path, editor: ClosedFormEditor) -> ClosedFormEditor:
    editor.attach(*load_language_model(str(shared / "reference" / "gpt2-tiny")))
    editor.configure_model()
    return editor


def search(shared: Path) -> ValueSearch:
    return ValueSearch(
        context_templates=json.loads((shared / "reference" / "context_templates.json").read_text(encoding="utf-8"))
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_values_and_keys(shared: Path, gold: dict[str, Tensor], facts: list[Fact]) -> None:
    editor = attached(shared, EMMET(layers=[2], values=search(shared)))
    vectors = editor.find_values([[f] for f in facts])
    values = vectors.values.T
    errors = (values - gold["values"]).norm(dim=1) / gold["values"].norm(dim=1)
    assert errors.max() < 1e-4
    assert relative(vectors.keys.T, gold["keys.2"]) < 1e-4
    for layer in (1, 2):
        keys = editor.searcher.keys([[f] for f in facts], layer)
        assert relative(keys.T, gold[f"keys.{layer}"]) < 1e-4


@pytest.mark.parametrize("spread", ["single", "multi"])
@pytest.mark.parametrize("method", ["emmet", "memit"])
def test_deltas_and_likelihoods(
    shared: Path, gold: dict[str, Tensor], facts: list[Fact], method: str, spread: str
) -> None:
    layers = [2] if spread == "single" else [1, 2]
    options = {"layers": layers, "values": search(shared)}
    editor = attached(
        shared,
        EMMET(ridge=0.1, preservation_weight=100.0, **options)
        if method == "emmet"
        else MEMIT(preservation_weight=100.0, **options),
    )
    editor.preserve({layer: factor_second_moment(gold[f"second_moment.{layer}"]) for layer in layers})
    edit = editor.edit_for(editor.find_values([[f] for f in facts]))
    AppliedEdits(editor.editable).apply(edit)
    for layer in layers:
        name = editor.editable.parameter_of(layer)
        delta = editor.editable.oriented(name, edit.deltas[name].dense())
        assert relative(delta, gold[f"{method}_{spread}.delta.{layer}"]) < 1e-3
    prompts = [p for f in facts for p in (f.text(), *f.paraphrase_prompts, *f.neighborhood_prompts) for _ in range(2)]
    targets = [t for f in facts for _ in range(3) for t in (f.target_new, f.target_true or "")]
    nll = target_nll(editor.editable, editor.tokenizer, prompts, targets).view(len(facts), 6)
    expected = gold[f"{method}_{spread}.nll"]
    # its columns are target_new on the three prompts and then target_true, or pairs prompt by prompt
    paired = torch.cat([nll[:, 0::2], nll[:, 1::2]], 1)
    assert min((nll - expected).abs().max(), (paired - expected).abs().max()) < 1e-3
