"""Scores and generations of many rows at once equal one row at a time, on every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.models.editable import EditableModel
from editkit.models.generation import generate
from editkit.models.scoring import agreement, score_targets, shared_groups, window_nll


class Numbers:
    """A tokenizer whose words are token ids."""

    is_fast = True
    eos_token_id = 2

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[object]]]:
        rows: dict[str, list[list[object]]] = {"input_ids": [], "offset_mapping": [], "special_tokens_mask": []}
        for text in texts:
            words, at, offsets = text.split(), 0, []
            for word in words:
                at = text.index(word, at)
                offsets.append((at, at + len(word)))
                at += len(word)
            rows["input_ids"].append([int(w) for w in words])
            rows["offset_mapping"].append(offsets)  # type: ignore[arg-type]
            rows["special_tokens_mask"].append([0] * len(words))
        return rows


def random_texts(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [" ".join(map(str, torch.randint(3, 90, (n,), generator=generator).tolist())) for n in lengths]


def plain_scores(model: PreTrainedModel, prompt: str, target: str) -> tuple[float, tuple[int, ...]]:
    """Total NLL and teacher-forced argmax of one row, by its whole unpadded forward."""
    head, tail = ([int(w) for w in text.split()] for text in (prompt, target))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].float()
    nll = -logits.log_softmax(-1)[torch.arange(len(tail)), torch.tensor(tail)].sum()
    return float(nll), tuple(logits.argmax(-1).tolist())


def plain_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int, end: int) -> tuple[int, ...]:
    """Greedy tokens of one row, its whole text run anew for each."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == end:
            break
        ids.append(best)
    return tuple(ids[len(prompt) :])


def test_scores_equal_a_row_at_a_time(build_model: Callable[..., PreTrainedModel], family_name: str) -> None:
    model = build_model(family_name)
    shots = random_texts(1, 20, 20, seed=5)[0]
    prompts = [*random_texts(4, 1, 9, seed=6), *(f"{shots} {t}" for t in random_texts(3, 1, 6, seed=7))]
    targets = random_texts(3, 1, 4, seed=8)
    pairs = [(p, t) for p in prompts for t in targets] * 2
    for budget in (8192, 40):
        found = score_targets(EditableModel(model), Numbers(), *map(list, zip(*pairs, strict=True)), max_tokens=budget)  # type: ignore[arg-type]
        assert bool(found.fits.all())
        for (prompt, target), total, predicted in zip(pairs, found.total.tolist(), found.predicted, strict=True):
            expected, best = plain_scores(model, prompt, target)
            assert total == pytest.approx(expected, abs=1e-4)
            assert predicted == best


def test_generations_equal_a_row_at_a_time(build_model: Callable[..., PreTrainedModel], family_name: str) -> None:
    model = build_model(family_name)
    prompts = random_texts(9, 1, 12, seed=9)
    lengths = [3, 14, 14, 1, 9, 14, 14, 5, 0]
    for rows in (None, 4):
        found = generate(EditableModel(model), Numbers(), prompts, lengths, max_rows=rows)  # type: ignore[arg-type]
        for prompt, length, made in zip(prompts, lengths, found, strict=True):
            assert made == plain_greedy(model, [int(w) for w in prompt.split()], length, end=2)


def test_samples_do_not_depend_on_the_batch(build_model: Callable[..., PreTrainedModel]) -> None:
    editable, prompts = EditableModel(build_model("llama")), random_texts(8, 2, 9, seed=3)
    options = {"new_tokens": 12, "top_k": 5, "seed": 4}
    together = generate(editable, Numbers(), prompts, **options)  # type: ignore[arg-type]
    alone = [generate(editable, Numbers(), [p], **options)[0] for p in prompts]  # type: ignore[arg-type]
    assert together == alone
    assert together != generate(editable, Numbers(), prompts, **options | {"seed": 5})  # type: ignore[arg-type]
    twice = generate(editable, Numbers(), [prompts[0]] * 2, **options)  # type: ignore[arg-type]
    assert twice[0] == together[0] != twice[1]


def test_samples_follow_the_models_probabilities(build_model: Callable[..., PreTrainedModel]) -> None:
    model, count = build_model("gpt2", initializer_range=0.5), 4000
    made = generate(EditableModel(model), Numbers(), ["7 8 9"] * count, 1, top_k=3)  # type: ignore[arg-type]
    logits = model(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -1]
    best, index = logits.topk(3)
    for token, share in zip(index.tolist(), best.softmax(-1).tolist(), strict=True):
        times = sum(m == ((token,) if token != 2 else ()) for m in made)
        assert times / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5 + 1e-9)


def test_rows_longer_than_the_context_window_are_left_out(build_model: Callable[..., PreTrainedModel]) -> None:
    editable = EditableModel(build_model("gpt2"))  # 64 positions
    long, short = random_texts(1, 64, 64, seed=2)[0], "5 6 7"
    found = score_targets(editable, Numbers(), [long, short, short], ["9", "9", f"9 {long}"])  # type: ignore[arg-type]
    assert found.fits.tolist() == [False, True, False]
    assert found.nll.isnan().tolist() == [True, False, True]
    assert found.predicted[0] == () and found.matches.isnan().tolist() == [True, False, True]
    made = generate(editable, Numbers(), [long, " ".join(["7"] * 60), short], 30, top_k=5)  # type: ignore[arg-type]
    assert not made[0] and len(made[1]) <= 4 and len(made[2]) > 4


def test_text_likelihood_equals_the_plain_loss(build_model: Callable[..., PreTrainedModel]) -> None:
    model = build_model("llama")
    windows = [tuple(int(w) for w in t.split()) for t in random_texts(6, 2, 20, seed=1)]
    found = window_nll(EditableModel(model), windows, max_tokens=45)
    for window, nll in zip(windows, found.tolist(), strict=True):
        ids = torch.tensor([window])
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids).loss
        assert nll == pytest.approx(float(mean) * (len(window) - 1), rel=1e-5)


def test_a_stranger_does_not_shorten_what_the_others_share() -> None:
    shots = tuple(range(3, 63))
    rows = [(*shots, n) for n in range(70, 80)]
    groups = dict(shared_groups([*rows, (*shots[:17], 80, 81)]))
    assert sorted(groups) == [0, 60] and len(groups[60]) == 10


def test_words_of_the_atlas_equal_transformers_own(atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = atlas
    prompts = ["The capital of France is", "The dog", "Alan Turing was born in the city of"]
    for prompt, made in zip(prompts, generate(EditableModel(model), tokenizer, prompts, 20), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        assert made == tuple(t for t in expected[0, ids["input_ids"].shape[1] :].tolist() if t)
    assert agreement([(1, 2)], [(1, 2)]).item() == 1
