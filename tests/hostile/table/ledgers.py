"""Ledgers of edits."""

from __future__ import annotations

from hostile import Command

ROWS = [
    Command(
        "no ledger",
        "export --edits nowhere --output out",
        r"edits: .*nowhere",
    ),
]
