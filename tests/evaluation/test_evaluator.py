"""What is measured of a model equals a plain computation, row by row, for every tokeniser and protocol."""

from __future__ import annotations

import logging
import string
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from editkit.atlas.builtin import BuiltIn
from editkit.data.facts import Fact
from editkit.data.fitting import fits, fitted
from editkit.data.held_out import HeldOutText, text_rows
from editkit.data.plan import Measurement
from editkit.data.probes import Probe, ProbeRow, ProbeSet, load_probe
from editkit.data.rows import TextRow, evaluation_rows, generation_rows
from editkit.data.tasks import TASKS
from editkit.evaluation.evaluator import EditResult, Evaluator, in_order
from editkit.evaluation.protocol import Protocol, words
from editkit.evaluation.records import from_record, to_record
from editkit.evaluation.results import RunResults
from editkit.evaluation.scores import FactScores
from editkit.functional.generation import generation_entropy
from editkit.models.editable import EditableModel

FACTS = [
    Fact(
        "Danielle Darrieux", "The mother tongue of {} is", "English", "French",
        paraphrase_prompts=("Where {} is from, people speak",), neighborhood_prompts=("The mother tongue of Paris is",),
        generation_prompts=("{} is known for", "{} was born in"), reference_texts=("English is spoken by people",),
        fact_id="a",
    ),
    Fact(
        "New York City", "{}'s mayor speaks", "Brazilian Portuguese", "old English",
        unrelated_prompts=("who sang it",), unrelated_answers=("a mayor of Paris",), fact_id="b",
    ),
    Fact("Paris", "{}", "is a city", fact_id="c"),
]  # fmt: skip


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama's: a marker for the leading space, BOS in front."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    texts = [f.text() + " " + f.target_new for f in FACTS]
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], initial_alphabet=list(string.printable)),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(params=["byte-level, padded right", "metaspace with BOS, padded left"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    found = tokenizer if request.param.startswith("byte") else metaspace()
    found.padding_side = request.param.split()[-1]
    return found


@pytest.fixture
def subject(build_model: Callable[..., PreTrainedModel], any_tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    model = build_model("llama", vocab_size=len(any_tokenizer), max_position_embeddings=128, eos_token_id=None)
    return Evaluator(EditableModel(model), any_tokenizer, Protocol())


def plain(subject: Evaluator, prompt: str, target: str) -> tuple[torch.Tensor, list[int], list[int]]:
    """Token log-probabilities of a target, its tokens, and the argmax at their places: one unpadded row."""
    ids = subject.tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    count = ids.shape[1] - len(subject.tokenizer(prompt)["input_ids"])
    count -= subject.tokenizer.convert_ids_to_tokens(int(ids[0, -count])) == "▁"  # a space alone is not of the target
    logits = subject.editable.model(input_ids=ids).logits[0, :-1].float()
    log_probs = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[-count:, 0]
    return log_probs, ids[0, -count:].tolist(), logits.argmax(-1)[-count:].tolist()


def share(predicted: list[int], wanted: list[int]) -> float:
    return sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(wanted)


@pytest.mark.parametrize("likelihood", ["mean", "total"])
def test_edits_equal_a_plain_computation(subject: Evaluator, likelihood: str) -> None:
    subject = replace(subject, protocol=replace(Protocol(), likelihood=likelihood))
    rows = evaluation_rows(FACTS, [0, 1, 2])
    assert [(r.fact, r.kind) for r in rows] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 3), (2, 0)]
    for result in subject.edits(rows):
        row = result.row
        for target, nll in ((row.target_new, result.nll_new), (row.target_true, result.nll_true)):
            if target is None:
                assert nll != nll
                continue
            log_probs = plain(subject, row.prompt, target)[0]
            expected = -(log_probs.mean() if likelihood == "mean" else log_probs.sum())
            assert nll == pytest.approx(float(expected), abs=1e-4)
        _, wanted, predicted = plain(subject, row.prompt, row.wanted or row.target_new)
        assert list(result.predicted) == predicted and result.share == pytest.approx(share(predicted, wanted))
        alone = subject.edits([row])[0]
        assert alone.predicted == result.predicted and alone.nll_new == pytest.approx(result.nll_new, abs=1e-5)
        whole = subject.tokenizer(f"{row.prompt} {row.wanted or row.target_new}", return_tensors="pt")["input_ids"]
        head = whole[:, : -len(wanted)]  # a tokenizer may give the space a token of its own
        said = subject.editable.model.generate(head, max_new_tokens=len(wanted), do_sample=False, pad_token_id=0)  # type: ignore[operator]
        assert subject.tokenizer.decode(said[0, head.shape[1] :]).startswith(result.greedy)


def test_neighbourhood_against_gold_or_against_the_original(subject: Evaluator) -> None:
    rows = evaluation_rows(FACTS, [0, 1, 2])
    gold = subject.edits(rows)
    agreeing = replace(subject, protocol=Protocol.named("easyedit"))
    before = agreeing.edits(rows)
    others = [i for i, r in enumerate(rows) if r.kind in (2, 3)]
    assert [before[i].share for i in others] == [1.0] * len(others)  # with itself
    assert [r.share for i, r in enumerate(before) if i not in others] == [
        r.share for i, r in enumerate(gold) if i not in others
    ]
    original = {r.key: tuple(t + 1 for t in r.predicted) for r in before}
    after = replace(agreeing, baseline=original).edits(rows)
    assert [after[i].share for i in others] == [0.0] * len(others)
    unknown = replace(agreeing, baseline={}).edits(rows)
    scores = FactScores()
    scores.update(unknown)
    assert "NA" not in scores.results() and "EA" in scores.results()  # not known is absent, not 0 or 100


def test_metrics_without_rows_are_absent(subject: Evaluator) -> None:
    scores = FactScores()
    scores.update(subject.edits(evaluation_rows([FACTS[2]], [0])))
    assert set(scores.results()) == {"EA", "EA_token"}
    scores.reset()
    scores.update(subject.edits(evaluation_rows([FACTS[1]], [0])))
    found = scores.results()
    assert {"ES", "EM", "UA", "UA_token"} <= set(found) and not {"PS", "NS", "S", "GE"} & set(found)


def test_generated_texts_and_their_entropy(subject: Evaluator) -> None:
    rows = generation_rows(FACTS, [0, 1, 2], times=2)
    assert [(r.fact, r.number) for r in rows] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    protocol = replace(Protocol(), generation_length=20)
    results = replace(subject, protocol=protocol).generations(rows)
    whole = replace(subject, protocol=replace(protocol, entropy_over="text")).generations(rows)
    longer = replace(subject, protocol=replace(protocol, length_counts="continuation")).generations(rows)
    for result, text, more in zip(results, whole, longer, strict=True):
        assert result.text == text.text and more.text.startswith(result.text[:10])
        assert result.entropy == pytest.approx(generation_entropy(words(result.text)))
        assert text.entropy == pytest.approx(generation_entropy(words(text.row.prompt + text.text)))
        made = len(subject.tokenizer(result.row.prompt)["input_ids"])
        assert len(more.text) > len(result.text) and made < 20
    assert results[0].text != results[1].text  # the same prompt, drawn twice
    alone = replace(subject, protocol=protocol).generations(rows[2:3])
    assert alone[0].text == results[2].text  # a draw does not depend on what else is generated
    scores = FactScores()
    scores.update(results)
    assert scores.results()["GE"]["mean"] == pytest.approx(sum(r.entropy for r in results) / 4, rel=1e-5)
    assert 0 <= scores.results()["RS"]["mean"] <= 100


@pytest.mark.parametrize("scored", ["likelihood", "generation", "both"])
def test_probes_are_answered(atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase], scored: str) -> None:
    probe = load_probe(Probe("sst2", examples=12, shots=2, scored=scored))  # type: ignore[arg-type]
    subject = Evaluator(EditableModel(atlas[0]), atlas[1], Protocol(), [probe])
    for result in subject.answers(probe.rows):
        if scored != "generation":
            nll = [-float(plain(subject, result.row.prompt, w[0])[0].mean()) for w in probe.task.words]
            assert result.nll == pytest.approx(nll, abs=1e-4)
            assert result.predicted == nll.index(min(nll)) == result.row.label  # the atlas knows this task
        if scored != "likelihood":
            assert result.answer == result.row.label and result.text is not None
        assert (result.predicted is None) == (scored == "generation")
        assert (result.answer is None) == (scored == "likelihood")


@pytest.mark.parametrize("scored", ["likelihood", "generation", "both"])
def test_a_probe_knows_what_will_fit(
    atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch, scored: str
) -> None:
    probe = load_probe(Probe("mrpc", examples=30, shots=2, scored=scored))  # type: ignore[arg-type]
    lengths = sorted(len(atlas[1](row.prompt)["input_ids"]) for row in probe.rows)
    subject = Evaluator(EditableModel(atlas[0]), atlas[1], Protocol(), [probe])
    monkeypatch.setattr(EditableModel, "context", lengths[15] + 5)
    expected = [result.fits for result in subject.answers(probe.rows)]
    assert fits(probe, atlas[1], lengths[15] + 5) == expected and len(set(expected)) == 2


def test_rows_that_do_not_fit_are_counted(subject: Evaluator) -> None:
    long = Fact("Paris", "{} " + "is a city in a city " * 40, "English", "French", fact_id="long",
                generation_prompts=("{} is " * 80,))  # fmt: skip
    results = [*subject.edits(evaluation_rows([FACTS[0], long], [0, 1]))]
    results += subject.generations(generation_rows([long], [1]))  # type: ignore[arg-type]
    assert [r.fits for r in results] == [True, True, True, False, False]
    scores, expected = FactScores(), FactScores()
    scores.update(results)
    expected.update(results[:3])
    assert scores.skipped == 2 and scores.results(intervals=False) == expected.results(intervals=False)


def test_long_texts_bring_no_warning_of_the_tokenizer_s(
    build_model: Callable[..., PreTrainedModel], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's own says that indexing errors follow, once in its life, and not of which text."""
    tokenizer = AutoTokenizer.from_pretrained(BuiltIn.model, model_max_length=16)  # a new one: it warns only once
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = EditableModel(build_model("llama", vocab_size=len(tokenizer), max_position_embeddings=16))
    fact = replace(FACTS[0], generation_prompts=("{} is " * 9,), paraphrase_prompts=("{} is a city " * 9,))
    sentences = [{"sentence": "it is so " * 9 + str(i), "label": i % 2} for i in range(4)]
    examples = [TASKS["sst2"].read(record, "here") for record in sentences]
    rows = [ProbeRow(0, i, *example) for i, example in enumerate(examples)]
    probe = ProbeSet(Probe("sst2", scored="both", shots=1), TASKS["sst2"], rows, "", tuple(examples))
    source = HeldOutText(max_length=16, num_tokens=64)
    subject = Evaluator(
        model, tokenizer, replace(Protocol(), entropy_over="text", length_counts="continuation"), [probe]
    )
    results = [*subject.edits(evaluation_rows([fact], [0])), *subject.generations(generation_rows([fact], [0]))]
    results += [*subject.answers(fitted(probe, tokenizer, 16).rows), *subject.texts(text_rows(source, tokenizer, 16))]
    assert sum(not r.fits for r in results) >= 6
    assert not [r.getMessage() for r in caplog.records if "indexing errors" in r.getMessage()]
    tokenizer("it is so " * 9)
    assert [r for r in caplog.records if "indexing errors" in r.getMessage()]  # else nothing was tested here


def test_results_survive_the_records(atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    probes = [load_probe(Probe("cola", examples=3, scored="both"))]
    subject = Evaluator(EditableModel(atlas[0]), atlas[1], replace(Protocol(), generation_length=12), probes)
    results = [
        *subject.edits(evaluation_rows(FACTS, range(3))), *subject.generations(generation_rows(FACTS, range(3))),
        *subject.answers(probes[0].rows), *subject.texts([TextRow(0, (5, 6, 7)), TextRow(1, (8, 9))]),
    ]  # fmt: skip
    assert in_order(reversed(results)) == in_order(results)
    first, second = RunResults(FACTS, probes), RunResults(FACTS, probes)
    first.add(results, Measurement({"before": range(3)}))
    second.take(first.records)
    assert second.metrics(Protocol()) == first.metrics(Protocol()) and second.records == first.records
    index, numbers = {"a": 0, "b": 1, "c": 2}, {"cola": 0}
    for result in results:
        back = from_record(to_record(result, FACTS, probes), FACTS, index, numbers)
        assert to_record(back, FACTS, probes) == to_record(result, FACTS, probes)  # type: ignore[arg-type]
    edits = {r.key: r.predicted for r in results if isinstance(r, EditResult)}
    assert second.baseline == edits
