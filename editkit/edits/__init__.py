"""Edits and their ledger: kept, applied, undone."""

from editkit.edits.applied import AppliedEdits, WeightSnapshot
from editkit.edits.batch import EditBatch
from editkit.edits.edit import Edit
from editkit.edits.ledger import Edits, load_edits
from editkit.edits.module_edit import EditModule, ModuleEdit
from editkit.edits.prompt_edit import Context, PromptEdit
from editkit.edits.weight_edit import WeightEdit

__all__ = [
    "AppliedEdits",
    "Context",
    "Edit",
    "EditBatch",
    "EditModule",
    "Edits",
    "ModuleEdit",
    "PromptEdit",
    "WeightEdit",
    "WeightSnapshot",
    "load_edits",
]
