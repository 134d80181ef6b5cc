"""Loading a language model and its tokenizer: the atlas, a local folder, or a hub name."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editkit.atlas.builtin import resolve
from editkit.models.content import remember_origin
from editkit.utils.errors import InputError
from editkit.utils.manifest import check_manifest
from editkit.utils.quiet import no_loading_bars

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@no_loading_bars()
def load_language_model(lm: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in ``dtype`` and its tokenizer, in evaluation mode and without gradients.

    Args:
        lm: "atlas" (shipped with editkit), a folder with a checkpoint, or a Hugging Face hub name.
        dtype: "float32", "bfloat16" or "float16", whatever the checkpoint was saved in.

    Raises:
        InputError: nothing of that name can be loaded; the cause is in the message.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, but got {dtype!r}")
    built_in = resolve(lm)
    source = str(built_in.model) if built_in else lm
    looks_local = not built_in and (lm.startswith((".", "/", "~")) or Path(lm).exists())
    if looks_local and not (Path(source).expanduser() / "config.json").is_file():
        raise InputError(f"lm: expected a folder with a Hugging Face checkpoint (config.json), but {lm!r} has none")
    where = Path(source).expanduser() if looks_local else source
    if looks_local:
        check_manifest(Path(where), "lm")
    if not looks_local and not built_in:
        _check_reachable(lm)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"lm: expected 'atlas', a checkpoint folder, or a hub name that is cached or reachable, but {lm!r} could "
            f"not be loaded ({cause}); download it where there is a network, or give its folder"
        ) from error
    if looks_local or built_in:
        remember_origin(model, Path(where).expanduser(), lm)
    elif isinstance(config := try_to_load_from_cache(lm, "config.json"), str):
        remember_origin(model, Path(config).parent, lm)  # the path of a hub's snapshot holds its revision
    return model.eval().requires_grad_(False), tokenizer


def _check_reachable(lm: str) -> None:
    """Fail at once, not after the hub client's half minute of retries, for a name neither cached nor reachable."""
    try:
        cached = try_to_load_from_cache(lm, "config.json") is not None
    except HFValidationError as error:
        raise InputError(f"lm: expected 'atlas', a folder or a hub name, but {lm!r} is none ({error})") from error
    if cached or constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise InputError(
            f"lm: expected 'atlas', a checkpoint folder, or a hub name that is cached or reachable, but {lm!r} is not "
            f"in the cache and {constants.ENDPOINT} cannot be reached ({error}); download it where there is a network, "
            "or give its folder"
        ) from error


def load_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint that a model was loaded from.

    Raises:
        InputError: the model has none, as far as can be told.
    """
    name = model.config.name_or_path
    try:
        if not name:
            raise ValueError("the model was not loaded from a checkpoint")
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer: expected the tokenizer of {type(model).__name__}, as these edits act in the prompt, but it "
            f"could not be loaded ({str(error).strip().splitlines()[0]}); give it: apply(model, tokenizer=...)"
        ) from error
    return found
