"""Second moments of keys or output gradients over text: loaded where they are there, else estimated and kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from editkit.covariance.accumulate import SecondMoments
from editkit.covariance.folder import Partial, SecondMomentFolder
from editkit.covariance.output_gradients import OutputGradientMoments
from editkit.covariance.progress import TokenProgress
from editkit.covariance.source import PATH, SecondMomentSource, settled
from editkit.covariance.summand import KEYS, OUTPUT_GRADIENTS, Summand
from editkit.covariance.wanted import check_count, look
from editkit.data.text import Text
from editkit.data.windows import TextDataModule
from editkit.functional import FactoredSecondMoment
from editkit.models.editable import EditableModel
from editkit.utils.console import console, print_line
from editkit.utils.distributed import broadcast_object, on_device, raise_on_all_ranks, rank_and_size
from editkit.utils.errors import InputError
from editkit.utils.files import cache_option, check_can_write, digest
from editkit.utils.progress import heartbeat
from editkit.utils.quiet import quiet_lightning
from editkit.utils.signals import leave_signals
from editkit.utils.words import counted

#: tokens of a padded batch on a CPU, and elsewhere; a graph over all blocks takes more memory than one forward
BATCH_TOKENS = {KEYS: (2048, 8192), OUTPUT_GRADIENTS: (512, 2048)}


def second_moments(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool = True,
    announce: bool | None = None,
) -> dict[int, Tensor]:
    """Load the second moments of ``layers``, or estimate and keep them.

    Args:
        editable: the unedited model.
        tokenizer: its fast tokenizer.
        layers: blocks whose projection's input is wanted.
        source: text, size and folder.
        progress: show how far it is.
        announce: say what is estimated; default as ``progress``.

    Returns:
        Block to C = E[k kᵀ], (d_in, d_in) float64 on the CPU.

    Raises:
        InputError: what is at ``source.path`` is of something else or not readable, the text has fewer tokens than
            d_in, or there is too little memory.
    """
    folder = ensure(editable, tokenizer, layers, source, progress, announce)
    return {layer: folder.read(layer) for layer in sorted(set(layers))}


def factored_second_moments(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool = True,
    announce: bool | None = None,
) -> dict[int, FactoredSecondMoment]:
    """What ``second_moments`` gives, as its Cholesky factors, which are kept beside it."""
    folder = ensure(editable, tokenizer, layers, source, progress, announce)
    with heartbeat("second moments: reading the factors", progress and rank_and_size()[0] == 0):
        return {layer: folder.factored(layer) for layer in sorted(set(layers))}


def output_gradient_moments(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool = True,
    announce: bool | None = None,
) -> dict[int, Tensor]:
    """Load the second moments of the output gradients of ``layers``, or estimate and keep them.

    g is the gradient of the model's own loss by the output of a block's MLP projection, with labels that are drawn
    from the model (``editkit.covariance.output_gradients``). They stand in the folder of ``source``, beside those of
    the keys.

    Args:
        editable: the unedited model.
        tokenizer: its fast tokenizer.
        layers: blocks whose projection's output is meant.
        source: text, size and folder; ``seed`` is of the labels too. ``ridge`` is not used.
        progress: show how far it is.
        announce: say what is estimated; default as ``progress``.

    Returns:
        Block to B = E[g gᵀ], (d_out, d_out) float64 on the CPU; of lower rank where there are fewer tokens than d_out.

    Raises:
        InputError: what is at ``source.path`` is of something else or not readable, there is no text, or too little
            memory.
    """
    folder = ensure(editable, tokenizer, layers, source, progress, announce, of=OUTPUT_GRADIENTS)
    return {layer: folder.read(layer) for layer in sorted(set(layers))}


def ensure(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool = True,
    announce: bool | None = None,
    trainer: L.Trainer | None = None,
    of: Summand = KEYS,
) -> SecondMomentFolder:
    """The folder of ``source``, with moments of all of ``layers``: those that it lacks are estimated.

    Args:
        editable: the unedited model.
        tokenizer: its fast tokenizer.
        layers: blocks whose projection's input is wanted.
        source: text, size and folder.
        progress: show how far it is.
        announce: say what is estimated; default as ``progress``.
        trainer: runs the estimate; default one of its own, on the model's device. Within an initialised process group
            each rank takes its share.
        of: what they are moments of.
    """
    rank = rank_and_size()[0] if trainer is None else trainer.global_rank
    with heartbeat(f"{of.title}: looking for what there is", progress and rank == 0) as working_on:
        told = progress if announce is None else announce
        return _ensure(editable, tokenizer, layers, source, progress, told, trainer, rank, working_on, of)


def _ensure(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool,
    announce: bool,
    trainer: L.Trainer | None,
    rank: int,
    working_on: Callable[[str], None],
    of: Summand,
) -> SecondMomentFolder:
    layers, error = sorted(set(layers)), None
    source = settled(source, editable)
    try:
        folder, text, budget, missing = look(editable, tokenizer, layers, source, of)
        if missing and rank == 0:
            check_can_write(folder.folder, PATH if source.path else cache_option())
    except Exception as caught:
        error = caught
    raise_on_all_ranks(error)
    missing = broadcast_object(missing)
    several = trainer is not None and trainer.world_size > 1
    # ranks meet in Trainer.predict and go by what rank 0 finds missing; it alone may find that they need not be started
    starts = trainer is None or (trainer.num_nodes == 1 and "LOCAL_RANK" not in os.environ)
    if text is None or (not missing and (starts or not several)):
        return folder
    if announce and rank == 0 and missing:
        amount = counted(source.num_documents or 0, "document") if budget is None else counted(budget, "token")
        print_line(
            console(),
            f"{of.title}: estimating block{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} from {amount} "
            f"of {source.text}, kept in {folder.folder}",
        )
    device, at_once = editable.device, source.layers_at_once or len(layers)
    with quiet_lightning():
        trainer = trainer or _own_trainer(device, progress and rank == 0)
        for start in range(0, len(layers), at_once):
            at_work = layers[start : start + at_once]
            wanted = [layer for layer in at_work if layer in missing]
            if wanted or several:
                _estimate(trainer, editable, tokenizer, wanted, at_work, source, text, folder, budget, working_on)
    nn.Module.to(editable.model, device)  # Trainer's teardown leaves models on the CPU
    return folder


def _estimate(
    trainer: L.Trainer,
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: list[int],
    at_work: list[int],
    source: SecondMomentSource,
    text: Text,
    folder: SecondMomentFolder,
    budget: int | None,
    working_on: Callable[[str], None],
) -> None:
    """One pass over the text, and its results written, layer by layer.

    Unfinished sums are found again by the layers ``at_work``, though some of those may be written by then.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    of = folder.of
    max_tokens = source.max_tokens or BATCH_TOKENS[of][0 if on_cpu else 1]
    free = ("path", "save_minutes", "accumulate_on", "trust", "ridge")  # what may change before a run goes on
    same = {name: value for name, value in asdict(source).items() if name not in free} | {"max_tokens": max_tokens}
    partial = Partial(folder.folder / f".partial-{digest(same, folder.about, at_work, budget)}.safetensors")
    kind = OutputGradientMoments if of is OUTPUT_GRADIENTS else SecondMoments
    module = kind(editable, layers, source.accumulate_on, source.tolerance, partial, source.save_minutes)
    if isinstance(module, OutputGradientMoments):
        module.label_seed = source.seed
    widths = {layer: of.width(editable, layer) for layer in folder.about}
    first_check = max(widths.values()) if source.tolerance is not None else None
    data = TextDataModule(tokenizer, text, source, budget, source.num_documents, max_tokens, first_check)
    with module.until_safe:
        trainer.predict(module, datamodule=data, return_predictions=False)
    for layer in module.layers:
        working_on(f"{of.title}: eigenvalues{' and factor' * of.factored} of block {layer}")
        error: Exception | None = None
        try:
            if rank_and_size()[0] == 0:
                if not module.tokens:
                    raise InputError(f"second_moment.text: expected at least one token, but {source.text!r} has none")
                if of.factored and not source.ridge:
                    check_count(module.tokens, {layer: widths[layer]})
                about = {
                    "model": editable.model.name_or_path, "text": source.text, "tokens": module.tokens,
                    "documents": module.documents, "num_tokens": budget, "num_documents": source.num_documents,
                    "tolerance": source.tolerance, "change": module.change, "dtype": str(editable.weight(layer).dtype),
                    "editkit": version("editkit"), "torch": torch.__version__,
                }  # fmt: skip
                folder.write(layer, module.sums.pop(layer).mean().cpu(), about)
        except Exception as caught:
            error = caught
        raise_on_all_ranks(error)
    if rank_and_size()[0] == 0 and layers:
        alone = source.tolerance is None and source.num_documents is None
        if alone and source.num_tokens is not None and module.tokens < source.num_tokens:
            warnings.warn(
                f"second_moment.num_tokens: expected {source.num_tokens:,} tokens, but {source.text} has "
                f"{module.tokens:,}; give a longer text, or take these",
                stacklevel=2,
            )
        partial.remove()


def _own_trainer(device: torch.device, progress: bool) -> L.Trainer:
    trainer = L.Trainer(
        **on_device(device),
        enable_progress_bar=progress,
        callbacks=[TokenProgress()] if progress else None,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    leave_signals(trainer)
    return trainer
