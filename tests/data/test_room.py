"""Facts that do not fit into a context window are named, and those that just fit pass."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from editkit import Fact
from editkit.data.room import check_room
from editkit.models.spans import encode_prompts
from editkit.utils.errors import InputError

FACT = Fact("Lyon", "{} lies, as everybody knows, in the country of", "Peru", fact_id="seven")


@pytest.mark.parametrize("template", ["{}", "The century in which it was so, long ago. {}"])
def test_the_longest_row_decides_to_the_token(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    templates = ["{}", template]
    # the search runs all tokens but the last, which is only predicted
    needed = len(encode_prompts(tokenizer, [FACT], [template], "target_new")[0].ids) - 1
    check_room([FACT], tokenizer, needed, templates)
    with pytest.raises(InputError, match=rf"fact 'seven' \('Lyon', {needed} tokens\)"):
        check_room([FACT], tokenizer, needed - 1, templates)


def test_the_essence_prompt_counts_too(tokenizer: PreTrainedTokenizerBase) -> None:
    long = "What has been said before of the many things that there are: {}"
    check_room([FACT], tokenizer, 24)
    with pytest.raises(InputError, match="context window of 12 tokens"):
        check_room([Fact("Lyon", "{} is", "Peru")], tokenizer, 12, ["{}"], long)


def test_at_most_five_facts_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    facts = [Fact("Lyon", "{} is in", "Peru", fact_id=str(n)) for n in range(8)]
    with pytest.raises(InputError, match=r"8 of 8 do not: .*fact '4' \(.*\) and 3 more"):
        check_room(facts, tokenizer, 2)


def test_a_target_without_tokens_is_named(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    import editkit.data.room as room

    def without_target(*args: object, **kwargs: object) -> list[object]:
        from dataclasses import replace

        return [replace(span, target=len(span.ids)) for span in encode_prompts(*args, **kwargs)]  # type: ignore[arg-type]

    monkeypatch.setattr(room, "encode_prompts", without_target)  # as a tokenizer does that drops what it does not know
    with pytest.raises(InputError, match=r"makes no token of those of fact 'seven' \('Lyon'\)"):
        check_room([FACT], tokenizer, 256)
