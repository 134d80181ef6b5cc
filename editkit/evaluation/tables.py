"""The figures of a run as tables to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from editkit.data.plan import PHASES

SCORES = ("ES", "EM", "PS", "PM", "NS", "NM", "S")
WORDS = ("EA", "PA", "NA", "UA", "GE", "RS")


def tables(metrics: Mapping[str, Any], title: str, main: Mapping[str, str]) -> Iterator[Table]:
    """Tables of scores, of accuracies and generated text, and of the other abilities; those with nothing are left out.

    Args:
        metrics: as metrics.json has them.
        title: of the first table.
        main: per probe, the metric to show.
    """
    for columns, name in ((SCORES, title), (WORDS, "what is said")):
        there = [c for c in columns if any(c in metrics.get(phase, {}) for phase in PHASES)]
        if there:
            shown = columns if columns is SCORES else there
            rows = {p: (metrics[p], metrics["intervals"][p]) for p in PHASES if p in metrics}
            yield _table(name, {c: c for c in shown}, rows)
    probes = metrics.get("probes", {})
    if not probes:
        return
    headers = {t: f"{t}\n{main.get(t, 'accuracy') if t != 'text' else 'perplexity'}" for t in probes}
    rows = {}
    for phase in ("before", "after"):
        found, spans = {}, {}
        for title_of, entry in probes.items():
            name = "perplexity" if title_of == "text" else main.get(title_of, "accuracy")
            if name in entry.get(phase, {}):
                found[title_of] = entry[phase][name]
                span = entry.get("intervals", {}).get(phase, {}).get(name)
                if span:
                    spans[title_of] = span
        if found:
            rows[phase] = (found, spans)
    yield _table("other abilities", headers, rows)


def _table(
    title: str,
    columns: Mapping[str, str],
    rows: Mapping[str, tuple[Mapping[str, float], Mapping[str, Sequence[float]]]],
) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for header in columns.values():
        table.add_column(header, justify="right")
    for phase, (values, spans) in rows.items():
        table.add_row(phase, *(f"{values[c]:.1f}" if c in values else "–" for c in columns))
        if spans:
            # an interval of a perplexity would vanish in rounding
            digits = {c: 1 if c == "text" else 0 for c in columns}
            shown = (f"{spans[c][0]:.{digits[c]}f}–{spans[c][1]:.{digits[c]}f}" if c in spans else "" for c in columns)
            table.add_row("  95%", *shown, style="dim")
    return table
