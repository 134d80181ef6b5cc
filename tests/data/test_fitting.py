"""Few-shot examples are drawn so that they fit, where the first ones do not."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from editkit.data.fitting import fits, fitted
from editkit.data.probes import BETWEEN, Probe, load_probe
from editkit.data.tasks import TASKS


def jsonl(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def of_lengths(lengths: list[int]) -> list[dict[str, object]]:
    """Examples of so many words, the classes in turn; no two are equal."""
    return [{"sentence": f"film {i} " + "so " * n, "label": i % 2} for i, n in enumerate(lengths)]


@pytest.mark.parametrize("scored", ["likelihood", "generation", "both"])
def test_shots_are_drawn_so_that_they_fit(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, scored: str) -> None:
    source = jsonl(tmp_path / "sst2.jsonl", of_lengths([5] * 12 + [60] * 12 + [7] * 30))
    probe = load_probe(Probe("sst2", source, shots=4, pool=20, scored=scored))  # type: ignore[arg-type]
    longest = max(len(tokenizer(row.prompt)["input_ids"]) for row in probe.rows)
    assert fitted(probe, tokenizer, longest + 20) is probe  # where all fits, the first ones stay
    context = longest - 40
    assert not all(fits(probe, tokenizer, context))
    with pytest.warns(UserWarning, match="probes.sst2: .* shortest ones, which are shown instead, 0 do not"):
        shorter = fitted(probe, tokenizer, context)
    assert all(fits(shorter, tokenizer, context))
    assert [r.prompt.removeprefix(shorter.shown) for r in shorter.rows] == [
        r.prompt.removeprefix(probe.shown) for r in probe.rows
    ]
    assert [(r.label, r.example) for r in shorter.rows] == [(r.label, r.example) for r in probe.rows]
    shown = shorter.shown.split(BETWEEN)[:-1]
    assert Counter(s.split()[-1] for s in shown) == {"negative": 2, "positive": 2}
    pool = [f"{prompt} {TASKS['sst2'].words[label][0]}" for prompt, label in probe.pool]
    for word in ("negative", "positive"):
        there, taken = (sorted(len(tokenizer(s)["input_ids"]) for s in of if s.endswith(word)) for of in (pool, shown))
        assert len(there) == 10 and taken == there[:2]  # the pool's shortest of each class
    with pytest.warns(UserWarning, match="shown instead"):
        assert fitted(probe, tokenizer, context) == shorter  # the same again
    assert fitted(shorter, tokenizer, context) is shorter


def test_shots_that_help_nobody_are_not_drawn(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = jsonl(tmp_path / "sst2.jsonl", of_lengths([5] * 10 + [60] * 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = load_probe(Probe("sst2", source, shots=2, pool=8))
        assert fitted(none, tokenizer, 10) is none and not any(fits(none, tokenizer, 10))
        alone = load_probe(Probe("sst2", source, shots=0, pool=8))
        assert fitted(alone, tokenizer, 10) is alone
        every = load_probe(Probe("sst2", source, shots=8, pool=8))  # the pool has no others
        assert fitted(every, tokenizer, 10) is every


def test_public_entailment_fits_where_its_first_shots_do_not(
    shared_file: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """RTE's premises have very different lengths: with two shots, shorter ones let far more questions in."""
    source = shared_file("glue", "rte.jsonl")
    if not source.exists():
        pytest.skip(f"no {source}")
    probe = load_probe(Probe("rte", str(source), shots=2, pool=32))
    fit = sum(fits(probe, tokenizer, 400))
    with pytest.warns(UserWarning, match=r"probes\.rte"):
        shorter = fitted(probe, tokenizer, 400)
    assert sum(fits(shorter, tokenizer, 400)) > fit
