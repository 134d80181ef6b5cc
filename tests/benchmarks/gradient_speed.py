"""Facts per second without a value search: ``python tests/benchmarks/gradient_speed.py --json out.json``.

GPT-2-small's shape with random weights, GPT-2's tokenizer, CounterFact's first facts. Beside one forward and one
backward pass per fact (what UltraEdit needs: keys and gradients of the answers at some blocks, then statistics and one
solve per block) the value search on the same facts and model, with the public templates and 20 steps, in turn.

On a GPU: ``--shape gptj-6b --dtype bfloat16 --device cuda --facts 1000 --steps 25 --layer 8 --layers 18 19 20 21 22``.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import FlopCount, counterfact, machine, median, peak_memory, side_by_side, write_json
from values import editor_on, model_of, search

from editkit.data.facts import Fact
from editkit.editors import EMMET
from editkit.functional import RunningStatistics, closed_form_update, preservation, ultraedit_residuals
from editkit.models.gradients import MAX_TOKENS, AnswerRows, answer_gradients


def gradients(editor: EMMET, facts: list[Fact], layers: list[int], max_tokens: int) -> AnswerRows:
    prompts, targets = [fact.text() for fact in facts], [fact.target_new for fact in facts]
    return answer_gradients(editor.editable, editor.tokenizer, prompts, targets, layers, max_tokens)


def solve(rows: AnswerRows, batch: int) -> None:
    """UltraEdit's statistics and changes, ``batch`` facts at a time."""
    for layer, keys in rows.keys.items():
        slopes = rows.gradients[layer]
        statistics = RunningStatistics.zeros(len(keys) + len(slopes), keys.device)
        for first in range(0, len(rows.nll), batch):
            of = ((rows.owners >= first) & (rows.owners < first + batch)).nonzero().flatten()
            statistics = statistics.updated(torch.cat([keys[:, of], slopes[:, of]]).T)
            residuals = ultraedit_residuals(keys[:, of], slopes[:, of], statistics, lr=1e-6)
            closed_form_update(keys[:, of], residuals, preservation.identity(len(keys)), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["gpt2-small", "gptj-6b"], default="gpt2-small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="of the value search")
    parser.add_argument("--layer", type=int, default=6, help="of the value search")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 7, 8], help="of the gradients")
    parser.add_argument("--max_tokens", type=int, default=MAX_TOKENS, help="tokens per batch of the gradients")
    parser.add_argument("--batch", type=int, default=100, help="facts per change")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file for the result")
    args = parser.parse_args()
    model, tokenizer = model_of(args.shape, getattr(torch, args.dtype), args.device)
    editor = editor_on(model, tokenizer, args.layer, args.steps)
    facts = counterfact(args.facts)
    rows = gradients(editor, facts, args.layers, args.max_tokens)
    search(editor, facts[:2])  # first calls choose kernels
    times = side_by_side(
        {
            "gradients": lambda: gradients(editor, facts, args.layers, args.max_tokens),
            "solve": lambda: solve(rows, args.batch),
            "search": lambda: search(editor, facts),
        },
        args.repeats,
    )
    took = {name: median(seconds) for name, seconds in times.items()}
    result: dict[str, Any] = {"machine": machine(), "arguments": vars(args), "rows": len(rows.owners)}
    result["facts_per_second"] = {name: len(facts) / seconds for name, seconds in took.items()}
    result["search_over_gradients"] = took["search"] / took["gradients"]
    result["search_over_gradients_and_solve"] = took["search"] / (took["gradients"] + took["solve"])
    for name, job in (
        ("gradients", lambda: gradients(editor, facts, args.layers, args.max_tokens)),
        ("search", lambda: search(editor, facts)),
    ):
        with peak_memory() as peak, FlopCount() as counter:
            job()
        result[f"{name}_peak_bytes"], result[f"{name}_flop_per_fact"] = peak[0], counter.total / len(facts)
    write_json(args.json, result)


if __name__ == "__main__":
    main()
