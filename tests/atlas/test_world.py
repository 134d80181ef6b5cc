"""The atlas: its records keep their promises, its text keeps held-out phrasings out, its model knows its facts."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.atlas.builtin import BuiltIn
from editkit.atlas.corpus import documents, held_out_probes
from editkit.atlas.probes import TAUGHT_TASKS, render
from editkit.atlas.world import MIN_SHARED, load_world
from editkit.data.facts import as_facts
from editkit.models.editable import EditableModel
from editkit.models.scoring import target_nll
from editkit.programs.measure_atlas import greedy_accuracy

WORLD = load_world()
TRUE = {(s.relation, s.subject): s.object for s in WORLD.statements}


def test_a_thousand_facts_of_many_relations() -> None:
    assert len(WORLD.statements) >= 1000
    assert len(WORLD.phrasings) >= 8
    assert len(set(TRUE)) == len(WORLD.statements)
    assert all(p.count("{}") == 1 for phrasings in WORLD.phrasings.values() for p in phrasings)
    assert sum(len(statements) >= 4 for statements in WORLD.by_subject.values()) > 0.9 * len(WORLD.by_subject)


@pytest.mark.parametrize("split", ["tune", "report"])
def test_records_are_counterfact_shaped(split: str) -> None:
    records = as_facts(WORLD.records(split))
    assert len({r.fact_id for r in records}) == len(records)
    for record in records:
        assert TRUE[record.relation, record.subject] == record.target_true != record.target_new  # type: ignore[index]
        assert len(record.paraphrase_prompts) == 2
        assert all(record.subject in p for p in record.paraphrase_prompts)
        assert 2 <= len(record.neighborhood_prompts) <= 10
        assert len(WORLD.sharing[record.relation, record.target_new]) >= MIN_SHARED  # type: ignore[index]
    subjects = len({r.subject for r in records})
    assert len({r.subject for r in records[:subjects]}) == subjects  # each once before any twice


def test_neighbors_share_the_object_and_are_never_edited() -> None:
    edited = {r.subject for split in ("tune", "report") for r in as_facts(WORLD.records(split))}
    for record in as_facts(WORLD.records("report")):
        before, after = record.prompt.split("{}")
        for prompt in record.neighborhood_prompts:
            neighbor = prompt.removeprefix(before).removesuffix(after)
            assert TRUE[record.relation, neighbor] == record.target_true  # type: ignore[index]
            assert neighbor not in edited


def test_splits_do_not_overlap() -> None:
    tune, report = ({r.subject for r in as_facts(WORLD.records(split))} for split in ("tune", "report"))
    assert not tune & report
    assert len(report) >= 200


def test_held_out_phrasings_never_occur_in_training() -> None:
    rng, count = random.Random(3), 0
    for subject, statements in WORLD.by_subject.items():
        held_out = [
            f"{WORLD.phrasings[s.relation][i].replace('{}', subject)} {s.object}."
            for s in statements
            for i in s.held_out
        ]
        text = " ".join(WORLD.biography(rng, subject) for _ in range(30))
        assert not any(sentence in text for sentence in held_out)
        count += len(held_out)
    assert count > 1000


def test_probes_are_balanced_and_held_out() -> None:
    seen = set(islice(documents(random.Random(1)), 5000))
    for task in TAUGHT_TASKS:
        examples = held_out_probes(task)
        assert 0.35 < sum(e["label"] for e in examples) / len(examples) < 0.65
        assert not any(render(task, e) in text for e in examples[:20] for text in seen)


def test_the_model_knows_its_facts(atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    editable, tokenizer = EditableModel(atlas[0]), atlas[1]
    rng = random.Random(0)
    for held_out in (False, True):
        asked = [(s, i) for s in WORLD.statements for i in range(12) if (i in s.held_out) == held_out]
        asked = rng.sample(asked, 300)
        prompts = [WORLD.phrasings[s.relation][i].replace("{}", s.subject) for s, i in asked]
        assert greedy_accuracy(editable, tokenizer, prompts, [s.object for s, _ in asked]) >= 98


def test_the_model_answers_probes_above_chance(atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    editable, tokenizer = EditableModel(atlas[0]), atlas[1]
    for task, setting in TAUGHT_TASKS.items():
        examples = held_out_probes(task)
        prompts = [render(task, e) for e in examples]
        first, second = (target_nll(editable, tokenizer, prompts, [word] * len(prompts)) for word in setting.labels)
        right = [(b < a) == bool(e["label"]) for a, b, e in zip(first.tolist(), second.tolist(), examples, strict=True)]
        two_errors = len(right) ** -0.5  # of a coin's share
        assert sum(right) / len(right) > 0.5 + two_errors, task


def test_the_weights_stay_small() -> None:
    assert (BuiltIn.model / "model.safetensors").stat().st_size <= 24e6
    assert Path(BuiltIn.model / "README.md").is_file()
