"""What second moments are asked for: which weights, which text, how many tokens; and what a folder has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from editkit.atlas.builtin import resolve
from editkit.covariance.folder import SecondMomentFolder
from editkit.covariance.source import PATH, SecondMomentSource, check_has_text, check_source, settled
from editkit.covariance.summand import KEYS, OUTPUT_GRADIENTS, Summand
from editkit.data.text import Text, check_readable, open_text
from editkit.data.windows import windows
from editkit.models.content import content_hashes, memory_hashes, sample_hashes, tokenizer_hash
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError
from editkit.utils.files import cache_folder, cache_option, check_can_write, digest, user_path

TOKENS_PER_DIMENSION = 100
CHARACTERS = 8  # that a token has at most, on average


def check_ready(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: SecondMomentSource,
    of: Summand = KEYS,
) -> SecondMomentFolder | None:
    """Find out, before anything is measured, whether ``ensure`` can do what it will be asked for.

    Args:
        editable: the unedited model.
        tokenizer: its fast tokenizer.
        layers: blocks whose moments are wanted.
        source: text, size and folder.
        of: what they are moments of.

    Returns:
        The folder that has them all; None where some are still to be estimated.

    Raises:
        InputError: as ``ensure`` raises it; the text is read as far as it will be used.
    """
    layers, source = sorted(set(layers)), settled(source, editable)
    check_source(source, layers, of)
    folder, text, budget, missing = look(editable, tokenizer, layers, source, of)
    if not missing or text is None:
        return None if missing else folder
    check_can_write(folder.folder, PATH if source.path else cache_option())
    check_readable(source, text, None if budget is None else budget * CHARACTERS, source.num_documents)
    widths = {layer: of.width(editable, layer) for layer in missing}
    needed = max(widths.values()) if of.factored and not source.ridge else 1
    found = 0
    for window in windows(tokenizer, text, source, source.num_documents):
        found += len(window.ids)
        if found >= needed:
            return None
    if not found:
        raise InputError(f"second_moment.text: expected at least one token, but {source.text!r} has none; give another")
    check_count(found, widths)
    return None


def look(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: list[int],
    source: SecondMomentSource,
    of: Summand = KEYS,
) -> tuple[SecondMomentFolder, Text | None, int | None, list[int]]:
    """The folder, the text (None where it is not needed), how many tokens to take, and the layers that are missing."""
    if not layers:
        raise InputError("layers: expected the blocks whose moments are wanted, but got none; give at least one")
    for layer in layers:
        editable.check_layer(layer)
    widths = {layer: of.width(editable, layer) for layer in layers}
    budget = _num_tokens(source, widths)
    if source.trust and source.path:  # the text may be gone
        about = {layer: {of.width_name: widths[layer]} for layer in layers}
        folder = SecondMomentFolder(user_path(source.path, PATH), about, trust=True, ridge=source.ridge, of=of)
        if not folder.missing(layers):
            return folder, None, budget, []
    check_has_text(source, editable.name, layers, of)
    text = None if source.text is None else open_text(source)
    folder = _folder(editable, tokenizer, widths, source, text, of)
    missing = folder.missing(layers)
    if missing and budget is not None and of.factored and not source.ridge:
        check_count(budget, widths)
    return folder, text, budget, missing


def _folder(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    widths: dict[int, int],
    source: SecondMomentSource,
    text: Text | None,
    of: Summand,
) -> SecondMomentFolder:
    layers = [*widths, editable.depth - 1]  # the last one names the folder, so that it is the same for any layers
    weights: dict[str, Mapping[int, str | None]] = {
        "weights": content_hashes(editable, layers, of.of_all_weights),
        "memory": memory_hashes(editable, layers, of.of_all_weights),
    }
    common: dict[str, Any] = {"tokenizer": tokenizer_hash(tokenizer)}
    if of is KEYS:
        weights["sample"] = sample_hashes(editable, layers)  # all that files of schema 1 can be compared by
    else:
        common["of"] = of.name
    if text is not None:  # else the moments that are there are taken, of whatever text
        assert source.text is not None
        column = () if resolve(source.text) is not None else (source.config, source.split, source.column)
        common |= {
            "text_revision": digest(text.revision, *column),
            "max_length": source.max_length,
            "packing": source.packing,
        }
        if of is OUTPUT_GRADIENTS:
            common["label_seed"] = source.seed
    asked = {"num_tokens": source.num_tokens, "num_documents": source.num_documents, "tolerance": source.tolerance}
    about = {
        layer: {
            of.width_name: widths[layer],
            **{name: found[layer] for name, found in weights.items()},
            **common,
            **asked,
        }
        for layer in widths
    }
    if source.path:
        place = user_path(source.path, PATH)
    else:
        model = weights["weights"][layers[-1]] or weights["memory"][layers[-1]]
        name = digest(model, common, asked | {"num_tokens": _num_tokens(source, widths)})
        place = cache_folder() / "moments" / name
    return SecondMomentFolder(place, about, source.trust, source.ridge, of)


def _num_tokens(source: SecondMomentSource, widths: dict[int, int]) -> int | None:
    if source.num_tokens is None and source.num_documents is None:
        return TOKENS_PER_DIMENSION * max(widths.values())
    return source.num_tokens


def check_count(count: int, widths: dict[int, int]) -> None:
    """Raise an ``InputError`` where there are fewer tokens than dimensions, and no ridge makes up for it."""
    width = max(widths.values())
    if count < width:
        raise InputError(
            f"second_moment.num_tokens: expected at least d_in = {width:,} tokens for an invertible second moment, but "
            f"got {count:,}; raise it, give a longer second_moment.text, or set second_moment.ridge (such as 1e-3)"
        )
