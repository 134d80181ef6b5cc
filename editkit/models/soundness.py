"""What a model must be, once it is loaded, to be edited: all there, finite, causal, and with a tokenizer that fits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.models.checkpoint import StoredTensor, one_line
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError, describe
from editkit.utils.words import listed

SAMPLE = "The capital of France is Paris, and 1 + 2 = 3."


def check_complete(editable: EditableModel, info: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a model that its checkpoint does not give whole; warn of tensors that are no part of it.

    Args:
        editable: the model, just loaded.
        info: what ``from_pretrained`` says of the loading: names that are missing, mismatched and unexpected, less
            those that transformers knows to be tied, computed, or left over from an older version.
        stored: the checkpoint's tensors, as far as they are known.

    Raises:
        InputError: naming parameters that are missing, of another shape, no floating-point numbers, or of blocks that
            the model does not have.
    """
    model = editable.model
    kind = type(model).__name__
    if mismatched := sorted(info["mismatched_keys"]):
        name, has, wanted = mismatched[0]
        others = f", as {len(mismatched) - 1} more that do not fit" if mismatched[1:] else ""
        raise InputError(
            f"lm: expected {name} of shape {tuple(wanted)}, as config.json describes {kind}, but the checkpoint has "
            f"{tuple(has)}{others}; give weights and config of one model"
        )
    unexpected = sorted(info["unexpected_keys"], key=_natural)
    if missing := sorted(info["missing_keys"], key=_natural):
        instead = f" and has others instead ({listed(unexpected)})" if unexpected else ""
        raise InputError(
            f"lm: expected all parameters of {kind}, but the checkpoint lacks {listed(missing)}{instead}; give "
            "weights and config of one model, or copy the checkpoint again"
        )
    if beyond := [name for name in unexpected if _block_of(editable, name) >= editable.depth]:
        raise InputError(
            f"lm: expected {editable.depth} blocks, as config.json says, but the checkpoint has more "
            f"({listed(beyond)}); correct the number, as the model is another one without them"
        )
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in stored.items():
        if not tensor.dtype.startswith(("F", "BF")) and _is_one_of(name, names):
            raise InputError(
                f"lm: expected floating-point numbers, but {name} is stored as {tensor.dtype}; give the checkpoint "
                "with its weights as they were trained"
            )
    if unexpected:
        warnings.warn(
            f"lm: {listed(unexpected)} of the checkpoint {'are' if len(unexpected) > 1 else 'is'} no part of {kind}, "
            "and not read",
            stacklevel=2,
        )


@torch.no_grad()
def check_finite(model: PreTrainedModel) -> None:
    """Refuse NaN and infinity in any parameter; each is read once, and nothing is copied.

    Raises:
        InputError: naming the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() and not torch.stack(parameter.aminmax()).isfinite().all():
            count = int((~parameter.isfinite()).sum())
            dtype = str(parameter.dtype).removeprefix("torch.")
            narrow = ", or choose a dtype of larger range" if dtype == "float16" else ""
            raise InputError(
                f"lm: expected finite weights, but {name} is not finite in {count:,} of {parameter.numel():,} entries, "
                f"as {dtype}; give a checkpoint that is whole{narrow}"
            )


def check_model(model: object) -> None:
    """Refuse what is no model of transformers with its weights in memory.

    Raises:
        InputError: as said.
    """
    if not isinstance(model, PreTrainedModel):
        load = f"editkit.load_language_model({model!r})" if isinstance(model, str) else "AutoModelForCausalLM"
        raise InputError(
            f"model: expected a model of transformers in memory, not wrapped in another, but got {describe(model)}; "
            f"load it with {load}"
        )
    if any(p.is_meta for p in model.parameters()):
        raise InputError("model: expected weights in memory, but some are offloaded (meta device); load it whole")


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None, field: str = "lm"
) -> None:
    """Refuse a tokenizer that gives no offsets or no tokens, or with a model tokens that it has no embedding of.

    Special tokens beyond the embeddings, such as Gemma 3's for pictures, are let pass as long as they come into no
    text by themselves.

    Args:
        tokenizer: the tokenizer.
        model: its model.
        field: what messages call the place where it came from.

    Raises:
        InputError: as said.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"{field}: expected the model's tokenizer, but got {describe(tokenizer)}; load it with AutoTokenizer"
        )
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise InputError(
            f"{field}: expected a fast tokenizer, which gives character offsets, but got {kind}; use a checkpoint with "
            "a tokenizer.json"
        )
    try:
        sample = tokenizer(SAMPLE).input_ids
    except Exception as error:  # foreign code on foreign files may raise anything
        raise InputError(
            f"{field}: expected a tokenizer, but {kind} fails on {SAMPLE!r} ({one_line(error)}); use the checkpoint's "
            "tokenizer.json and tokenizer_config.json"
        ) from error
    if set(sample) <= set(tokenizer.all_special_ids):
        raise InputError(
            f"{field}: expected a tokenizer that knows words, but {kind} with {len(tokenizer):,} tokens finds none in "
            f"{SAMPLE!r}; use the checkpoint's tokenizer.json"
        )
    if model is None:
        return
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    used = {*sample, *(i for i in (tokenizer.eos_token_id, tokenizer.unk_token_id) if i is not None)}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - used
    beyond = [i for i in {*tokenizer.get_vocab().values(), *used} if i >= rows and i not in special]
    if beyond:
        raise InputError(
            f"{field}: expected a tokenizer of the model, but it gives ids up to {max(beyond):,} and the embedding of "
            f"{type(model).__name__} has {rows:,} rows; use the tokenizer that the model was trained with"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _block_of(editable: EditableModel, name: str) -> int:
    """The block of a checkpoint's tensor, or -1; a checkpoint may leave the first parts of a name out."""
    stack = next(path for path, module in editable.model.named_modules() if module is editable.blocks)
    *outer, last = stack.split(".")
    found = re.match(rf"(.*\.)?{re.escape(last)}\.(\d+)\.", name)
    if found is None or not f".{'.'.join([*outer, ''])}".endswith(f".{found[1] or ''}"):
        return -1
    return int(found[2])


def _is_one_of(name: str, names: Collection[str]) -> bool:
    """Whether a checkpoint's tensor is one of a model's, the first parts of either name left out."""
    return name in names or any(own.endswith(f".{name}") or name.endswith(f".{own}") for own in names)
