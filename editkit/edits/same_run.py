"""Whether a ledger was begun by the run that is to go on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from editkit.data.plan import RunPlan
from editkit.edits.ledger import Edits
from editkit.models.fingerprint import fingerprint_like
from editkit.utils.errors import InputError, shorten


def check_same_run(edits: Edits, model: nn.Module, about: Mapping[str, Any], plan: RunPlan) -> None:
    """Raise an ``InputError`` that names the first difference between a ledger and the run at hand.

    Versions may differ: the weights' hashes tell where it makes a difference.

    Args:
        edits: the ledger.
        model: the run's, unedited.
        about: what the run would record of its editor.
        plan: the run's.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("model.lm", edits.model, fingerprint_like(edits.model, model)),
        ("weight_update.mode", edits.sequential, plan.sequential),
        *((f"model ({name})", edits.about.get(name), value) for name, value in about.items() if name != "versions"),
    ]
    for index, batch in enumerate(edits.batches):
        edited = {fact.fact_id for fact in batch.facts} | set(batch.edit.notes.get("dropped", []))
        pairs.append((f"data (facts of batch {index})", sorted(edited), sorted(f.fact_id for f in plan.batch(index))))
    for name, then, now in pairs:
        if (before := _json(then)) != (after := _json(now)):
            raise InputError(
                f"run_dir: expected a run with the same settings, but {name} differs: {shorten(before)} in the ledger, "
                f"{shorten(after)} now; repeat the run's own command, or choose another run_dir"
            )


def _json(value: Any) -> str:
    """A value as it stands in a file, where tuples are lists."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
