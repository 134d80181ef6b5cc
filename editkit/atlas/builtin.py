"""What ships with editkit, by name: the one place that knows what "atlas" means.

A name that is given where a model, facts, text or a probe's examples are asked for is looked up here first; whatever is
not found is a file, a folder or a hub's name, which others know how to read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: the default of every option that takes a built-in name
DEFAULT = "atlas"


class BuiltIn:
    """A model that ships with editkit, and the data that goes with it.

    Attributes:
        name: its name.
        model: folder of its checkpoint.
        splits: names of the splits of its facts.
    """

    name = DEFAULT
    model = Path(__file__).parent / "model"
    splits = ("tune", "report")

    def records(self, split: str) -> list[dict[str, Any]]:
        """Its facts as CounterFact-shaped records, those of one split."""
        from editkit.atlas.world import load_world

        return load_world().records(split)

    def documents(self, seed: int) -> Iterator[str]:
        """Text without end, the mix that the model was trained on; the same for the same seed."""
        from editkit.atlas.corpus import documents

        return documents(random.Random(f"moments {seed}"))

    def probe(self, task: str) -> tuple[str, Sequence[str]] | None:
        """Template and label words of a task that the model was taught, or None."""
        from editkit.atlas.probes import TAUGHT_TASKS

        taught = TAUGHT_TASKS.get(task)
        return None if taught is None else (taught.template, taught.labels)

    @property
    def probes(self) -> Sequence[str]:
        """Names of the tasks that it was taught."""
        from editkit.atlas.probes import TAUGHT_TASKS

        return tuple(TAUGHT_TASKS)

    def probe_records(self, task: str, count: int) -> Sequence[Mapping[str, Any]]:
        """``count`` labelled examples of a task, none of which it was trained on; 1,000 at most."""
        from editkit.atlas.corpus import held_out_probes

        return held_out_probes(task, min(count, 1000))


_BUILT_IN = {DEFAULT: BuiltIn()}


def resolve(name: str) -> BuiltIn | None:
    """What ships under ``name``, or None where nothing does.

    >>> resolve("atlas").name, resolve("gpt2-xl")
    ('atlas', None)
    """
    return _BUILT_IN.get(name)


def built_in_model(name_or_path: str) -> BuiltIn | None:
    """The built-in model that a name, or the folder of its checkpoint, means; None for any other model.

    >>> built_in_model(str(BuiltIn.model)).name, built_in_model("gpt2-xl")
    ('atlas', None)
    """
    if (found := resolve(name_or_path)) is not None:
        return found
    folder = Path(name_or_path).expanduser().resolve()
    return next((built_in for built_in in _BUILT_IN.values() if built_in.model.resolve() == folder), None)
