"""Whether a ledger was begun by the run that is to go on with it."""

from __future__ import annotations

import json
from typing import Any

from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.editor import Editor
from editkit.edits import Edits
from editkit.models.fingerprint import fingerprint
from editkit.utils.errors import InputError, shorten


def check_same_run(
    edits: Edits, editor: Editor, about: dict[str, Any], sequential: bool, data: FactsDataModule
) -> None:
    """Raise an ``InputError`` that names the first difference between a ledger and the run at hand.

    Versions may differ: that is told by the weights' hashes where it makes a difference.

    Args:
        edits: the ledger.
        editor: with its unedited model.
        about: what the run would record of itself.
        sequential: the run's mode.
        data: the run's facts.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("model.lm", edits.model, fingerprint(editor.editable.model)),
        ("weight_update.mode", edits.sequential, sequential),
        *((f"model ({name})", edits.about.get(name), value) for name, value in about.items() if name != "versions"),
    ]
    for index, batch in enumerate(edits.batches):
        made = {fact.fact_id for fact in batch.facts} | set(batch.notes.get("dropped", []))
        asked = {data.selected[i].fact_id for i in data.batch_indices(index)} if index < data.num_batches else set()
        pairs.append((f"data (facts of batch {index})", sorted(made), sorted(asked)))
    for name, was, now in pairs:
        if (there := _json(was)) != (here := _json(now)):
            raise InputError(
                f"run_dir: expected a run with the same settings, but {name} differs: {shorten(there)} there, "
                f"{shorten(here)} now; repeat the run's own command, or choose another run_dir"
            )


def _json(value: Any) -> str:
    """A value as it stands in a file, where tuples are lists."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
