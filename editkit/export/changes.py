"""What of a ledger can be shipped without editkit: changes of weights."""

from __future__ import annotations

from editkit.edits import Edits
from editkit.functional.delta import Delta
from editkit.functional.truncation import rank_bound
from editkit.utils.errors import InputError


def changes_of(edits: Edits, batch: int | None = None, rank: int | None = None) -> dict[str, list[Delta]]:
    """Parameter name to its changes, batch after batch: all that a checkpoint, or an adapter of ``rank``, is made of.

    Raises:
        InputError: no such batch, several independent ones and none chosen, edits that act otherwise or change no
            weights, or a rank that they cannot have.
    """
    changes: dict[str, list[Delta]] = {}
    for done in edits.chosen(batch):
        for name, delta in done.edit.weight_changes().items():
            changes.setdefault(name, []).append(delta)
    if not changes:
        raise InputError(
            "edits: expected a ledger with weight changes, but these edits change none; there is nothing to export"
        )
    highest = max(rank_bound(deltas) for deltas in changes.values())
    if rank is not None and not 1 <= rank <= highest:
        raise InputError(
            f"rank: expected a number from 1 to {highest}, the most that these edits can have, but got {rank}; leave "
            "it out for an adapter without loss"
        )
    return changes
