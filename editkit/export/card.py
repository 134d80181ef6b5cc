"""The model card of an export: what was edited, how, and in which model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from editkit.atlas.builtin import resolve
from editkit.data.facts import Fact
from editkit.edits import Edits
from editkit.utils.words import counted


def model_card(
    edits: Edits, lm: str, batch: int | None, edited: str, library: str, what: str, how_to_load: str, more: str = ""
) -> str:
    """The text of README.md.

    Args:
        edits: the ledger.
        lm: name of the unedited model, as the user gave it.
        batch: the batch chosen, if any.
        edited: fingerprint of the edited model.
        library: that loads it, as Hugging Face names it.
        what: what lies in the folder, as a noun phrase.
        how_to_load: Python code.
        more: Markdown that is put before the facts.
    """
    facts = [fact for done in edits.chosen(batch) for fact in done.facts]
    about = edits.about
    editor = about.get("editor", "an editor not on record")
    settings = {name: value for name, value in about.items() if name not in ("editor", "versions")}
    if isinstance(given := settings.get("hyperparameters"), dict):  # without the parser's own notes
        settings["hyperparameters"] = {name: value for name, value in given.items() if not name.startswith("_")}
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items()) or "not on record"
    # only a hub's name means anything to the hub
    on_hub = resolve(lm) is None and not lm.startswith((".", "/", "~")) and not Path(lm).exists()
    return "\n".join(
        [
            "---",
            *([f"base_model: {lm}"] if on_hub else []),
            f"library_name: {library}",
            "tags: [editkit, knowledge-editing]",
            "---",
            "",
            f"# {lm}, edited: {counted(len(facts), 'fact')}",
            "",
            f"{what[0].upper()}{what[1:]}, in which {_batches(edits, batch)} of facts changed by a closed-form edit of "
            "a few weight matrices. What it says about these facts is what was asked for, true or not.",
            "",
            "```python",
            how_to_load,
            "```",
            "",
            "## How it was made",
            "",
            "| | |",
            "|---|---|",
            f"| unedited model | {_cell(lm)}, fingerprint `{edits.model}` |",
            f"| edited model | fingerprint `{edited}` |",
            f"| editor | `{editor}` |",
            f"| edited with | {versions} |",
            f"| exported with | {', '.join(f'{n} {version(n)}' for n in ('editkit', 'torch', 'transformers'))} |",
            "",
            "Fingerprints are editkit's (`editkit.models.fingerprint`). Hyperparameters, blocks and templates:",
            "",
            "```json",
            json.dumps(settings, indent=1, ensure_ascii=False, default=str),
            "```",
            "",
            *([more, ""] if more else []),
            "## Facts",
            "",
            *_table(facts),
            "",
        ]
    )


def _batches(edits: Edits, batch: int | None) -> str:
    count = len(edits.chosen(batch))
    if not edits.sequential:
        return "one batch" if len(edits.batches) == 1 else f"batch {batch} of {len(edits.batches)} independent batches"
    if count == len(edits.batches):
        return "one batch" if count == 1 else f"{count} sequential batches"
    return f"the first {count} of {len(edits.batches)} sequential batches"


def _table(facts: Sequence[Fact]) -> list[str]:
    rows = ["| | prompt | asked for | before |", "|---|---|---|---|"]
    for number, fact in enumerate(facts, 1):
        rows.append(f"| {number} | {_cell(fact.text())} | {_cell(fact.target_new)} | {_cell(fact.target_true or '')} |")
    return rows


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
