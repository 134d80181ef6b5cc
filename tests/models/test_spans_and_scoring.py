"""Lookup tokens and targets under different tokenisers, and likelihoods against a plain computation."""

from __future__ import annotations

import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from editkit.data.facts import Fact
from editkit.models.editable import EditableModel
from editkit.models.generation import continue_greedily
from editkit.models.scoring import target_nll
from editkit.models.spans import encode, encode_prompts, length_batches
from editkit.utils.errors import InputError

TEXTS = ["The mother tongue of Danielle Darrieux is English", "New York City's mayor speaks Brazilian Portuguese"] * 3
PROMPTS = ["The mother tongue of Danielle Darrieux is", "New York City's mayor speaks", "Paris"]
TARGETS = ["English", "Brazilian Portuguese", "is a city"]


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama's: a marker for the leading space, BOS in front."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(
        [*TEXTS, *PROMPTS, *TARGETS],
        trainers.BpeTrainer(vocab_size=180, special_tokens=["<unk>", "<s>"], initial_alphabet=list(string.printable)),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(params=["byte-level", "metaspace with BOS"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return tokenizer if request.param == "byte-level" else metaspace()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The mother tongue of {} is", "Danielle Darrieux"),
        ("{}'s mayor speaks", "New York City"),  # the subject's end may merge with what follows
        ("{}", "Paris"),
        ("In ({}), people", "New York City"),
    ],
)
def test_the_lookup_token_ends_the_subject(any_tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str) -> None:
    fact = Fact(subject=subject, prompt=prompt, target_new="Brazilian Portuguese")
    for template in ("{}", "It was late. {}"):
        (span,) = encode_prompts(any_tokenizer, [fact], [template], target="target_new")
        whole = template.replace("{}", fact.text()).rstrip() + " Brazilian Portuguese"
        at = whole.index(subject) + len(subject) - 1
        start, end = any_tokenizer(whole, return_offsets_mapping=True)["offset_mapping"][span.lookup]
        assert start <= at < end
        assert any_tokenizer.decode(span.ids[span.target :]).strip() == "Brazilian Portuguese"
        assert any_tokenizer.decode(span.ids[: span.target], skip_special_tokens=True).strip() == whole[:-21].strip()
        (short,) = encode_prompts(any_tokenizer, [fact], [template])
        assert short.ids == span.ids[: span.lookup + 1]


def test_likelihoods_equal_a_plain_computation(any_tokenizer: PreTrainedTokenizerBase) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=len(any_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain = []
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        ids = any_tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
        count = ids.shape[1] - len(any_tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        plain.append(-log_probs.gather(1, ids[0, 1:, None])[-count:].mean())
    for budget in (8192, 1):  # all rows in one padded batch, and each alone
        found = target_nll(EditableModel(model), any_tokenizer, PROMPTS, TARGETS, max_tokens=budget)
        torch.testing.assert_close(found, torch.stack(plain), rtol=1e-5, atol=1e-5)
    twice = target_nll(EditableModel(model), any_tokenizer, PROMPTS * 2, TARGETS * 2)
    assert torch.equal(twice[:3], twice[3:])


def test_greedy_words_equal_generate(atlas: tuple[torch.nn.Module, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = atlas
    prompts = ["The capital of France is", "The dog"]
    words = continue_greedily(EditableModel(model), tokenizer, prompts, new_tokens=5)  # type: ignore[arg-type]
    for prompt, said in zip(prompts, words, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        assert tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).startswith(said)


def test_length_batches_keep_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 2, 7]
    batches = length_batches(lengths, 12)
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert all(len(b) * max(lengths[i] for i in b) <= 12 for b in batches)


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="fast tokenizer"):
        encode(Slow(), ["text"])  # type: ignore[arg-type]
