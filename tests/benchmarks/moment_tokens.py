"""Editing scores against the tokens behind C, on the atlas: ``python tests/benchmarks/moment_tokens.py``.

64 facts of the report split in one batch at the quickstart's settings. The value vectors are found once; only C
changes. At weight 30 EMMET with ridge 1 and MEMIT are one edit; ρ = 0 is EMMET's exact solution.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from editkit.atlas.world import load_world
from editkit.covariance import SecondMomentSource, factored_second_moments
from editkit.data.facts import as_facts
from editkit.editors import ValueSearch
from editkit.functional import FactoredSecondMoment
from editkit.programs.measure_atlas import SCORES, Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=64)
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 2, 5, 10, 30, 100], help="tokens over d_in")
    parser.add_argument("--seeds", type=int, default=3, help="texts that each size is tried with")
    parser.add_argument("--json", default=None, help="write the rows here too")
    args = parser.parse_args()
    values = ValueSearch(num_steps=30, clamp=5.0, decay=0.0, loss_threshold=0.005)
    bench = Bench(0, as_facts(load_world().records("report")[: args.facts]), values)
    batch = [torch.arange(args.facts)]

    def moments(multiple: int, seed: int) -> FactoredSecondMoment:
        source = SecondMomentSource(num_tokens=multiple * len(bench.keys), seed=seed)
        return factored_second_moments(bench.editable, bench.editor.tokenizer, [0], source, progress=False)[0]

    last = moments(args.multiples[-1], 0).factor
    reference = last @ last.T
    rows: list[dict[str, Any]] = []
    for multiple in args.multiples:
        for rho in (30.0, 0.0):
            found = []
            for seed in range(args.seeds):
                bench.moment = moments(multiple, seed)
                moment = bench.moment.factor @ bench.moment.factor.T
                off = float((moment - reference).norm() / reference.norm())
                scores, norm = bench.scores(batch, rho)
                found.append([*(scores[name] for name in SCORES), norm, off])
            mean = torch.tensor(found).mean(0).tolist()
            rows.append({"tokens/d_in": multiple, "rho": rho, **dict(zip((*SCORES, "norm", "off"), mean, strict=True))})
    print("| tokens / d_in | ρ | ES | PS | NS | S | ‖Δ‖/‖W‖ | ‖C − C₁₀₀‖/‖C₁₀₀‖ |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = " | ".join(f"{row[name]:.1f}" for name in SCORES)
        print(f"| {row['tokens/d_in']} | {row['rho']:g} | {cells} | {row['norm']:.2f} | {row['off']:.3f} |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
