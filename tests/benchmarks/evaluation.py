"""Scores and generations per record, against the plain loop: ``python tests/benchmarks/evaluation.py --json out.json``.

GPT-2-small's shape with random weights and GPT-2's tokenizer. A record is CounterFact-shaped: one rewrite, two
paraphrases and ten neighbourhood prompts with two targets each, then ten prompts continued to 100 tokens in all, top-5.
The plain loop runs on the first few of the same records, in turn with ours; its scores are compared with ours, and our
greedy continuations with those of ``transformers`` (two samplers cannot be compared token by token).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from common import (
    FlopCount,
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
from transformers import PreTrainedTokenizerBase

from editkit.models.editable import EditableModel
from editkit.models.generation import generate
from editkit.models.scoring import score_targets

LENGTH = 100


def records_of(count: int) -> list[dict[str, Any]]:
    """As ``plain.py`` makes them of the public records."""
    raw = json.loads((shared() / "data" / "counterfact" / "counterfact-edit.json").read_text(encoding="utf-8"))
    raw = [r for r in raw if r["subject"] in r["prompt"]]
    return [
        {
            "prompts": [
                raw[i]["prompt"], raw[i]["rephrase_prompt"], raw[i + 50]["rephrase_prompt"],
                *(raw[i + 100 + j]["locality_prompt"] for j in range(10)),
            ],
            "generation_prompts": [raw[i + 13 * j]["prompt"] for j in range(10)],
            "target_new": raw[i]["target_new"],
            "target_true": raw[i]["ground_truth"],
        }
        for i in range(count)
    ]  # fmt: skip


def scores(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]]
) -> list[list[float]]:
    """Mean token NLLs, per record prompt by prompt, both targets of each: the plain loop's order."""
    pairs = [(p, t) for r in records for p in r["prompts"] for t in (r["target_new"], r["target_true"])]
    found = score_targets(editable, tokenizer, [p for p, _ in pairs], [t for _, t in pairs])
    return [part.tolist() for part in found.nll.split([2 * len(r["prompts"]) for r in records])]


def generations(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]], top_k: int = 5
) -> list[tuple[int, ...]]:
    prompts = [p for r in records for p in r["generation_prompts"]]
    lengths = [LENGTH - len(tokenizer(p)["input_ids"]) for p in prompts]
    return generate(editable, tokenizer, prompts, lengths, top_k)


def weight_bandwidth(editable: EditableModel) -> float:
    """Bytes a second at which one row goes through the blocks and the head: what reading all weights takes."""
    ids, times = torch.zeros(1, 1, dtype=torch.long, device=editable.device), []
    with torch.no_grad():
        times = [seconds(lambda: editable.model(input_ids=ids, use_cache=False)) for _ in range(10)]
    return sum(p.numel() * p.element_size() for p in editable.model.parameters()) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--records", type=int, default=32, help="records that ours scores")
    parser.add_argument("--generated", type=int, default=12, help="records that ours generates from")
    parser.add_argument("--plain_records", type=int, default=4)
    parser.add_argument("--plain_generated", type=int, default=1)
    parser.add_argument("--compared", type=int, default=10, help="greedy continuations compared with transformers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file for the result")
    args = parser.parse_args()
    plain, dtype = load_plain(), getattr(torch, args.dtype)
    model, tokenizer = gpt2_small(dtype)
    plain_model = gpt2_small()[0]
    editable, records = EditableModel(model), records_of(max(args.records, args.generated))
    scored, generated = records[: args.records], records[: args.generated]
    few, fewer = records[: args.plain_records], records[: args.plain_generated]

    counts, results = {}, {}
    for name, job in {
        "scores": lambda: scores(editable, tokenizer, scored),
        "scores, plain": lambda: plain.scores(plain_model, tokenizer, few),
        "generations": lambda: generations(editable, tokenizer, generated),
    }.items():
        with FlopCount() as flop:
            results[name] = job()
        counts[name] = flop.total
    ours, theirs = torch.tensor(results["scores"][: len(few)]), torch.tensor(results["scores, plain"])

    prompts = [p for r in generated for p in r["generation_prompts"]][:10]
    prompts = prompts[: args.compared]
    greedy = generations(editable, tokenizer, generated[:1], top_k=1)[: args.compared]
    same = 0
    for prompt, made in zip(prompts, greedy, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**ids, max_length=LENGTH, do_sample=False, pad_token_id=0)
        same += made == tuple(expected[0, ids["input_ids"].shape[1] :].tolist())

    times = side_by_side(
        {
            "scores": lambda: scores(editable, tokenizer, scored),
            "scores, plain": lambda: plain.scores(plain_model, tokenizer, few),
            "generations": lambda: generations(editable, tokenizer, generated),
            "generations, plain": lambda: plain.generations(plain_model, tokenizer, fewer),
        },
        args.repeats,
    )
    per = {"scores": scored, "scores, plain": few, "generations": generated, "generations, plain": fewer}
    a_record = {name: median(values) / len(per[name]) for name, values in times.items()}
    peak, bandwidth = matmul_peak(dtype), weight_bandwidth(editable)
    with peak_memory() as memory:
        generations(editable, tokenizer, generated)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    write_json(
        args.json,
        {
            "machine": machine(),
            "arguments": vars(args),
            "seconds_per_record": a_record,
            "times_as_fast": {n: a_record[f"{n}, plain"] / a_record[n] for n in ("scores", "generations")},
            "largest_difference_of_an_nll": float((ours - theirs).abs().max()),
            "greedy_continuations_equal_to_transformers": f"{same} of {len(prompts)}",
            "flop_per_record": {n: counts[n] / len(per[n]) for n in counts},
            "matmul_peak": peak,
            "flop_floor_seconds_per_record": {n: counts[n] / len(per[n]) / peak for n in ("scores", "generations")},
            "weight_bytes": weights,
            "bytes_per_second": bandwidth,
            "weight_reading_floor_seconds_per_record": {
                "a record at a time": LENGTH * weights / bandwidth,
                "as run": LENGTH * weights / bandwidth / len(generated),
            },
            "generation_peak_bytes": memory[0],
        },
    )


if __name__ == "__main__":
    main()
