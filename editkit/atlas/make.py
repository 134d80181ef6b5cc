"""How the atlas's language model was made: one command, two CPU cores, under an hour.

    python -m editkit.atlas.make --out editkit/atlas/model --minutes 45

It trains a byte-level BPE tokenizer and a small GPT-2 on text drawn without end from the world, the grammar and the
probe tasks, then writes ``model.safetensors`` in half precision beside the tokenizer. ``editkit.atlas.measure`` fills
in the model card.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editkit.atlas.corpus import documents
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


def windows(tokenizer: PreTrainedTokenizerFast, rng: random.Random, length: int, batch: int) -> Iterator[Tensor]:
    """(batch, length) token windows. Each starts with a document's first token, as a prompt does when it is used."""
    stream, end = documents(rng), tokenizer.eos_token_id
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        for ids in tokenizer([next(stream) for _ in range(400)])["input_ids"]:
            row += [*ids, end]
            if len(row) >= length:
                rows.append(row[:length])
                row = []
        while len(rows) >= batch:
            yield torch.tensor(rows[:batch])
            rows = rows[batch:]


def train(
    out: Path,
    minutes: float = 45.0,
    layers: int = 4,
    width: int = 256,
    mlp_width: int = 1536,
    vocabulary: int = 4096,
    batch: int = 24,
    length: int = 128,
    learning_rate: float = 8e-3,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Train and write the atlas's tokenizer and model.

    Args:
        out: folder for model.safetensors, config.json and the tokenizer.
        minutes: wall-clock budget of the training loop; the learning rate falls to zero at its end.
        layers: transformer blocks.
        width: hidden size.
        mlp_width: width of each MLP, the edited projection's d_in.
        vocabulary: BPE tokens.
        batch: windows per step.
        length: tokens per window.
        learning_rate: peak of the cosine schedule.
        seed: of data, tokenizer and weights.
        steps: a fixed number of optimizer steps instead of a time budget (repeatable across machines).
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(vocabulary, seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=256, n_embd=width, n_layer=layers, n_head=width // 64,
            n_inner=mlp_width, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    # Muon learns rarely seen associations in fewer tokens than AdamW does; embeddings and vectors are AdamW's
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or ".h." not in name]
    optimizers = (
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    data = windows(tokenizer, random.Random(seed + 1), length, batch)
    start, done, loss = time.monotonic(), 0, torch.tensor(math.nan)
    columns = TextColumn("training, loss {task.fields[loss]:.3f}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=1.0, loss=math.nan)
        while True:
            share = done / steps if steps else (time.monotonic() - start) / (60 * minutes)
            if share >= 1:
                break
            rate = learning_rate * min(1.0, (done + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = rate
            ids = next(data)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=ids).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done += 1
            if done % 10 == 0:
                progress.update(bar, completed=share, loss=loss.item())
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(train, as_positional=False)
