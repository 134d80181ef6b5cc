"""The solver alone beside the inverse route, time and peak memory: ``python tests/benchmarks/solver.py``.

10,000 facts at d_in = 6,400 and d_out = 1,600 (GPT2-XL's shape) in float64, C and keys drawn at random. Timed in turn:

- ours: ``memit_update`` from C itself, its Cholesky factorisation included;
- factored: the same from a ``FactoredSecondMoment``, as in a run, where C is factored once;
- inverse: the update as printed (Gupta et al. 2024, eq. 10, with αI added to D), by inverses of C and D;
- path: ``ridge_path`` and the updates of ten ridges, as factors; and, as one that has to be written into a weight
  is dense, the same with each multiplied out;
- factors: the same ten dense updates without an eigendecomposition, by one Cholesky factorisation for each ridge of
  the one system (primal only).

``--quick`` takes a quarter of each size, in seconds instead of minutes. CPU seconds are given beside the clock's: with
OMP_NUM_THREADS=1 they are what a machine that does nothing else would take, and the ratios are made of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, median, peak_memory, side_by_side, write_json
from torch import Tensor

from editkit.functional import LowRankDelta, factor_second_moment, memit_update, ridge_path
from editkit.functional.solve import primal_system, solve_factored

RIDGES = 10


def inverse_route(keys: Tensor, residuals: Tensor, moment: Tensor, rho: float) -> Tensor:
    """R (D + αI)⁻¹ Kᵀ C⁻¹ with D = Kᵀ C⁻¹ K, products in the order of the formula."""
    inverse = torch.linalg.inv(moment)
    system = keys.T @ inverse @ keys
    system.diagonal().add_(rho)
    return residuals @ (torch.linalg.inv(system) @ keys.T @ inverse)


def draw(facts: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, residuals and a moment of condition number 4e3."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 0.5, d_in, dtype=torch.float64)[:, None]
    samples = torch.randn(d_in, 2 * d_in, generator=generator, dtype=torch.float64) * scale
    moment = samples @ samples.T / (2 * d_in)
    keys = torch.randn(d_in, facts, generator=generator, dtype=torch.float64) * scale
    return keys, torch.randn(d_out, facts, generator=generator, dtype=torch.float64), moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=10_000)
    parser.add_argument("--d_in", type=int, default=6_400)
    parser.add_argument("--d_out", type=int, default=1_600)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a quarter of each size")
    parser.add_argument("--only", nargs="*", help="these jobs only")
    parser.add_argument("--json", help="file for the result")
    args = parser.parse_args()
    sizes = [n // 4 if args.quick else n for n in (args.facts, args.d_in, args.d_out)]
    keys, residuals, moment = draw(*sizes)
    factored = factor_second_moment(moment)
    rho = float(keys.shape[1])

    def path(dense: bool) -> None:
        found = ridge_path(keys, residuals, factored)
        for ridge in found.grid(RIDGES):
            delta = found.delta(ridge)
            if dense:
                delta.dense()

    def factors(ridges: list[float]) -> None:
        system, together = primal_system(factored.factor, keys, residuals)
        for ridge in ridges:
            shifted = system.clone()
            shifted.diagonal().add_(ridge)
            solved = solve_factored(together, torch.linalg.cholesky(shifted))
            torch.linalg.solve_triangular(factored.factor, solved, upper=False, left=False)

    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: memit_update(keys, residuals, moment, rho),
        "factored": lambda: memit_update(keys, residuals, factored, rho),
        "inverse": lambda: inverse_route(keys, residuals, moment, rho),
        "path": lambda: path(False),
        "path, dense": lambda: path(True),
    }
    if sizes[0] > sizes[1]:
        jobs["factors"] = lambda: factors([rho * 2**i for i in range(RIDGES)])
    jobs = {name: job for name, job in jobs.items() if not args.only or name in args.only}
    memory: dict[str, int] = {}
    updates: dict[str, Any] = {}
    cpu: dict[str, list[float]] = {}

    def watched(name: str) -> Callable[[], Any]:
        def job() -> None:
            with peak_memory() as peak:
                start = time.process_time()
                found = jobs[name]()
                cpu.setdefault(name, []).append(time.process_time() - start)
            updates[name] = found.dense() if isinstance(found, LowRankDelta) else found
            memory[name] = max(memory.get(name, 0), peak[0])

        return job

    small = [t[:64, :64].contiguous() for t in (keys, residuals)]
    memit_update(*small, moment[:64, :64], rho)  # first calls choose kernels
    times = side_by_side({name: watched(name) for name in jobs}, args.repeats)
    spent = {name: median(found) for name, found in cpu.items()}
    result: dict[str, Any] = {
        "machine": machine(),
        "facts": sizes[0],
        "d_in": sizes[1],
        "d_out": sizes[2],
        "seconds": {name: median(found) for name, found in times.items()},
        "cpu_seconds": spent,
        "peak_bytes": memory,
    }
    if {"ours", "inverse"} <= set(jobs):
        result["times_as_fast_as_the_inverse_route"] = spent["inverse"] / spent["ours"]
        result["relative_difference"] = float((updates["ours"] - updates["inverse"]).norm() / updates["inverse"].norm())
    for name in {"path", "path, dense", "factors"} & set(jobs):
        if "factored" in jobs:
            result[f"{name}: cost in solves"] = spent[name] / spent["factored"]
    write_json(args.json, result)


if __name__ == "__main__":
    main()
