"""Labelled examples as prompts: read, split into a balanced pool of examples to show and examples to be asked."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from editkit.atlas.builtin import DEFAULT, resolve
from editkit.data.task_description import TaskDescription
from editkit.data.tasks import TASKS, ProbeTask, taught_task
from editkit.utils.errors import InputError

BETWEEN = "\n\n"  # what separates the examples of a prompt


@dataclass(frozen=True)
class Probe:
    """One probe of a model's other abilities.

    Args:
        task: a task of the table: sst2, mrpc, cola, rte, nli or mmlu; or a task of your own, described.
        source: "atlas" (shipped: sst2, mrpc, cola and rte as the atlas's model was taught them), "datasets" (the
            task's own data set), a .jsonl file, or a name or folder that ``datasets`` loads.
        examples: examples to ask, drawn at random from those that are not in the pool; default all.
        shots: examples shown before each question: the first ones of a pool that is drawn once, has as many of each
            class as can be, and is never asked. Where questions do not fit into the model's context window after
            these, but do after the pool's shortest ones, these are shown.
        pool: examples set aside for showing, so that results at different shot counts have the same questions.
        scored: "likelihood" (the class whose word is most likely) or "generation" (the class that the model's own
            words name; an answer that names none is invalid).
        seed: of the drawing.
        name: its name in reports; default the task's.
    """

    task: str | TaskDescription
    source: str = DEFAULT
    examples: PositiveInt | None = None
    shots: NonNegativeInt = 0
    pool: NonNegativeInt = 16
    scored: Literal["likelihood", "generation", "both"] = "likelihood"
    seed: int = 0
    name: str | None = None

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.name or self.task_name

    @property
    def task_name(self) -> str:
        """Its task's name."""
        return self.task if isinstance(self.task, str) else self.task.name

    @property
    def titles(self) -> list[str]:
        """The names of its rows in reports: answers by likelihood and by generation are two."""
        return [self.title, f"{self.title} (generated)"] if self.scored == "both" else [self.title]


@dataclass(frozen=True)
class ProbeRow:
    """One question.

    Attributes:
        probe: number of its probe.
        example: its number among the probe's questions.
        prompt: examples and question.
        label: the right class.
    """

    probe: int
    example: int
    prompt: str
    label: int


@dataclass(frozen=True)
class ProbeSet:
    """A probe that was read.

    Attributes:
        probe: what was asked for.
        task: its row of the table, with the prompt as it was used.
        rows: its questions.
        shown: the examples before each of them.
        pool: prompts and classes of the examples that may be shown.
    """

    probe: Probe
    task: ProbeTask
    rows: list[ProbeRow]
    shown: str
    pool: tuple[tuple[str, int], ...] = ()


def load_probe(probe: Probe, number: int = 0) -> ProbeSet:
    """Read a probe's examples and make its prompts.

    Args:
        probe: what is asked for.
        number: its number among a run's probes.

    Raises:
        InputError: an unknown task, a source that cannot be read, a record without the task's fields or with a label
            that the task does not have, or fewer examples than asked for.
    """
    task, found = _read(probe)
    examples = list(dict.fromkeys(found))  # an example that came twice could be shown and asked
    rng = random.Random(f"{probe.seed} {probe.task_name}")
    rng.shuffle(examples)
    wanted = max(probe.pool, probe.shots)
    pool = balanced(examples, wanted, task.classes)
    chosen = set(pool)
    asked = [e for e in examples if e not in chosen][: probe.examples]
    if len(pool) < probe.shots or (probe.examples is not None and len(asked) < probe.examples) or not asked:
        raise InputError(
            f"probes.{probe.title}: expected {probe.examples or 'some'} examples to ask beside {wanted} to show, but "
            f"{probe.source} has {len(examples)} in all; lower examples, shots or pool"
        )
    shown = as_shown(pool[: probe.shots], task)
    rows = [ProbeRow(number, i, shown + prompt, label) for i, (prompt, label) in enumerate(asked)]
    return ProbeSet(probe, task, rows, shown, tuple(pool))


def answer_of(task: ProbeTask, text: str) -> int:
    """The class that generated text names at its start, or -1.

    The longest word that fits decides; a word must end there ("positively" is not "positive").

    >>> answer_of(TASKS["sst2"], " Positive. I liked it"), answer_of(TASKS["sst2"], "positively")
    (1, -1)
    >>> answer_of(TASKS["mmlu"], "(C)"), answer_of(TASKS["mmlu"], "All")
    (2, -1)
    """
    said = text.strip().casefold()
    fits = [
        (len(word), number)
        for number, known in enumerate(task.words)
        for word in known
        if said.startswith(word.casefold()) and not said[len(word) : len(word) + 1].isalnum()
    ]
    return max(fits)[1] if fits else -1


def as_shown(examples: Iterable[tuple[str, int]], task: ProbeTask) -> str:
    """Examples as they stand before a question."""
    return "".join(f"{prompt} {task.words[label][0]}{BETWEEN}" for prompt, label in examples)


def balanced(examples: Sequence[tuple[str, int]], count: int, classes: int) -> list[tuple[str, int]]:
    """The first ``count`` examples taking the classes in turn; classes that run out are passed over."""
    by_class = [[e for e in examples if e[1] == c] for c in range(classes)]
    depth = max(map(len, by_class), default=0)
    turns = (by_class[c][i] for i in range(depth) for c in range(classes) if i < len(by_class[c]))
    return [example for example, _ in zip(turns, range(count), strict=False)]


def _read(probe: Probe) -> tuple[ProbeTask, list[tuple[str, int]]]:
    if isinstance(probe.task, str) and probe.task not in TASKS:
        raise InputError(
            f"probes.task: expected one of {', '.join(TASKS)}, but got {probe.task!r}; choose one, or describe a task"
        )
    if (built_in := resolve(probe.source)) is not None:
        if not isinstance(probe.task, str):
            raise InputError(
                f"probes.{probe.title}.source: expected data of the task that is described, but got {probe.source!r}, "
                "which has its own tasks only; give a .jsonl file, or 'datasets' and task.source"
            )
        task = taught_task(probe.task, built_in)
        # as many as are needed, made on the spot
        count = 1000 if probe.examples is None else min(1000, 4 * (probe.examples + max(probe.pool, probe.shots)))
        found = built_in.probe_records(probe.task, count)
        return task, [task.read(record, f"the {built_in.name}") for record in found]
    task = TASKS[probe.task] if isinstance(probe.task, str) else probe.task.task()
    reader: Callable[[Probe, ProbeTask], Iterable[tuple[str, Any]]] = (
        _jsonl if Path(probe.source).suffix == ".jsonl" else _dataset
    )
    records = list(reader(probe, task))
    examples = [task.read(record, place) for place, record in records]
    task.check_labels((record[task.label] for _, record in records), f"probes.{probe.title}: {probe.source}")
    return task, examples


def _jsonl(probe: Probe, task: ProbeTask) -> Iterable[tuple[str, Any]]:
    path = Path(probe.source).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        came = getattr(error, "strerror", None) or error
        raise InputError(
            f"probes.{probe.title}.source: expected a .jsonl file in UTF-8, but {path} is not ({came}); check the path"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"probes.{probe.title}: {path}, line {number}"
        try:
            yield place, json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: expected one JSON object a line, got ({error}); correct it") from error


def _dataset(probe: Probe, task: ProbeTask) -> Iterable[tuple[str, Any]]:
    import datasets

    name, config = task.source if probe.source == "datasets" else (probe.source, None)
    if not name:
        raise InputError(
            f"probes.{probe.title}.task.source: expected the name of a data set, since the probe's source is "
            "'datasets', but got nothing; give it, or give the probe another source"
        )
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            found: Any = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config)
        found = found[task.split] if isinstance(found, dict) else found
    except Exception as error:  # datasets raises whatever its readers and its hub client raise
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"probes.{probe.title}.source: expected 'atlas', 'datasets', a .jsonl file, or a name or folder that "
            f"datasets loads, but {probe.source!r} could not be loaded ({cause}); give a file"
        ) from error
    return ((f"probes.{probe.title}: {name}, record {number}", record) for number, record in enumerate(found, 1))
