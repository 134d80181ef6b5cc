"""The path along which a ridge was chosen, as a table and a plot beside the ledger."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editkit.utils.files import atomic_write


def write_path(folder: Path, table: Sequence[dict[str, float]], chosen: float) -> None:
    """Write ``ridge_path.csv`` and ``ridge_path.png``.

    Args:
        folder: the ledger's.
        table: rows of rho, the scores there and the norm of the weight change.
        chosen: the ρ that was taken.
    """

    def write_table(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)

    atomic_write(folder / "ridge_path.csv", write_table, "edits")
    figure = plot_path(table, chosen)
    atomic_write(folder / "ridge_path.png", lambda part: figure.savefig(part, format="png", dpi=150), "edits")


def plot_path(table: Sequence[dict[str, float]], chosen: float) -> Any:
    """The scores along the path as a matplotlib figure, with the chosen ridge marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rhos = [row["rho"] for row in table]
    for name in ("ES", "PS", "NS", "S"):
        if name in table[0]:
            axes.plot(rhos, [row[name] for row in table], label=name, marker="o", lw=2.5 if name == "S" else 1.2, ms=3)
    axes.axvline(chosen, color="0.6", ls="--", lw=1)
    axes.annotate(f"ρ = {chosen:.3g}", (chosen, 104), ha="center", va="bottom", annotation_clip=False, color="0.4")
    axes.set(xscale="log", xlabel="ridge ρ", ylabel="score on the tuning batch (0–100)", ylim=(0, 103))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # where it hides no point
    axes.spines[["top", "right"]].set_visible(False)
    return figure
