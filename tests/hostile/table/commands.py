"""Options, configs and trainers."""

from __future__ import annotations

from hostile import Command

ROWS = [
    Command("no facts", "fit --config quickstart --data.num_facts=0", r"data\.num_facts: expected a number > 0"),
]
