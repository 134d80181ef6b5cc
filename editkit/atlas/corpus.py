"""The atlas's text: biographies of the world's subjects, prose from the grammar, and labelled probe examples."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from editkit.atlas.grammar import Grammar
from editkit.atlas.probes import TAUGHT_TASKS, example, render
from editkit.atlas.world import load_world


def documents(
    rng: random.Random, *, biographies: float = 0.68, prose: float = 0.18, tasks: Sequence[str] = tuple(TAUGHT_TASKS)
) -> Iterator[str]:
    """Documents without end; what ``biographies`` and ``prose`` (shares of documents) leave over are ``tasks``.

    A third of the biographies stand after a sentence or two of prose, so that subjects occur at varied positions.
    """
    world, grammar = load_world(), Grammar()
    subjects: list[str] = []
    while True:
        draw = rng.random()
        if draw < biographies:
            if not subjects:
                subjects = list(world.by_subject)
                rng.shuffle(subjects)
            text = world.biography(rng, subjects.pop())
            if rng.random() < 0.35:
                text = f"{grammar.document(rng, rng.choice((1, 1, 2)))} {text}"
            yield text
        elif draw < biographies + prose:
            yield grammar.document(rng, rng.choice((2, 3, 4, 5, 6)))
        else:
            task, shots = rng.choice(tasks), rng.choice((1, 1, 2, 3))
            yield "\n\n".join(_training_example(task, rng) for _ in range(shots))


def _training_example(task: str, rng: random.Random) -> str:
    drawn = example(task, rng)
    while render(task, drawn) in _held_out_prompts(task):
        drawn = example(task, rng)
    return render(task, drawn, with_label=True)


@functools.cache
def held_out_probes(task: str, count: int = 1000) -> tuple[dict[str, Any], ...]:
    """The examples on which the atlas's probes are scored: drawn with a seed of their own, never trained on."""
    rng = random.Random(f"held out {task}")
    return tuple(example(task, rng) for _ in range(count))


@functools.cache
def _held_out_prompts(task: str) -> frozenset[str]:
    return frozenset(render(task, e) for e in held_out_probes(task))
