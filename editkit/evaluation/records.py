"""Results as the rows of a run's records, and back: what was measured once need not be run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.data.facts import Fact
from editkit.data.probes import ProbeRow, ProbeSet
from editkit.data.rows import EvaluationRow, GenerationRow, TextRow
from editkit.evaluation.evaluator import EditResult, GenerationResult, ProbeResult, Result, TextResult
from editkit.metrics.editing import PROMPT_KINDS

EDIT_KINDS = (*PROMPT_KINDS, "unrelated")
NAN = float("nan")


def to_record(result: Result, facts: Sequence[Fact], probes: Sequence[ProbeSet]) -> dict[str, Any]:
    """A result as JSON values.

    Args:
        result: the result.
        facts: the run's facts.
        probes: the run's probes.
    """
    if isinstance(result, EditResult):
        row = result.row
        return {
            "fact": facts[row.fact].fact_id, "kind": EDIT_KINDS[row.kind], "number": row.number, "prompt": row.prompt,
            "target_new": row.target_new, "target_true": row.target_true, "nll_new": _json(result.nll_new),
            "nll_true": _json(result.nll_true), "right_tokens": _json(result.share),
            "predicted": list(result.predicted), "greedy": result.greedy, "fits": result.fits,
        }  # fmt: skip
    if isinstance(result, GenerationResult):
        text = result.row
        return {
            "fact": facts[text.fact].fact_id, "kind": "generation", "number": text.number, "prompt": text.prompt,
            "text": result.text, "entropy": _json(result.entropy), "fits": result.fits,
        }  # fmt: skip
    if isinstance(result, ProbeResult):
        asked = result.row
        return {
            "probe": probes[asked.probe].probe.title, "kind": "probe", "number": asked.example,
            "prompt": asked.prompt, "label": asked.label, "nll": [_json(x) for x in result.nll],
            "predicted": result.predicted, "answer": result.answer, "text": result.text, "fits": result.fits,
        }  # fmt: skip
    return {"kind": "text", "number": result.row.window, "nll": result.nll, "tokens": result.tokens}


def from_record(
    record: Mapping[str, Any], facts: Sequence[Fact], index: Mapping[str, int], probes: Mapping[str, int]
) -> Result | None:
    """The result that a row was made of, or None where the row is of no such kind, or of no fact or probe of the run.

    Args:
        record: what ``to_record`` gave.
        facts: the run's facts.
        index: fact ids to positions in ``facts``.
        probes: names of the run's probes to their numbers.
    """
    kind, number = record["kind"], record.get("number", 0)
    if kind in EDIT_KINDS and record["fact"] in index:
        row = EvaluationRow(
            index[record["fact"]], EDIT_KINDS.index(kind), number, record["prompt"], record["target_new"],
            record["target_true"],
        )  # fmt: skip
        return EditResult(
            row, _nan(record["nll_new"]), _nan(record["nll_true"]), _nan(record["right_tokens"]),
            tuple(record["predicted"]), record["greedy"], record["fits"],
        )  # fmt: skip
    if kind == "generation" and record["fact"] in index:
        at = index[record["fact"]]
        text = GenerationRow(at, record["prompt"], number, "\n".join(facts[at].reference_texts))
        return GenerationResult(text, record["text"], _nan(record["entropy"]), record["fits"])
    if kind == "probe" and record["probe"] in probes:
        asked = ProbeRow(probes[record["probe"]], number, record["prompt"], record["label"])
        return ProbeResult(
            asked, tuple(map(_nan, record["nll"])), record["predicted"], record["answer"], record["text"],
            record["fits"],
        )  # fmt: skip
    if kind == "text":
        return TextResult(TextRow(number, ()), record["nll"], record["tokens"])
    return None


def _json(value: float) -> float | None:
    """NaN is not JSON."""
    return None if value != value else value


def _nan(value: float | None) -> float:
    return NAN if value is None else value
