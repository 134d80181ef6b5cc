"""Second moments, tokens per second, beside the plain loop: ``python tests/benchmarks/second_moments.py``.

GPT-2-small's shape with random weights, GPT-2's tokenizer, blocks 4 to 8, WikiText-2's test text in packed windows.
The plain loop, one window and one layer at a time, is timed in turn with ours. "ours" is the whole call from a cold
cache: tokenising, the pass, eigenvalues, Cholesky factors, files. "pass" is ``Trainer.predict`` alone, which is what
grows with the tokens. The floor is one forward up to the last layer's projection input and the outer products, at the
machine's matrix-product peak: once with whole products, once with the blocks on and below the diagonal only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import lightning as L
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

from editkit.covariance import SecondMomentSource, second_moments
from editkit.covariance.accumulate import SecondMoments
from editkit.data.windows import Round
from editkit.functional import SecondMomentSum
from editkit.functional.second_moment import BLOCK
from editkit.models.editable import EditableModel

LAYERS = [4, 5, 6, 7, 8]


def flops_per_token(editable: EditableModel, length: int) -> tuple[float, float]:
    """Of the forward to the last projection's input, and of the outer products that are computed."""
    module = SecondMoments(editable, LAYERS)
    d_in = editable.model.config.n_embd * 4
    module.sums = {layer: SecondMomentSum.zeros(d_in) for layer in LAYERS}
    module._rows = {layer: [] for layer in LAYERS}
    ids = torch.zeros(2, length, dtype=torch.long)
    with FlopCount() as forward:
        module._forward(Round(ids, torch.ones_like(ids), 1, 1, 1, False))
    with FlopCount() as products:
        for layer in LAYERS:
            module._flush(layer)
    return forward.total / ids.numel(), products.total / ids.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_480, help="of each of our runs")
    parser.add_argument("--plain_tokens", type=int, default=2048, help="of each plain run")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default=None, help="write the result here too")
    args = parser.parse_args()
    plain = load_plain()
    model, tokenizer = gpt2_small()
    editable = EditableModel(model)
    text = shared() / "data" / "wikitext-2" / "test.txt"
    ids = tokenizer(text.read_text(encoding="utf-8")[: 8 * args.plain_tokens])["input_ids"][: args.plain_tokens]
    windows = torch.tensor(ids).view(-1, args.length)
    passes: list[float] = []
    predict = L.Trainer.predict

    def timed(self: L.Trainer, *given: Any, **options: Any) -> Any:
        start = time.perf_counter()
        predict(self, *given, **options)
        passes.append(time.perf_counter() - start)

    L.Trainer.predict = timed  # type: ignore[method-assign]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = SecondMomentSource(
                path=folder, text=str(text), num_tokens=args.tokens, max_length=args.length, packing=True
            )
            second_moments(editable, tokenizer, LAYERS, source, progress=False)

    peak = max(matmul_peak(torch.float32), matmul_peak(torch.float32, 4096))
    seconds(ours) if args.tokens <= 4096 else None
    times = side_by_side({"plain": lambda: plain.second_moments(model, windows, LAYERS), "ours": ours}, args.repeats)
    with peak_memory() as memory:
        ours()
    forward, products = flops_per_token(editable, args.length)
    blocks = -(-3072 // BLOCK)
    whole = products / ((blocks + 1) / (2 * blocks))
    rates = {
        "plain": windows.numel() / median(times["plain"]),
        "ours": args.tokens / median(times["ours"]),
        "pass": args.tokens / median(passes[-args.repeats - 1 :]),
    }
    write_json(
        args.json,
        {
            "machine": machine(),
            "tokens": args.tokens,
            "window": args.length,
            "tokens_per_second": rates,
            "times_plain": {name: rates[name] / rates["plain"] for name in ("ours", "pass")},
            "peak_gflops": peak / 1e9,
            "mflop_per_token": {"forward": forward / 1e6, "products": products / 1e6, "whole products": whole / 1e6},
            "share_of_floor": {
                "half products": rates["pass"] * (forward + products) / peak,
                "whole products": rates["pass"] * (forward + whole) / peak,
            },
            "peak_bytes": memory[0],
            "seconds": times,
            "pass_seconds": passes,
        },
    )


if __name__ == "__main__":
    main()
