"""Labelled tasks: the table, pools that are balanced and never asked, and bad records in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from editkit.data.probes import BETWEEN, Probe, answer_of, load_probe
from editkit.data.task_description import TaskDescription
from editkit.data.tasks import TASKS
from editkit.utils.errors import InputError


def sentiment(count: int) -> list[dict[str, object]]:
    return [{"sentence": f"film number {i} ", "label": i % 3 // 2} for i in range(count)]  # two thirds are 0


def jsonl(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_every_task_names_each_class_once() -> None:
    for name, task in TASKS.items():
        assert name == task.name and len(task.words) == len(task.values) == task.classes
        first = [words[0] for words in task.words]
        assert len(set(first)) == task.classes and not any(w != w.strip() for w in first)
        assert task.prompt == task.prompt.rstrip() and task.main in ("accuracy", "f1", "mcc")
        for number, words in enumerate(task.words):
            assert all(answer_of(task, f" {w}\nmore") == number for w in words)


def test_entailment_is_true() -> None:
    record = {"sentence1": "A dog ran.", "sentence2": "A dog moved.", "label": 0}  # GLUE's 0 is entailment
    prompt, number = TASKS["rte"].read(record, "here")
    assert prompt == "A dog ran.\nquestion: A dog moved. True or False?\nanswer:"
    assert TASKS["rte"].words[number][0] == "True"
    assert TASKS["rte"].read({**record, "label": "not_entailment"}, "here")[1] == 1
    three = {"premise": "A.", "hypothesis": "B.", "label": 1}
    assert TASKS["nli"].words[TASKS["nli"].read(three, "here")[1]][0] == "Neither"


def test_multiple_choice_goes_through_the_same_table() -> None:
    record = {"question": "Two and two?", "choices": ["3", "4", "5", "22"], "answer": 1}
    prompt, number = TASKS["mmlu"].read(record, "here")
    assert prompt == "Question: Two and two?\n(A) 3\n(B) 4\n(C) 5\n(D) 22\nAnswer:" and number == 1
    with pytest.raises(InputError, match="field 'A'"):
        TASKS["mmlu"].read({**record, "choices": ["3"]}, "here")


def test_the_pool_is_balanced_fixed_and_never_asked(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "sst2.jsonl", sentiment(60))
    sets = {n: load_probe(Probe("sst2", source, shots=n, pool=8)) for n in (0, 1, 4, 8)}
    questions = {n: [row.prompt.removeprefix(s.shown) for row in s.rows] for n, s in sets.items()}
    assert questions[0] == questions[1] == questions[4] == questions[8] and len(questions[0]) == 52
    shown = sets[8].shown.split(BETWEEN)[:-1]
    assert Counter(s.split()[-1] for s in shown) == {"negative": 4, "positive": 4}
    assert sets[4].shown == "".join(s + BETWEEN for s in shown[:4])
    assert not {s.rsplit(" ", 1)[0] for s in shown} & set(questions[8])
    assert all("  " not in row.prompt for row in sets[8].rows)  # one space before a label, none doubled
    again = load_probe(Probe("sst2", source, shots=4, pool=8))
    assert again.rows == sets[4].rows
    other = load_probe(Probe("sst2", source, shots=4, pool=8, seed=1))
    assert other.shown != again.shown
    few = load_probe(Probe("sst2", source, examples=5, shots=4, pool=8))
    assert few.rows == sets[4].rows[:5]


def test_sources_read_alike(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "sst2.jsonl", sentiment(40))
    datasets.Dataset.from_list(sentiment(40)).save_to_disk(tmp_path / "saved")
    file, saved = (load_probe(Probe("sst2", s, shots=2)) for s in (source, str(tmp_path / "saved")))
    assert file.rows == saved.rows
    for task in ("sst2", "cola", "mrpc", "rte"):
        taught = load_probe(Probe(task, examples=10, shots=2))
        assert len(taught.rows) == 10 and taught.shown.count(BETWEEN) == 2


@pytest.mark.parametrize("task", ["sst2", "cola", "mrpc", "rte"])
def test_public_data_reads_whole(shared_file: Callable[..., Path], task: str) -> None:
    source = shared_file("glue", f"{task}.jsonl")
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    found = load_probe(Probe(task, str(source), shots=4, pool=16))
    assert len(records) - 20 <= len(found.rows) <= len(records) - 16  # an example that comes twice is asked once
    pool = load_probe(Probe(task, str(source), shots=16, pool=16)).shown.split(BETWEEN)[:-1]
    assert set(Counter(p.split()[-1] for p in pool).values()) == {8}


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_test_of_public_data_that_is_not_there_is_skipped(
    shared_file: Callable[..., Path], tmp_path: Path, folder: str
) -> None:
    with pytest.raises(pytest.skip.Exception, match="EDITKIT_SHARED"):
        shared_file("glue", "rte.jsonl", root=tmp_path / folder)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"sentence": "a", "label": 7}, ("line 3", "'label'", "0", "'positive'", "got 7", "remove")),
        ({"sentence": "a", "label": True}, ("line 3", "'label'", "got True")),
        ({"sentence": "a"}, ("line 3", "'label'", "got nothing")),
        ({"text": "a", "label": 1}, ("line 3", "'sentence'", "got nothing")),
        ([1], ("line 3", "expected an object")),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: object, told: tuple[str, ...]) -> None:
    source = jsonl(tmp_path / "bad.jsonl", [*sentiment(2), record])  # type: ignore[list-item]
    with pytest.raises(InputError) as error:
        load_probe(Probe("sst2", source))
    assert all(word in str(error.value) for word in told) and "\n" not in str(error.value)


def test_bad_probes_are_named(tmp_path: Path) -> None:
    probe = Probe("sst2", jsonl(tmp_path / "few.jsonl", sentiment(10)), pool=4)
    for bad, told in [
        (replace(probe, examples=7), "expected 7 examples to ask beside 4 to show"),
        (replace(probe, shots=10), "lower examples, shots or pool"),
        (replace(probe, task="sst3"), "expected one of sst2"),
        (replace(probe, task="mmlu", source="atlas"), "the atlas's sst2"),
        (replace(probe, source="missing.jsonl"), "check the path"),
        (replace(probe, source=str(tmp_path)), "could not be loaded"),
    ]:
        with pytest.raises(InputError, match=told):
            load_probe(bad)
    (tmp_path / "cut.jsonl").write_text('{"sentence": "a", "la', encoding="utf-8")
    with pytest.raises(InputError, match="line 1: expected one JSON object a line"):
        load_probe(replace(probe, source=str(tmp_path / "cut.jsonl")))


def test_labels_may_be_digits_in_quotes(tmp_path: Path) -> None:
    numbers = sentiment(30)
    quoted = [{**r, "label": f" {r['label']}"} for r in numbers]
    plain, strings = (
        load_probe(Probe("sst2", jsonl(tmp_path / f"{name}.jsonl", records), shots=2))
        for name, records in (("numbers", numbers), ("quoted", quoted))
    )
    assert plain.rows == strings.rows and plain.shown == strings.shown
    with pytest.raises(InputError, match=r"expected a label of task 'sst2'.*got '7'"):
        load_probe(Probe("sst2", jsonl(tmp_path / "bad.jsonl", [*numbers, {"sentence": "a", "label": "7"}])))


def pairs(labels: list[object]) -> list[dict[str, object]]:
    return [{"premise": f"It is {i}.", "hypothesis": f"{i} it is.", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("labels", [[0, 1], ["0", "1"], ["entailment", "not_entailment"]])
def test_two_class_entailment_is_sent_to_rte(tmp_path: Path, labels: list[object]) -> None:
    source = jsonl(tmp_path / "nli.jsonl", pairs(labels * 12))
    with pytest.raises(InputError, match=r"'label'.*data of two classes is task 'rte'") as error:
        load_probe(Probe("nli", source, pool=4))
    assert "\n" not in str(error.value) and "nli.jsonl" in str(error.value)
    assert len(load_probe(Probe("rte", source, pool=4)).rows) == 20


@pytest.mark.parametrize("labels", [[0, 1, 2], ["entailment", "neutral"], [0, "neutral", 0]])
def test_three_class_entailment_is_not(tmp_path: Path, labels: list[object]) -> None:
    assert len(load_probe(Probe("nli", jsonl(tmp_path / "nli.jsonl", pairs(labels * 8)), pool=2)).rows) > 0


REVIEW = TaskDescription(
    "review",
    "Review : {sentence}\nSentiment : ",
    ["negative", ["positive", "good"]],
    [[0, "negative"], [1, "positive"]],
)


def test_a_described_task_is_one_of_the_table(tmp_path: Path) -> None:
    task, known = REVIEW.task(), TASKS["sst2"]
    assert (task.prompt, task.values, task.classes, task.main) == (known.prompt, known.values, 2, "accuracy")
    source = jsonl(tmp_path / "reviews.jsonl", sentiment(60))
    found, table = (
        load_probe(Probe(t, source, pool=8, shots=4, seed=3)) for t in (REVIEW, replace(REVIEW, name="sst2"))
    )
    assert found.probe.title == "review" and len(found.rows) == 52
    assert table.rows == load_probe(Probe("sst2", source, pool=8, shots=4, seed=3)).rows  # drawn by seed and name
    assert answer_of(task, " Good.") == 1
    bare = replace(REVIEW, labels=None).task()
    assert [bare.class_of(label) for label in (0, "1", "good", "negative", 2, True)] == [0, 1, 1, 0, None, None]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": " "}, ("task.name", "give one")),
        ({"prompt": "Sentiment:"}, ("task.prompt", "at least one field in braces", "write {field}")),
        ({"prompt": "Review: {sentence"}, ("task.prompt", "fields in braces")),
        ({"prompt": "{} is"}, ("task.prompt", "got '{}'")),
        ({"prompt": "{a.b}"}, ("task.prompt", "got '{a.b}'")),
        ({"prompt": "{a:>9}"}, ("task.prompt", "got '{a:>9}'")),
        ({"prompt": "{sentence} {label}"}, ("task.prompt", "without its answer")),
        ({"words": ["one"]}, ("task.words", "two classes or more")),
        ({"words": ["one", []]}, ("task.words", "at least one value per class")),
        ({"words": [False, True]}, ("task.words", "got False", "in quotes")),
        ({"words": ["one", " "]}, ("task.words", "expected texts")),
        ({"words": ["yes", ["no", "Yes"]]}, ("task.words", "tell the classes apart", "got 'yes'")),
        ({"labels": [0, 1, 2]}, ("task.labels", "each of the 2 classes", "as many labels as words")),
        ({"labels": [0, [1, "0"]]}, ("task.labels", "tell the classes apart", "got 0")),
        ({"labels": [0, True]}, ("task.labels", "numbers or texts", "got True")),
        ({"words": ["1", "2"], "labels": None}, ("task.labels", "tell the classes apart", "got 1")),
        ({"main": "recall"}, ("task.main", "accuracy, f1, mcc", "'recall'")),
    ],
)
def test_bad_descriptions_are_named(changes: dict[str, object], told: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        replace(REVIEW, **changes).task()  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in told), str(error.value)
    assert "\n" not in str(error.value)


def test_a_described_task_needs_data_of_its_own() -> None:
    for source, told in (("atlas", "give a .jsonl file"), ("datasets", "probes.review.task.source")):
        with pytest.raises(InputError, match=told):
            load_probe(Probe(REVIEW, source))
