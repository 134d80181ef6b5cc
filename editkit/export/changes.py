"""What of a ledger can be shipped without editkit: changes of weights."""

from __future__ import annotations

from editkit.edits import Edits
from editkit.functional.delta import Delta, ZeroDelta
from editkit.functional.truncation import rank_bound
from editkit.utils.errors import InputError


def changes_of(edits: Edits, batch: int | None = None, rank: int | None = None) -> dict[int, list[Delta]]:
    """Block to its weight changes, batch after batch: all that a checkpoint, or an adapter of ``rank``, is made of.

    Raises:
        InputError: no such batch, several independent ones and none chosen, edits that act in the prompt or change no
            weights, or a rank that they cannot have.
    """
    changes: dict[int, list[Delta]] = {}
    for done in edits.chosen(batch):
        if done.prompt is not None:
            raise InputError(
                "edits: expected a ledger of weight changes alone, but these edits act in the prompt, which no "
                "checkpoint or adapter holds; use them through editkit"
            )
        for layer, delta in done.deltas.items():
            if not isinstance(delta, ZeroDelta):
                changes.setdefault(layer, []).append(delta)
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
    return dict(sorted(changes.items()))
