"""The path of a model's other abilities over a run's batches of edits: a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from editkit.evaluation.results import Point
from editkit.utils.files import atomic_write

CSV, PNG = "probes.csv", "probes.png"


def write_path(folder: Path, points: Sequence[Point], main: dict[str, str], edits: Sequence[int], title: str) -> None:
    """Write ``probes.csv`` (a row per probe, metric and time, also for questions that were skipped) and ``probes.png``.

    Args:
        folder: where.
        points: the measured times, in order.
        main: per probe the metric to draw; others are in the table only.
        edits: per batch of edits, the number of facts edited when it is done.
        title: of the picture.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["phase", "batch", "edits", "probe", "metric", "mean", "low", "high"])
    for point in points:
        batch, done = _place(point, edits)
        for probe, figures in point.figures.items():
            for name, figure in figures.items():
                table.writerow(
                    [point.phase, batch, done, probe, name, figure["mean"], figure.get("low"), figure.get("high")]
                )
        for probe, count in point.skipped.items():
            table.writerow([point.phase, batch, done, probe, "skipped", count, None, None])
    atomic_write(folder / CSV, lambda part: part.write_text(text.getvalue(), encoding="utf-8"), "run_dir")
    atomic_write(folder / PNG, lambda part: _draw(part, points, main, edits, title), "run_dir")


def _place(point: Point, edits: Sequence[int]) -> tuple[int, int]:
    """The number of batches made, and of facts edited in them."""
    if point.batch is None:
        return 0, 0
    return point.batch + 1, edits[point.batch] if point.batch < len(edits) else 0


def _draw(file: Path, points: Sequence[Point], main: dict[str, str], edits: Sequence[int], title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [probe for probe in main if any(main[probe] in p.figures.get(probe, {}) for p in points)]
    with_text = any("text" in p.figures for p in points)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for probe in scored:
        here = [p for p in points if main[probe] in p.figures.get(probe, {})]
        at = [(_place(p, edits)[0], p.figures[probe][main[probe]]) for p in here]
        batches, means = [b for b, _ in at], [f["mean"] for _, f in at]
        (line,) = axes.plot(batches, means, marker="o", label=f"{probe} ({main[probe]})")
        low, high = [f.get("low", f["mean"]) for _, f in at], [f.get("high", f["mean"]) for _, f in at]
        axes.fill_between(batches, low, high, color=line.get_color(), alpha=0.15)
    measured = {probe for p in points for probe in p.figures}
    unmeasured = dict.fromkeys(probe for p in points for probe in p.skipped if probe not in measured)
    for probe in unmeasured:
        axes.plot([], [], " ", label=f"{probe}: all questions skipped")
    axes.set_xlabel("batches of edits (0: the unedited model)")
    axes.set_ylabel("score, with 95% interval")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if with_text:
        right = axes.twinx()
        with_perplexity = [p for p in points if "text" in p.figures]
        values = [p.figures["text"]["perplexity"]["mean"] for p in with_perplexity]
        right.plot(
            [_place(p, edits)[0] for p in with_perplexity], values, "k--", marker=".", label="perplexity (right)"
        )
        right.set_ylim(0, 1.5 * max(values))  # small changes are to look small
        right.set_ylabel("perplexity of held-out text")
    handles = [h for a in figure.axes for h in a.get_legend_handles_labels()[0]]
    if handles:  # beside the axes, where it hides no point
        ncols = min(3, len(handles))
        figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=ncols, frameon=False)
    figure.savefig(file, format="png", dpi=120)
