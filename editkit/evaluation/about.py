"""What a run was of, so that a metrics file alone can be understood: model, editor, facts and versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from editkit.atlas.builtin import resolve
from editkit.data.module import FactsDataModule
from editkit.data.plan import RunPlan

LIBRARIES = ("editkit", "torch", "transformers", "lightning")
OF_THE_EDITOR = ("editor", "hyperparameters", "layers", "rho")  # of what a ledger says of itself


def about_run(
    lm: str,
    dtype: str,
    fingerprint: str,
    edits: Mapping[str, Any] | None,
    data: FactsDataModule,
    plan: RunPlan,
    dealt: bool,
) -> dict[str, Any]:
    """The first entries of metrics.json (JSON values).

    Args:
        lm: name of the language model.
        dtype: of its weights.
        fingerprint: of it, unedited.
        edits: what the ledger says of itself (``Edits.about``); None where nothing was edited.
        data: the facts' source.
        plan: the facts.
        dealt: whether they were edited by this run, in the plan's batches.
    """
    facts: dict[str, Any] = {"source": data.source}
    if resolve(data.source) is not None:
        facts["split"] = data.split
    facts |= {"seed": data.seed, "number": len(plan.facts)}
    if dealt:
        facts |= {"batch_size": plan.batch_size, "num_batches": plan.num_batches, "sequential": plan.sequential}
    editor = None if edits is None else {n: edits[n] for n in OF_THE_EDITOR if n in edits}
    return {
        "model": {"lm": lm, "dtype": dtype, "fingerprint": fingerprint},
        "editor": editor,
        "facts": facts,
        "versions": {name: version(name) for name in LIBRARIES},
    }
