"""Where second moments come from and are kept, as a user says it, and what is wrong with that whatever the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_type_hints

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from editkit.atlas.builtin import built_in_model
from editkit.covariance.folder import SecondMomentFolder
from editkit.covariance.summand import KEYS, Summand
from editkit.data.text import TEXTS, TextSource, text_files
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError
from editkit.utils.files import check_can_write, user_path
from editkit.utils.numbers import check_numbers

PATH = "second_moment.path"


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
            of the projection's input (of output gradients: of its output); without limit where ``num_documents`` is
            given.
        num_documents: documents to average over (the papers take 100,000 of Wikipedia).
        tolerance: stop before that, once a doubling of the tokens changes every layer's C by less than this:
            ‖C_now − C_before‖ / ‖C_now‖ in Frobenius norms, looked at whenever the token count has doubled.
        ridge: added to C's diagonal before it is factored, as a share of the mean of its diagonal. Needed only with
            fewer tokens than dimensions.
        max_tokens: tokens per padded batch; bounds memory, not results. Default: 2,048 on a CPU, 8,192 elsewhere, the
            fastest of those measured; for output gradients a quarter of these.
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


def check_source(source: SecondMomentSource, layers: Sequence[int] | None = None, of: Summand = KEYS) -> None:
    """Find out what is wrong with a source whatever the model, before one is read.

    Raises:
        InputError: a number out of bounds, a folder that cannot be written, files of text that are not there.
    """
    check_numbers(vars(source), get_type_hints(type(source)), "second_moment")
    check_can_keep(source, layers or [], of)
    if not (source.trust and source.path):
        text_files(source)


def check_can_keep(source: SecondMomentSource, layers: Sequence[int], of: Summand = KEYS) -> None:
    """Find out, before a model is loaded or measured, whether ``source.path`` can take what it lacks of ``layers``.

    Nothing is left there. What it has is not read; ``ensure`` checks that, and the cache where there is no path.

    Raises:
        InputError: it is a file, is below one, or cannot be written.
    """
    if source.path and _lacking(source.path, layers, of):
        check_can_write(user_path(source.path, PATH), PATH)


def check_has_text(
    source: SecondMomentSource, lm: str, layers: Sequence[int] | None = None, of: Summand = KEYS
) -> None:
    """Find out, before any work, whether moments that ``source.path`` lacks have a text to be estimated from.

    Args:
        source: text and folder.
        lm: name or folder of the language model.
        layers: blocks whose moments are wanted; None: not known yet, so that a folder may have them all.
        of: what they are moments of.

    Raises:
        InputError: there is none, and the model is no built-in one, which has a text of its own.
    """
    if source.text is not None or built_in_model(lm) is not None:
        return
    lacking = []
    if source.path:
        lacking = _lacking(source.path, layers or [], of)
        if not lacking:
            return
    which = f" of block{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}" if lacking else ""
    raise InputError(
        f"second_moment.text: expected a text from which the {of.title}{which} of {lm} are estimated, but got none"
        f"{f' and {source.path} does not have them' * bool(lacking)}; give {TEXTS}, or 'atlas' where the atlas's own "
        "prose is meant; or give second_moment.path, a folder that has the moments"
    )


def _lacking(path: str, layers: Sequence[int], of: Summand) -> list[int]:
    """The layers of which a folder has no moments."""
    folder = SecondMomentFolder(user_path(path, PATH), {}, of=of)
    return [layer for layer in sorted(set(layers)) if not os.path.exists(folder.file(layer))]


def settled(source: SecondMomentSource, editable: EditableModel) -> SecondMomentSource:
    """A source with what the model decides: a text of its own, if it has one, and what it can read at once."""
    if source.text is None and (built_in := built_in_model(editable.name)) is not None:
        source = replace(source, text=built_in.name)
    return replace(source, max_length=min(source.max_length, editable.context))
