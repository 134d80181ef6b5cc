"""What is done about facts whose keys depend on other facts' keys, before anything is solved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from editkit.editors.closed_form.search import Group
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.functional import FactoredSecondMoment, key_dependence
from editkit.utils.errors import InputError
from editkit.utils.words import counted, listed


def check_dependence(
    vectors: ValueVectors, second_moment: FactoredSecondMoment | None, choice: Literal["keep", "drop", "fail"]
) -> tuple[ValueVectors, dict[str, Any]]:
    """Look at keys (Gupta et al. 2024, section 5.1), and drop those that are not to be kept.

    Args:
        vectors: what was found of a batch.
        second_moment: factored, of the first edited layer; None for the metric of the identity.
        choice: "keep" all, "drop" the later facts of each dependent group, or "fail".

    Returns:
        The vectors to go on with; and notes for the ledger (JSON values): condition number (None where it is infinite)
        and effective rank of D scaled to unit diagonal and, where keys depend on others, the ids of the facts involved
        and of those dropped.

    Raises:
        InputError: keys that are not finite, or dependent ones and "fail".
    """
    groups = vectors.groups
    if len(groups) == 1:
        return vectors, {}
    found = key_dependence(vectors.keys, second_moment, vectors.names)
    notes: dict[str, Any] = {
        "condition_number": found.condition_number if math.isfinite(found.condition_number) else None,
        "effective_rank": found.effective_rank,
    }
    if not found.facts:
        return vectors, notes
    ids = [[fact.fact_id for fact in group] for group in groups]
    which = f"the keys of {counted(len(found.facts), 'fact')} ({_names(groups, found.facts)}) depend on those of others"
    if choice == "fail":
        raise InputError(
            f"model.dependent: expected facts with independent keys, but {which}; drop them (model.dependent=drop), or "
            "keep them with a ridge"
        )
    notes["dependent"] = [[name for column in columns for name in ids[column]] for columns in found.involved]
    if choice == "drop":
        notes["dropped"] = [name for column in found.facts for name in ids[column]]
        vectors = vectors.select([column for column in range(len(groups)) if column not in set(found.facts)])
    warnings.warn(f"{which}: {'dropped' if choice == 'drop' else 'kept'}", stacklevel=2)
    return vectors, notes


def _names(groups: Sequence[Group], columns: Sequence[int]) -> str:
    return listed([groups[column][0].subject for column in columns], 5)
