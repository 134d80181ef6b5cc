"""Value vectors per second, against the plain loop over facts: ``python tests/benchmarks/values.py --json out.json``.

GPT-2-small's shape with random weights, GPT-2's tokenizer, CounterFact's first facts, the public templates, 20 steps,
layer 6. The plain loop is timed on the first few of the same facts, in turn with ours, and always in float32: that is
what it is. Ours is timed in ``--dtype``; in a half precision the edits that follow are compared by their greedy words.

On a GPU: ``--shape gptj-6b --dtype bfloat16 --device cuda --facts 1000 --steps 25 --layer 8 --plain_facts 0``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from common import (
    FlopCount,
    counterfact,
    gpt2_small,
    load_plain,
    machine,
    matmul_peak,
    median,
    peak_memory,
    seconds,
    shared,
    side_by_side,
    write_json,
)
from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from editkit.covariance import SecondMomentSource, second_moments
from editkit.data.facts import Fact
from editkit.editors import EMMET, ValueSearch
from editkit.editors.closed_form.search import group_rows, search_bytes
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits
from editkit.functional import factor_second_moment
from editkit.models.generation import continue_greedily


def templates() -> list[list[str]]:
    found: list[list[str]] = json.loads((shared() / "reference" / "context_templates.json").read_text(encoding="utf-8"))
    return found


def editor_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int, steps: int, max_tokens: Any = "auto"
) -> EMMET:
    editor = EMMET(
        layers=[layer], values=ValueSearch(context_templates=templates(), num_steps=steps, max_tokens=max_tokens)
    )
    editor.attach(model, tokenizer)
    editor.configure_model()
    return editor


def search(editor: EMMET, facts: list[Fact]) -> Tensor:
    """v*, (facts, hidden)."""
    parts = [editor.find_values([[fact] for fact in facts[start : start + 256]]) for start in range(0, len(facts), 256)]
    return ValueVectors.cat(parts).values.T


def greedy_after_edit(editor: EMMET, facts: list[Fact], values: Tensor, moment: Tensor) -> list[str]:
    """The edited model's next token on each prompt; ``values`` (facts, hidden) are written by one exact solve."""
    layer, groups = editor.edited_layers[-1], tuple([fact] for fact in facts)
    editor.preserve({layer: factor_second_moment(moment)})
    edit = editor.edit_for(ValueVectors(groups, editor.searcher.keys(groups, layer), values.T.float()))
    AppliedEdits(editor.editable).apply(edit)
    return continue_greedily(editor.editable, editor.tokenizer, [f.text() for f in facts], new_tokens=1)


def model_of(shape: str, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if shape == "gpt2-small":
        model, tokenizer = gpt2_small(dtype)
        return model.to(device), tokenizer
    torch.manual_seed(0)
    with torch.device(device):
        model = GPTJForCausalLM._from_config(GPTJConfig(), dtype=dtype).eval().requires_grad_(False)
    return model, gpt2_small()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["gpt2-small", "gptj-6b"], default="gpt2-small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--plain_facts", type=int, default=3, help="facts that the plain loop is timed on; 0: none")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_tokens", default="auto", help="tokens per micro-batch")
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="only time these numbers of facts")
    parser.add_argument("--json", help="file for the result")
    args = parser.parse_args()
    dtype: torch.dtype = getattr(torch, args.dtype)
    max_tokens = args.max_tokens if args.max_tokens == "auto" else int(args.max_tokens)
    model, tokenizer = model_of(args.shape, dtype, args.device)
    editor = editor_on(model, tokenizer, args.layer, args.steps, max_tokens)
    result: dict[str, Any] = {"machine": machine(), "arguments": vars(args)}

    if args.growth:
        table = []
        search(editor, counterfact(4))
        for count in args.growth:
            facts = counterfact(count)
            with peak_memory() as peak:
                taken = seconds(lambda facts=facts: search(editor, facts))  # type: ignore[misc]
            table.append({"facts": count, "seconds_per_fact": taken / count, "peak_bytes": peak[0]})
        write_json(args.json, {**result, "growth": table})
        return

    facts = counterfact(args.facts)
    jobs = {"ours": lambda: search(editor, facts)}
    few = facts[: args.plain_facts]
    flat = [t for group in templates() for t in group]
    as_dicts = [{"subject": f.subject, "prompt": f.prompt, "target_new": f.target_new} for f in few]
    if few:
        plain, plain_model = load_plain(), gpt2_small()[0]
        jobs["plain"] = lambda: plain.values(plain_model, tokenizer, as_dicts, flat, args.layer, args.steps)
    search(editor, facts[:2])  # first calls choose kernels
    times = side_by_side(jobs, args.repeats)
    result["seconds_per_fact"] = median(times["ours"]) / len(facts)
    with peak_memory() as peak:
        values = search(editor, facts)
    with FlopCount() as counter:
        search(editor, facts)
    peak_flops = matmul_peak(dtype, device=args.device)
    result["flop_per_fact"] = counter.total / len(facts)
    result["peak_flop_per_second"] = peak_flops
    result["share_of_peak"] = result["flop_per_fact"] / peak_flops / result["seconds_per_fact"]
    result["peak_bytes"] = peak[0]
    result["stated_bound_bytes"] = sum(
        search_bytes(editor.editable, args.layer, rows)
        for rows in group_rows(tokenizer, [[f] for f in facts], flat, editor.values.kl_prompt)
    )
    if few:
        with peak_memory() as peak, FlopCount() as counter:
            theirs = plain.values(plain_model, tokenizer, as_dicts, flat, args.layer, args.steps)
        result["plain_seconds_per_fact"] = median(times["plain"]) / len(few)
        result["plain_flop_per_fact"] = counter.total / len(few)
        result["plain_peak_bytes"] = peak[0]
        result["ratio"] = result["plain_seconds_per_fact"] / result["seconds_per_fact"]
        result["value_error"] = float(((values[: len(few)] - theirs).norm(dim=1) / theirs.norm(dim=1)).max())
    if dtype != torch.float32 and args.shape == "gpt2-small":
        single_model, _ = gpt2_small()
        single = editor_on(single_model, tokenizer, args.layer, args.steps)
        exact = search(single, facts)
        text = SecondMomentSource(text=str(shared() / "data" / "wikitext-2" / "test.txt"), num_tokens=8192)
        moment = second_moments(single.editable, tokenizer, [args.layer], text, progress=False)[args.layer]
        unedited = [
            continue_greedily(e.editable, tokenizer, [f.text() for f in facts], new_tokens=1) for e in (single, editor)
        ]
        result["same_greedy_token_unedited"] = sum(a == b for a, b in zip(*unedited, strict=True)) / len(facts)
        words = greedy_after_edit(single, facts, exact, moment)
        half = greedy_after_edit(editor, facts, values, moment)
        result["value_error_to_float32"] = float(((values - exact).norm(dim=1) / exact.norm(dim=1)).max())
        result["same_greedy_token"] = sum(a == b for a, b in zip(words, half, strict=True)) / len(facts)
        result["target_is_greedy"] = {
            name: sum(f" {fact.target_new}".startswith(w) for fact, w in zip(facts, found, strict=True)) / len(facts)
            for name, found in (("float32", words), (args.dtype, half))
        }
    write_json(args.json, result)


if __name__ == "__main__":
    main()
