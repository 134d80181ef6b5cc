"""How the atlas's language model was made: one command, two CPU cores, 82 minutes.

    python -m editkit.programs.make_atlas --out editkit/atlas/model

It trains a byte-level BPE tokenizer and a small GPT-2 on text drawn without end from the world, the grammar and the
probe tasks, then writes ``model.safetensors`` in half precision beside the tokenizer.
``editkit.programs.measure_atlas`` fills in the model card.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editkit.atlas.corpus import documents
from editkit.atlas.probes import TAUGHT_TASKS
from editkit.atlas.world import load_world

END = "<|endoftext|>"


def train_tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, trained on a sample of the documents with every subject's name repeated."""
    rng = random.Random(seed)
    stream = documents(rng)
    sample = [next(stream) for _ in range(40_000)]
    world = load_world()
    names = [f"In {s}, {s}'s" for s in world.by_subject] * 30
    objects = [f"is {s.object}." for s in world.statements] * 3
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample + names + objects, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=256
    )


def windows(tokenizer: PreTrainedTokenizerFast, stream: Iterator[str], length: int, batch: int) -> Iterator[Tensor]:
    """(batch, length) token windows. Each starts with a document's first token, as a prompt does when it is used."""
    end = tokenizer.eos_token_id
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        for ids in tokenizer([next(stream) for _ in range(400)], verbose=False)["input_ids"]:
            row += [*ids, end]
            if len(row) >= length:
                rows.append(row[:length])
                row = []
        while len(rows) >= batch:
            yield torch.tensor(rows[:batch])
            rows = rows[batch:]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own mix of text and its own cosine schedule.

    Attributes:
        minutes: wall-clock budget.
        learning_rate: peak.
        biographies: share of documents about the world's subjects.
        prose: share of prose; the rest are probes.
        tasks: probe tasks to draw from; one named twice is drawn twice as often.
        label_weight: weight of a probe's answer token in the loss, against 1 for every other token.
    """

    minutes: float
    learning_rate: float
    biographies: float
    prose: float
    tasks: tuple[str, ...]
    label_weight: float


# Facts first: they are learned to the last one. Comparing two sentences (MRPC, RTE) comes slowly, and only once half
# of the text is about it and its one answer token counts for more than the thirty that are drawn at random.
STAGES = (
    Stage(40, 8e-3, 0.68, 0.18, ("sst2", "cola", "mrpc", "rte"), 1.0),
    Stage(20, 5e-3, 0.35, 0.15, ("sst2", "cola", "mrpc", "rte"), 8.0),
    Stage(13, 8e-3, 0.22, 0.05, ("mrpc", "rte") * 4 + ("sst2", "cola"), 16.0),
    Stage(9, 6e-3, 0.3, 0.05, ("mrpc", "rte", "rte") * 2 + ("sst2", "cola"), 16.0),
)


def train(
    out: Path,
    layers: int = 4,
    width: int = 256,
    mlp_width: int = 1536,
    vocabulary: int = 4096,
    batch: int = 24,
    length: int = 128,
    seed: int = 0,
    first_stage: int = 0,
    edit_layers: tuple[int, ...] = (0,),
) -> None:
    """Train and write the atlas's tokenizer and model.

    Args:
        out: folder for model.safetensors, config.json and the tokenizer.
        layers: transformer blocks.
        width: hidden size.
        mlp_width: width of each MLP, the edited projection's d_in.
        vocabulary: BPE tokens.
        batch: windows per step.
        length: tokens per window.
        seed: of data, tokenizer and weights.
        first_stage: 1 continues after the first stage, from what it left in ``out``.
        edit_layers: blocks that the config recommends for editing, chosen by ``editkit.programs.measure_atlas``.
    """
    torch.manual_seed(seed)
    if first_stage:
        model = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(vocabulary, seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=256, n_embd=width, n_layer=layers, n_head=width // 64,
                n_inner=mlp_width, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
        tokenizer.save_pretrained(out)
    model.config.editkit_layers = list(edit_layers)
    for number in range(first_stage, len(STAGES)):
        run_stage(model, tokenizer, STAGES[number], batch, length, random.Random(f"{seed} {number}"))
        copy.deepcopy(model).half().save_pretrained(out)


def run_stage(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    batch: int,
    length: int,
    rng: random.Random,
) -> None:
    """Train ``model`` in place for one stage."""
    # Muon learns rarely seen associations in fewer tokens than AdamW does; embeddings and vectors are AdamW's
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or ".h." not in name]
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(matrices, lr=stage.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    answers = torch.zeros(len(tokenizer), dtype=torch.bool)
    answers[[tokenizer(f" {word}")["input_ids"][0] for task in TAUGHT_TASKS.values() for word in task.labels]] = True
    colon = tokenizer(":")["input_ids"][0]
    data = windows(
        tokenizer, documents(rng, biographies=stage.biographies, prose=stage.prose, tasks=stage.tasks), length, batch
    )
    start, done = time.monotonic(), 0
    columns = TextColumn("training, loss {task.fields[loss]:.3f}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=1.0, loss=math.nan)
        while (share := (time.monotonic() - start) / (60 * stage.minutes)) < 1:
            rate = stage.learning_rate * min(1.0, (done + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = rate
            ids = next(data)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=ids).logits
            weight = 1 + (stage.label_weight - 1) * (answers[ids[:, 1:]] & (ids[:, :-1] == colon)).float()
            nll = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            loss = (nll * weight.flatten()).sum() / weight.sum()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done += 1
            if done % 10 == 0:
                progress.update(bar, completed=share, loss=loss.item())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(train, as_positional=False)
