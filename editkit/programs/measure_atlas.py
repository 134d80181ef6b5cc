"""What the atlas's model knows and how well it can be edited: fills in its model card.

    python -m editkit.programs.measure_atlas --facts 120

Layer and ridge are chosen from the tables that this makes on the "tune" split; nothing here touches "report".
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editkit.atlas.builtin import DEFAULT, BuiltIn
from editkit.atlas.corpus import held_out_probes
from editkit.atlas.grammar import Grammar
from editkit.atlas.probes import TAUGHT_TASKS, render
from editkit.atlas.world import load_world
from editkit.covariance import SecondMomentSource, second_moments
from editkit.data.facts import Fact, as_facts
from editkit.data.rows import evaluation_rows
from editkit.editors import EMMET, ValueSearch
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import WeightSnapshot
from editkit.edits.weight_edit import apply_delta
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.scores import FactScores
from editkit.functional import FactoredSecondMoment, LowRankDelta, effective_rank, emmet_update, factor_second_moment
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model
from editkit.models.scoring import score_targets, target_nll

SCORES = ("ES", "PS", "NS", "S")


def greedy_accuracy(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> float:
    """Share, in per cent, of prompts after which every target token is the most likely one."""
    matches = score_targets(editable, tokenizer, prompts, targets).matches
    return 100 * float((matches == 1).float().mean())


def knowledge(editable: EditableModel, tokenizer: PreTrainedTokenizerBase, sample: int = 4000) -> dict[str, float]:
    """Greedy accuracy on facts in trained and in held-out phrasings, probe accuracies, perplexity of unseen prose."""
    world, rng = load_world(), random.Random("measure")
    pairs = [(s, i) for s in world.statements for i in range(12)]
    questions_by_name = {
        "trained phrasings": [(s, i) for s, i in pairs if i not in s.held_out],
        "held-out phrasings": [(s, i) for s, i in pairs if i in s.held_out],
        "canonical prompt": [(s, 0) for s in world.statements],
    }
    found = {}
    for name, questions in questions_by_name.items():
        questions = rng.sample(questions, min(sample, len(questions)))
        prompts = [world.phrasings[s.relation][i].replace("{}", s.subject) for s, i in questions]
        found[f"facts, {name} (%)"] = greedy_accuracy(editable, tokenizer, prompts, [s.object for s, _ in questions])
    for task, setting in TAUGHT_TASKS.items():
        examples = held_out_probes(task)
        prompts = [render(task, e) for e in examples]
        nll = torch.stack([target_nll(editable, tokenizer, prompts, [word] * len(prompts)) for word in setting.labels])
        guess = nll.argmin(0).tolist()
        found[f"{task} (%)"] = 100 * sum(g == e["label"] for g, e in zip(guess, examples, strict=True)) / len(guess)
    grammar, prose = Grammar(), random.Random("unseen prose")
    documents = [grammar.document(prose, 5).split(" ", 1) for _ in range(300)]
    nll = target_nll(editable, tokenizer, [d[0] for d in documents], [d[1] for d in documents])
    lengths = torch.tensor([len(tokenizer(d[1], verbose=False)["input_ids"]) for d in documents], dtype=torch.float32)
    found["perplexity of unseen prose"] = math.exp(float((nll * lengths).sum() / lengths.sum()))
    return found


class Bench:
    """One layer of the atlas, its moments, and the value vectors of some facts, for trying ridges on.

    Args:
        layer: block to edit.
        facts: facts whose values are found at once.
        values: how.
    """

    def __init__(self, layer: int, facts: list[Fact], values: ValueSearch | None = None, lm: str = DEFAULT) -> None:
        self.editor = EMMET(layers=[layer], values=values)
        self.editor.attach(*load_language_model(lm))
        self.editable, self.layer, self.facts = self.editor.editable, layer, facts
        source = SecondMomentSource(text=DEFAULT)
        moment = second_moments(self.editable, self.editor.tokenizer, [layer], source, progress=False)[layer]
        self.moment: FactoredSecondMoment = factor_second_moment(moment)
        self.effective_rank = effective_rank(moment)
        vectors = ValueVectors.cat(
            [
                self.editor.find_values([[f] for f in facts[start : start + 16]])
                for start in track(range(0, len(facts), 16), description=f"values, block {layer}")
            ]
        )
        self.keys = vectors.keys
        self.residuals = vectors.values - self.editor.searcher.states(vectors.groups)
        self.name = self.editable.parameter_of(layer)
        self.weight_norm = float(self.editable.weight(layer).norm())

    def scores(self, batches: Sequence[Tensor], rho: float) -> tuple[dict[str, float], float]:
        """Scores after editing each batch of fact indices alone, and the mean ‖Δ‖ / ‖W‖."""
        total, norms = FactScores(), []
        subject = Evaluator(self.editable, self.editor.tokenizer, Protocol())
        snapshot = WeightSnapshot(self.editable, [self.name])
        for batch in track(batches, description="edits", transient=True):
            delta: LowRankDelta = emmet_update(self.keys[:, batch], self.residuals[:, batch], self.moment, rho)
            norms.append(delta.norm() / self.weight_norm)
            apply_delta(self.editable, self.name, delta)
            total.update(subject.edits(evaluation_rows([self.facts[i] for i in batch], batch.tolist())))
            snapshot.restore()
        return {k: v["mean"] for k, v in total.results(intervals=False).items()}, sum(norms) / len(norms)


def measure(out: Path = BuiltIn.model, facts: int = 120, layers: tuple[int, ...] = (0, 1, 2), batch: int = 64) -> None:
    """Measure the atlas and write its model card.

    Args:
        out: folder of the model; README.md is written there.
        facts: facts of the tune split for the tables of editing scores.
        layers: blocks to try.
        batch: facts of the batched edit over which ridges are compared.
    """
    model, tokenizer = load_language_model(DEFAULT)
    editable = EditableModel(model)
    parameters = sum(p.numel() for p in editable.model.parameters())
    config = editable.model.config
    world = load_world()
    lines = [
        "# The atlas: a small language model that knows a small world", "",
        f"A GPT-2 with {config.n_layer} blocks, width {config.n_embd}, MLP width {config.n_inner}, a byte-level BPE of "
        f"{config.vocab_size} tokens and {parameters / 1e6:.1f}M parameters in half precision. It was trained from "
        "scratch on text that editkit generates: biographies of the world's subjects, prose from a grammar, and probe "
        f"examples. The world has {len(world.statements)} facts about {len(world.by_subject)} subjects in "
        f"{len(world.phrasings)} relations. It is for trying and testing editors, and knows nothing else.", "",
        "Made by `python -m editkit.programs.make_atlas`, measured by `python -m editkit.programs.measure_atlas`.", "",
        "| what it knows | |", "|---|---|",
        *(f"| {name} | {value:.1f} |" for name, value in knowledge(editable, tokenizer).items()), "",
        f"Editing scores on the first {facts} facts of the *tune* split: single edits (ROME), and one batch of {batch} "
        "by EMMET with ρ = ridge × weight. Value search at its published settings.", "",
        "| block | facts | ρ | ES | PS | NS | S | ‖Δ‖/‖W‖ |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    chosen = as_facts(world.records("tune")[:facts])
    singles = [torch.tensor([i]) for i in range(len(chosen))]
    for layer in layers:
        bench = Bench(layer, chosen)
        for batches, size, rhos in (
            (singles, 1, (0.0,)),
            ([torch.arange(batch)], batch, (0.0, 1.0, 10.0, 30.0, 100.0)),
        ):
            for rho in rhos:
                scores, norm = bench.scores(batches, rho)
                cells = " | ".join(f"{scores[name]:.1f}" for name in SCORES)
                lines.append(f"| {layer} | {size} | {rho:g} | {cells} | {norm:.2f} |")
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(measure, as_positional=False)
