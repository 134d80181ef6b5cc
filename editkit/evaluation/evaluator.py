"""From rows to what the model says about them, many rows at a time, in plain values that processes can exchange.

A row that does not fit into the model's context window, or whose prompt leaves nothing of the protocol's length to be
generated, is not run: its result has ``fits`` false and enters no metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from editkit.data.fitting import answer_room
from editkit.data.probes import ProbeRow, ProbeSet, answer_of
from editkit.data.rows import NEIGHBORHOOD, UNRELATED, EvaluationRow, GenerationRow, Row, TextRow
from editkit.evaluation.protocol import Protocol, cut
from editkit.functional.generation import generation_entropy
from editkit.models.editable import EditableModel
from editkit.models.generation import continue_greedily, generate
from editkit.models.scoring import TargetScores, agreement, score_targets, window_nll
from editkit.models.spans import encode

Tokens = tuple[int, ...]
#: fact, kind and number of a row, to the tokens that the unedited model predicted there
BaselinePredictions = Mapping[tuple[int, int, int], Tokens]


@dataclass(frozen=True)
class EditResult:
    """What was found at a prompt.

    Attributes:
        row: the row.
        nll_new: negative log-likelihood of ``target_new`` in nats, per token or in all as the protocol has it.
        nll_true: the same of ``target_true``; NaN where there is none.
        share: share of right tokens of the wanted answer, 0 to 1; NaN where there is none.
        predicted: the most likely tokens at the wanted answer's places.
        greedy: what greedy decoding says, up to and with its first word that is not the wanted answer's.
        fits: whether it was run.
    """

    row: EvaluationRow
    nll_new: float
    nll_true: float
    share: float
    predicted: Tokens
    greedy: str
    fits: bool

    @property
    def key(self) -> tuple[int, int, int]:
        """Fact, kind and number."""
        return self.row.fact, self.row.kind, self.row.number


@dataclass(frozen=True)
class GenerationResult:
    """A generated text.

    Attributes:
        row: the row.
        text: the continuation.
        entropy: its generation entropy, or that of the whole text, as the protocol has it.
        fits: whether it was run.
    """

    row: GenerationRow
    text: str
    entropy: float
    fits: bool


@dataclass(frozen=True)
class ProbeResult:
    """An answered question.

    Attributes:
        row: the row.
        nll: per class, the negative log-likelihood of its word; empty where only generation is scored.
        predicted: the most likely class; None where only generation is scored.
        answer: the class that generated text names, -1 for none; None where only likelihood is scored.
        text: the generated text.
        fits: whether it was run.
    """

    row: ProbeRow
    nll: tuple[float, ...]
    predicted: int | None
    answer: int | None
    text: str | None
    fits: bool


@dataclass(frozen=True)
class TextResult:
    """Likelihood of a window of text.

    Attributes:
        row: the row.
        nll: negative log-likelihood of its tokens in all, from the second on, nats.
        tokens: how many these are.
    """

    row: TextRow
    nll: float
    tokens: int
    fits: bool = True


Result = EditResult | GenerationResult | ProbeResult | TextResult


def fact_of(result: Result) -> int:
    """Position of a result's fact among the run's facts; -1 where it is about none."""
    return result.row.fact if isinstance(result, EditResult | GenerationResult) else -1


def in_order(results: Iterable[Result]) -> list[Result]:
    """Results by kind of evaluation, fact and number: the same for any number of processes."""

    def place(result: Result) -> tuple[int, ...]:
        match result.row:
            case EvaluationRow(fact=fact, kind=kind, number=number):
                return 0, fact, kind, number
            case GenerationRow(fact=fact, number=number):
                return 1, fact, number
            case ProbeRow(probe=probe, example=example):
                return 2, probe, example
            case TextRow(window=window):
                return 3, window

    return sorted(results, key=place)


@dataclass(frozen=True)
class Evaluator:
    """A model under measurement.

    Attributes:
        editable: the model.
        tokenizer: its tokenizer.
        protocol: how it is measured.
        probes: the probes whose rows may come.
        baseline: what the unedited model predicted, where that is known; None: this is the unedited model.
    """

    editable: EditableModel
    tokenizer: PreTrainedTokenizerBase
    protocol: Protocol
    probes: Sequence[ProbeSet] = ()
    baseline: BaselinePredictions | None = None

    def measure(self, rows: Sequence[Row]) -> list[Result]:
        """Results of rows of one sort, in their order."""
        if not rows:
            return []
        by_type: dict[type, Any] = {
            EvaluationRow: self.edits, GenerationRow: self.generations, ProbeRow: self.answers, TextRow: self.texts,
        }  # fmt: skip
        found: list[Result] = by_type[type(rows[0])](rows)
        return found

    def edits(self, rows: Sequence[EvaluationRow]) -> list[EditResult]:
        """Likelihoods of both targets, and accuracy of the wanted one."""
        pairs = [(i, t) for i, r in enumerate(rows) for t in (r.target_new, r.target_true) if t is not None]
        scores = self._scored([rows[i].prompt for i, _ in pairs], [t for _, t in pairs])
        nll = self._nll(scores).tolist()
        found: dict[tuple[int, str], int] = {pair: n for n, pair in enumerate(pairs)}
        results = []
        for i, row in enumerate(rows):
            new = found[i, row.target_new]
            true = new if row.target_true is None else found[i, row.target_true]
            wanted = new if row.wanted is None else found[i, row.wanted]
            fits = bool(scores.fits[new] and scores.fits[true])
            predicted = scores.predicted[wanted] if fits else ()
            right = scores.wanted[wanted]
            if row.kind in (NEIGHBORHOOD, UNRELATED) and self.protocol.neighborhood == "original":
                key = row.fact, row.kind, row.number
                right = predicted if self.baseline is None else self.baseline.get(key, ())
            share = float(agreement([predicted], [right])[0]) if fits and right else float("nan")
            greedy = str(self.tokenizer.decode(_greedy(predicted, scores.wanted[wanted])))
            results.append(
                EditResult(
                    row,
                    nll[new] if fits else float("nan"),
                    nll[true] if fits and row.target_true is not None else float("nan"),
                    share,
                    predicted,
                    greedy,
                    fits,
                )
            )
        return results

    def generations(self, rows: Sequence[GenerationRow]) -> list[GenerationResult]:
        """Texts, and how varied they are."""
        p = self.protocol
        prompts = [row.prompt for row in rows]
        begun = self._lengths(prompts)
        lengths = [max(0, p.generation_length - n * (p.length_counts == "text")) for n in begun]
        names = [f"{row.fact} {row.number}" for row in rows]
        continuations = generate(self.editable, self.tokenizer, prompts, lengths, p.top_k, p.seed, names)
        results = []
        room = [length > 0 and start < self.editable.context for length, start in zip(lengths, begun, strict=True)]
        for row, fits, tokens in zip(rows, room, continuations, strict=True):
            text = str(self.tokenizer.decode(list(tokens)))
            whole = p.entropy_over == "text"
            ids = [*self.tokenizer(row.prompt, verbose=False)["input_ids"], *tokens] if whole else tokens
            pieces = cut(row.prompt + text if whole else text, ids, p.ngrams)
            results.append(GenerationResult(row, text, generation_entropy(pieces) if fits else float("nan"), fits))
        return results

    def answers(self, rows: Sequence[ProbeRow]) -> list[ProbeResult]:
        """The classes that the model answers, by likelihood, by its own words, or both."""
        probe = self.probes[rows[0].probe]
        words = [known[0] for known in probe.task.words]
        prompts = [row.prompt for row in rows]
        fits = [True] * len(rows)
        nll: list[list[float]] = [[] for _ in rows]
        text: list[str | None] = [None] * len(rows)
        if probe.probe.scored != "generation":
            scores = self._scored([p for p in prompts for _ in words], words * len(prompts))
            fits = scores.fits.view(len(rows), -1).all(1).tolist()
            nll = self._nll(scores).view(len(rows), -1).tolist()
        if probe.probe.scored != "likelihood":
            room = answer_room(self.tokenizer, probe.task)
            lengths = self._lengths(prompts)
            fits = [f and n + room <= self.editable.context for f, n in zip(fits, lengths, strict=True)]
            fitting = [i for i, f in enumerate(fits) if f]
            answers = continue_greedily(self.editable, self.tokenizer, [prompts[i] for i in fitting], room)
            for i, words_of_model in zip(fitting, answers, strict=True):
                text[i] = words_of_model
        results = []
        for row, fit, likelihoods, generated in zip(rows, fits, nll, text, strict=True):
            best = min(range(len(likelihoods)), key=likelihoods.__getitem__) if fit and likelihoods else None
            answer = answer_of(probe.task, generated) if generated is not None else None
            results.append(ProbeResult(row, tuple(likelihoods), best, answer, generated, fit))
        return results

    def texts(self, rows: Sequence[TextRow]) -> list[TextResult]:
        """Likelihoods of windows of text."""
        nll = window_nll(self.editable, [row.ids for row in rows]).tolist()
        return [TextResult(row, value, len(row.ids) - 1) for row, value in zip(rows, nll, strict=True)]

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of prompts as they are run, with what prompt edits put before them."""
        texts = [prompt.rstrip(" ") for prompt in self.editable.in_context(prompts)]
        return [len(span.ids) for span in encode(self.tokenizer, texts)]

    def _scored(self, prompts: Sequence[str], targets: Sequence[str]) -> TargetScores:
        return score_targets(self.editable, self.tokenizer, prompts, targets, self.protocol.separator)

    def _nll(self, scores: TargetScores) -> torch.Tensor:
        return scores.nll if self.protocol.likelihood == "mean" else scores.total


def _greedy(predicted: Tokens, wanted: Tokens) -> list[int]:
    """Teacher-forced tokens as long as they are what greedy decoding says: to the first that is not the wanted one."""
    wrong = (n for n, token in enumerate(predicted) if token != wanted[n])
    return list(predicted[: next(wrong, len(predicted)) + 1])
