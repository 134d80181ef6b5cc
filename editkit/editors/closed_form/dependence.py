"""What is done about facts whose keys depend on other facts' keys, before anything is solved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch

from editkit.editors.closed_form.editor import Editor
from editkit.editors.closed_form.search import Group
from editkit.functional import FactoredSecondMoment, key_dependence
from editkit.utils.errors import InputError


def settle_dependence(
    editor: Editor, moment: FactoredSecondMoment, choice: Literal["keep", "drop", "fail"]
) -> dict[str, Any]:
    """Look at the keys that were found (Gupta et al. 2024, section 5.1), and drop those that are not to be kept.

    Args:
        editor: whose ``found`` is looked at, and shortened by "drop".
        moment: factored second moment of the first edited layer.
        choice: "keep" all, "drop" the later facts of each dependent group, or "fail".

    Returns:
        Notes for the ledger (JSON values): condition number (None where it is infinite) and effective rank of D scaled
        to unit diagonal and, where keys depend on others, the ids of the facts involved and of those dropped.

    Raises:
        InputError: keys that are not finite, or dependent ones and "fail".
    """
    groups, keys = editor.found.groups, torch.cat(editor.found.keys, 1)
    if len(groups) == 1:
        return {}
    found = key_dependence(keys, moment, [group[0].subject for group in groups])
    notes: dict[str, Any] = {
        "condition_number": found.condition_number if math.isfinite(found.condition_number) else None,
        "effective_rank": found.effective_rank,
    }
    if not found.facts:
        return notes
    ids = [[fact.fact_id for fact in group] for group in groups]
    told = f"the keys of {len(found.facts)} facts ({_names(groups, found.facts)}) depend on those of others"
    if choice == "fail":
        raise InputError(
            f"weight_update.dependent: expected facts with independent keys, but {told}; drop them "
            "(weight_update.dependent=drop), or keep them with a ridge"
        )
    notes["dependent"] = [[name for column in columns for name in ids[column]] for columns in found.involved]
    if choice == "drop":
        notes["dropped"] = [name for column in found.facts for name in ids[column]]
        left = [column for column in range(len(groups)) if column not in set(found.facts)]
        editor.found.groups = [groups[column] for column in left]
        editor.found.keys, editor.found.values = [keys[:, left]], [torch.cat(editor.found.values, 1)[:, left]]
    warnings.warn(f"{told}: {'dropped' if choice == 'drop' else 'kept'}", stacklevel=2)
    return notes


def _names(groups: Sequence[Group], columns: Sequence[int]) -> str:
    names = [groups[column][0].subject for column in columns]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
