"""The figures of a run as tables to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from editkit.data.plan import PHASES
from editkit.utils.words import counted

SCORES = ("ES", "EM", "PS", "PM", "NS", "NM", "S")
WORDS = ("EA", "PA", "NA", "UA", "GE", "RS")
NAMES = {
    "ES": "efficacy score", "EM": "efficacy magnitude", "PS": "paraphrase score", "PM": "paraphrase magnitude",
    "NS": "neighborhood score", "NM": "neighborhood magnitude", "S": "harmonic mean of ES, PS and NS",
    "EA": "efficacy accuracy (exact match)", "PA": "paraphrase accuracy", "NA": "neighborhood accuracy",
    "UA": "accuracy on unrelated prompts", "GE": "generation entropy", "RS": "reference score",
    "f1": "F1 score", "mcc": "Matthews correlation",
}  # fmt: skip
LOWER_IS_BETTER = ("perplexity",)


def tables(metrics: Mapping[str, Any], title: str, main: Mapping[str, str]) -> Iterator[Table]:
    """Tables of scores, of accuracies and generated text, and of the other abilities; those with nothing are left out.

    Args:
        metrics: as metrics.json has them.
        title: of the first table.
        main: per probe, the metric to show.
    """
    for columns, name in ((SCORES, title), (WORDS, "what is said")):
        if shown := _shown(metrics, columns):
            rows = {p: (metrics[p], metrics["intervals"][p]) for p in PHASES if p in metrics}
            yield _table(name, {c: c for c in shown}, rows)
    probes = metrics.get("probes", {})
    if not probes:
        return
    headers = {t: f"{t}\n{_metric(t, main)}" for t in probes}
    rows = {}
    for phase in ("before", "after"):
        found, spans = {}, {}
        for title_of, entry in probes.items():
            name = _metric(title_of, main)
            if name in entry.get(phase, {}):
                found[title_of] = entry[phase][name]
                span = entry.get("intervals", {}).get(phase, {}).get(name)
                if span:
                    spans[title_of] = span
        if found or any(phase in entry.get("skipped", {}) for entry in probes.values()):
            rows[phase] = (found, spans)
    yield _table("other abilities", headers, rows)


def notes(metrics: Mapping[str, Any], main: Mapping[str, str]) -> list[str]:
    """What stands under the tables, a line each: the questions that were skipped, and the legend.

    Args:
        metrics: as metrics.json has them.
        main: per probe, the metric that is shown.
    """
    lines = []
    for title, entry in metrics.get("probes", {}).items():
        if skipped := max(entry.get("skipped", {}).values(), default=0):
            lines.append(
                f"{title}: {skipped} of {counted(entry['about']['asked'], 'question')} skipped, as they are longer "
                "than the model's context window"
            )
    return [*lines, line] if (line := legend(metrics, main)) else lines


def legend(metrics: Mapping[str, Any], main: Mapping[str, str]) -> str:
    """The names of the metrics in the tables, and which way is better; empty where the tables are.

    Args:
        metrics: as metrics.json has them.
        main: per probe, the metric that is shown.

    >>> legend({"before": {"EA": 50.0, "GE": 600.0}, "probes": {"text": {"before": {"perplexity": 9.0}}}}, {})
    'higher is better: EA efficacy accuracy (exact match) · GE generation entropy; lower is better: perplexity'
    """
    probes = (_metric(title, main) for title in metrics.get("probes", {}))
    shown = dict.fromkeys([*_shown(metrics, SCORES), *_shown(metrics, WORDS), *probes])
    higher = [m for m in shown if m not in LOWER_IS_BETTER]
    lower = [m for m in shown if m in LOWER_IS_BETTER]
    return "; ".join(
        f"{way} is better: {' · '.join(f'{m} {NAMES[m]}' if m in NAMES else m for m in of)}"
        for way, of in (("higher", higher), ("lower", lower))
        if of
    )


def _shown(metrics: Mapping[str, Any], columns: Sequence[str]) -> Sequence[str]:
    """Columns of one table; scores are shown whole, with a dash for what is absent."""
    there = [c for c in columns if any(c in metrics.get(phase, {}) for phase in PHASES)]
    return columns if columns is SCORES and there else there


def _metric(probe: str, main: Mapping[str, str]) -> str:
    """The metric of a probe, or of held-out text, that is shown."""
    return "perplexity" if probe == "text" else main.get(probe, "accuracy")


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
