"""Second moments of the keys over text: loaded where they are there, else estimated, kept and reported."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Literal, get_type_hints

import lightning as L
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from editkit.atlas.builtin import built_in_model, resolve
from editkit.covariance.accumulate import SecondMoments, input_width
from editkit.covariance.folder import Partial, SecondMomentFolder
from editkit.covariance.progress import TokenProgress
from editkit.data.text import TEXTS, Text, TextSource, check_readable, open_text, text_files
from editkit.data.windows import TextDataModule, windows
from editkit.functional import FactoredSecondMoment
from editkit.models.content import content_hashes, memory_hashes, sample_hashes, tokenizer_hash
from editkit.models.editable import EditableModel
from editkit.utils.console import console, print_line
from editkit.utils.distributed import broadcast_object, on_device, raise_on_all_ranks, rank_and_size
from editkit.utils.errors import InputError
from editkit.utils.files import cache_folder, cache_option, check_can_write, digest, user_path
from editkit.utils.numbers import check_numbers
from editkit.utils.progress import heartbeat
from editkit.utils.quiet import quiet_lightning
from editkit.utils.signals import leave_signals
from editkit.utils.words import counted

PATH = "second_moment.path"
TOKENS_PER_DIMENSION = 100
CHARACTERS = 8  # that a token has at most, on average
TOKENS_ON_CPU, TOKENS_ELSEWHERE = 2048, 8192  # of a padded batch


@dataclass
class SecondMomentSource(TextSource):
    """Where the second moments E[k kᵀ] of the keys to preserve come from: a ``TextSource``, and how much of it.

    Args:
        text: as for ``TextSource``. Default: of a built-in model its own text; any other model's moments are taken from
            ``path`` as they are there, and are not estimated from a text that nobody chose.
        path: folder of moments. Layers that it has are loaded, if they are of the same model, tokenizer and text;
            others are estimated and added. Default: a folder in the user's cache (EDITKIT_CACHE, ~/.cache/editkit) that
            is named by all that the moments depend on.
        num_tokens: tokens to average over, or all there are. Default: what the folder has, else 100 for each dimension
            of the projection's input; without limit where ``num_documents`` is given.
        num_documents: documents to average over (the papers take 100,000 of Wikipedia).
        tolerance: stop before that, once a doubling of the tokens changes every layer's C by less than this:
            ‖C_now − C_before‖ / ‖C_now‖ in Frobenius norms, looked at whenever the token count has doubled.
        ridge: added to C's diagonal before it is factored, as a share of the mean of its diagonal. Needed only with
            fewer tokens than dimensions.
        max_tokens: tokens per padded batch; bounds memory, not results. Default: 2,048 on a CPU, 8,192 elsewhere, the
            fastest of those measured.
        save_minutes: partial sums are saved as often; a run that is killed goes on from there. 0: after each batch.
        layers_at_once: layers per pass over the text; default all.
        accumulate_on: where the sums live, 8·d_in² bytes a layer: on the model's device or in the CPU's memory.
        trust: take moments from ``path`` even where they are not of this model, tokenizer or text.
    """

    text: str | None = None
    path: str | None = None
    num_tokens: PositiveInt | None = None
    num_documents: PositiveInt | None = None
    tolerance: PositiveFloat | None = None
    ridge: NonNegativeFloat = 0.0
    max_tokens: PositiveInt | None = None
    save_minutes: NonNegativeFloat = 5.0
    layers_at_once: PositiveInt | None = None
    accumulate_on: Literal["device", "cpu"] = "device"
    trust: bool = False


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


def check_can_keep(source: SecondMomentSource, layers: Sequence[int]) -> None:
    """Find out, before a model is loaded or measured, whether ``source.path`` can take what it lacks of ``layers``.

    Nothing is left there. What it has is not read; ``ensure`` checks that, and the cache where there is no path.

    Raises:
        InputError: it is a file, is below one, or cannot be written.
    """
    if source.path and _lacking(source.path, layers):
        check_can_write(user_path(source.path, PATH), PATH)


def check_has_text(source: SecondMomentSource, lm: str, layers: Sequence[int] | None = None) -> None:
    """Find out, before any work, whether moments that ``source.path`` lacks have a text to be estimated from.

    Args:
        source: text and folder.
        lm: name or folder of the language model.
        layers: blocks whose moments are wanted; None: not known yet, so that a folder may have them all.

    Raises:
        InputError: there is none, and the model is no built-in one, which has a text of its own.
    """
    if source.text is not None or built_in_model(lm) is not None:
        return
    lacking = []
    if source.path:
        lacking = _lacking(source.path, layers or [])
        if not lacking:
            return
    which = f" of block{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}" if lacking else ""
    raise InputError(
        f"second_moment.text: expected a text from which the second moments{which} of {lm} are estimated, but got none"
        f"{f' and {source.path} does not have them' * bool(lacking)}; give {TEXTS}, or 'atlas' where the atlas's own "
        "prose is meant; or give second_moment.path, a folder that has the moments"
    )


def _lacking(path: str, layers: Sequence[int]) -> list[int]:
    """The layers of which a folder has no moments."""
    folder = SecondMomentFolder(user_path(path, PATH), {})
    return [layer for layer in sorted(set(layers)) if not os.path.exists(folder.file(layer))]


def _settled(source: SecondMomentSource, editable: EditableModel) -> SecondMomentSource:
    """A source with what the model decides: a text of its own, if it has one, and what it can read at once."""
    if source.text is None and (built_in := built_in_model(editable.name)) is not None:
        source = replace(source, text=built_in.name)
    return replace(source, max_length=min(source.max_length, editable.context))


def check_source(source: SecondMomentSource, layers: Sequence[int] | None = None) -> None:
    """Find out what is wrong with a source whatever the model, before one is read.

    Raises:
        InputError: a number out of bounds, a folder that cannot be written, files of text that are not there.
    """
    check_numbers(vars(source), get_type_hints(type(source)), "second_moment")
    check_can_keep(source, layers or [])
    if not (source.trust and source.path):
        text_files(source)


def check_ready(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int], source: SecondMomentSource
) -> None:
    """Find out, before anything is measured, whether ``ensure`` can do what it will be asked for.

    Args:
        editable: the unedited model.
        tokenizer: its fast tokenizer.
        layers: blocks whose projection's input is wanted.
        source: text, size and folder.

    Raises:
        InputError: as ``ensure`` raises it; the text is read as far as it will be used.
    """
    layers, source = sorted(set(layers)), _settled(source, editable)
    check_source(source, layers)
    folder, text, budget, missing = _look(editable, tokenizer, layers, source)
    if not missing or text is None:
        return
    check_can_write(folder.folder, PATH if source.path else cache_option())
    check_readable(source, text, None if budget is None else budget * CHARACTERS, source.num_documents)
    widths = {layer: input_width(editable, layer) for layer in missing}
    needed = 1 if source.ridge else max(widths.values())
    found = 0
    for window in windows(tokenizer, text, source, source.num_documents):
        found += len(window.ids)
        if found >= needed:
            return
    if not found:
        raise InputError(f"second_moment.text: expected at least one token, but {source.text!r} has none; give another")
    _check_count(found, widths)


def ensure(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    progress: bool = True,
    announce: bool | None = None,
    trainer: L.Trainer | None = None,
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
    """
    rank = rank_and_size()[0] if trainer is None else trainer.global_rank
    with heartbeat("second moments: looking for what there is", progress and rank == 0) as working_on:
        told = progress if announce is None else announce
        return _ensure(editable, tokenizer, layers, source, progress, told, trainer, rank, working_on)


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
) -> SecondMomentFolder:
    layers, error = sorted(set(layers)), None
    source = _settled(source, editable)
    try:
        folder, text, budget, missing = _look(editable, tokenizer, layers, source)
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
            f"second moments: estimating block{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} from {amount} "
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


def _look(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, layers: list[int], source: SecondMomentSource
) -> tuple[SecondMomentFolder, Text | None, int | None, list[int]]:
    """The folder, the text (None where it is not needed), how many tokens to take, and the layers that are missing."""
    if not layers:
        raise InputError("layers: expected the blocks whose moments are wanted, but got none; give at least one")
    for layer in layers:
        editable.check_layer(layer)
    widths = {layer: input_width(editable, layer) for layer in layers}
    budget = _num_tokens(source, widths)
    if source.trust and source.path:  # the text may be gone
        about = {layer: {"d_in": widths[layer]} for layer in layers}
        folder = SecondMomentFolder(user_path(source.path, PATH), about, trust=True, ridge=source.ridge)
        if not folder.missing(layers):
            return folder, None, budget, []
    check_has_text(source, editable.name, layers)
    text = None if source.text is None else open_text(source)
    folder = _folder(editable, tokenizer, widths, source, text)
    missing = folder.missing(layers)
    if missing and budget is not None and not source.ridge:
        _check_count(budget, widths)
    return folder, text, budget, missing


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
    max_tokens = source.max_tokens or (TOKENS_ON_CPU if on_cpu else TOKENS_ELSEWHERE)
    free = ("path", "save_minutes", "accumulate_on", "trust", "ridge")  # what may change before a run goes on
    same = {name: value for name, value in asdict(source).items() if name not in free} | {"max_tokens": max_tokens}
    partial = Partial(folder.folder / f".partial-{digest(same, folder.about, at_work, budget)}.safetensors")
    module = SecondMoments(editable, layers, source.accumulate_on, source.tolerance, partial, source.save_minutes)
    widths = {layer: input_width(editable, layer) for layer in folder.about}
    first_check = max(widths.values()) if source.tolerance is not None else None
    data = TextDataModule(tokenizer, text, source, budget, source.num_documents, max_tokens, first_check)
    with module.until_safe:
        trainer.predict(module, datamodule=data, return_predictions=False)
    for layer in module.layers:
        working_on(f"second moments: eigenvalues and factor of block {layer}")
        error: Exception | None = None
        try:
            if rank_and_size()[0] == 0:
                if not module.tokens:
                    raise InputError(f"second_moment.text: expected at least one token, but {source.text!r} has none")
                if not source.ridge:
                    _check_count(module.tokens, {layer: widths[layer]})
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


def _folder(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    widths: dict[int, int],
    source: SecondMomentSource,
    text: Text | None,
) -> SecondMomentFolder:
    layers = [*widths, editable.depth - 1]  # the last one names the folder, so that it is the same for any layers
    weights: dict[str, Mapping[int, str | None]] = {
        "weights": content_hashes(editable, layers),
        "memory": memory_hashes(editable, layers),
        "sample": sample_hashes(editable, layers),  # all that files of schema 1 can be compared by
    }
    common: dict[str, Any] = {"tokenizer": tokenizer_hash(tokenizer)}
    if text is not None:  # else the moments that are there are taken, of whatever text
        assert source.text is not None
        column = () if resolve(source.text) is not None else (source.config, source.split, source.column)
        common |= {
            "text_revision": digest(text.revision, *column),
            "max_length": source.max_length,
            "packing": source.packing,
        }
    asked = {"num_tokens": source.num_tokens, "num_documents": source.num_documents, "tolerance": source.tolerance}
    about = {
        layer: {"d_in": widths[layer], **{name: of[layer] for name, of in weights.items()}, **common, **asked}
        for layer in widths
    }
    if source.path:
        place = user_path(source.path, PATH)
    else:
        model = weights["weights"][layers[-1]] or weights["memory"][layers[-1]]
        name = digest(model, common, asked | {"num_tokens": _num_tokens(source, widths)})
        place = cache_folder() / "moments" / name
    return SecondMomentFolder(place, about, source.trust, source.ridge)


def _num_tokens(source: SecondMomentSource, widths: dict[int, int]) -> int | None:
    if source.num_tokens is None and source.num_documents is None:
        return TOKENS_PER_DIMENSION * max(widths.values())
    return source.num_tokens


def _check_count(count: int, widths: dict[int, int]) -> None:
    width = max(widths.values())
    if count < width:
        raise InputError(
            f"second_moment.num_tokens: expected at least d_in = {width:,} tokens for an invertible second moment, but "
            f"got {count:,}; raise it, give a longer second_moment.text, or set second_moment.ridge (such as 1e-3)"
        )


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
