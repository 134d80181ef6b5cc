"""Loading a language model and its tokenizer: the atlas, a local folder, or a hub name."""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from editkit.atlas.builtin import resolve
from editkit.models.checkpoint import (
    ADAPTER,
    CONFIG,
    StoredTensor,
    check_files,
    check_size,
    one_line,
    read_config,
    stored_tensors,
)
from editkit.models.content import remember_origin
from editkit.models.editable import EditableModel
from editkit.models.soundness import check_complete, check_finite, check_tokenizer
from editkit.utils.errors import InputError, shorten
from editkit.utils.manifest import check_manifest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.inference_mode(False)  # in which a caller may be, and whose weights no gradient may go through
def load_language_model(lm: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in ``dtype`` and its tokenizer, in evaluation mode and without gradients.

    Weights are read from safetensors alone, and no code of a checkpoint is ever run.

    Args:
        lm: "atlas" (shipped with editkit), a folder with a checkpoint, or a Hugging Face hub name.
        dtype: "float32", "bfloat16" or "float16", whatever the checkpoint was saved in.

    Raises:
        InputError: nothing of that name can be loaded, or it is no whole, finite, decoder-only language model with a
            fast tokenizer that fits; the cause is in the message. Tensors of the checkpoint that are no part of the
            model are warned of.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, but got {shorten(dtype)}; choose one")
    local, name = _local_folder(lm), str(lm)
    source = local or name
    stored: dict[str, StoredTensor] = {}
    with quiet_transformers():
        check_files(local or _hub_folder(name))
        if local is not None:
            check_manifest(local, "lm")
        config = read_config(source)
        if local is not None:
            stored = stored_tensors(local)
            check_size(config, stored, local)
        tokenizer = _tokenizer(source)
        check_tokenizer(tokenizer)
        model, info = _model(source, DTYPES[dtype])
    folder = local or _hub_folder(name)  # the path of a hub's snapshot holds its revision
    if local is None:
        with suppress(InputError):  # where transformers found the weights in another revision
            stored = stored_tensors(folder)
    editable = EditableModel(model)
    check_complete(editable, info, stored)
    check_tokenizer(tokenizer, model)
    check_finite(model)
    editable.check_runs()
    editable.check_causal()
    remember_origin(model, folder, name)
    return model.eval().requires_grad_(False), tokenizer


def load_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint that a model was loaded from.

    Raises:
        InputError: the model has none, as far as can be told.
    """
    name = model.config.name_or_path
    try:
        if not name:
            raise InputError("the model was not loaded from a checkpoint")
        with quiet_transformers():
            return _tokenizer(name)
    except InputError as error:
        raise InputError(
            f"tokenizer: expected the tokenizer of {type(model).__name__}, as these edits act in the prompt, but it "
            f"could not be loaded ({error}); give it: apply(model, tokenizer=...)"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep what transformers says of files that editkit judges itself off the terminal, and its bar of tensors too."""
    verbosity, bar, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()  # of downloads, which the line above took away too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
        if not hub_bars:
            disable_progress_bars()


def _model(source: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of its parameters."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told with the others
        )
    except Exception as error:  # foreign code on foreign files may raise anything
        raise InputError(
            f"lm: expected 'atlas', a checkpoint folder, or a hub name that is cached or reachable, but the weights of "
            f"{source} could not be loaded ({one_line(error)}); copy the checkpoint again, or give another"
        ) from error
    model, info = loaded
    return model, info


def _tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # foreign code on foreign files may raise anything
        raise InputError(
            f"lm: expected a tokenizer beside the weights, but that of {source} could not be loaded "
            f"({one_line(error)}); copy tokenizer.json and tokenizer_config.json again"
        ) from error
    return tokenizer


def _local_folder(lm: str | Path) -> Path | None:
    """The folder of a checkpoint on this machine, or None for a hub's name."""
    if not isinstance(lm, (str, Path)) or not str(lm).strip():
        raise InputError(f"lm: expected 'atlas', a checkpoint folder, or a hub name, but got {shorten(lm)}; give one")
    if (built_in := resolve(str(lm))) is not None:
        return built_in.model
    shown = shorten(str(lm), 300)
    try:
        folder = Path(lm).expanduser()
        if not (isinstance(lm, Path) or lm.startswith((".", "/", "~")) or folder.exists()):
            return None
        if folder.is_file():
            raise InputError(f"lm: expected a folder with a checkpoint, but {shown} is a file; give its folder")
        if not (folder / CONFIG).is_file() and not (folder / ADAPTER).is_file():
            raise InputError(
                f"lm: expected a folder with a Hugging Face checkpoint (config.json), but {shown} has none"
            )
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be read, nobody's home
        raise InputError(
            f"lm: expected 'atlas', a checkpoint folder, or a hub name, but {shown} cannot be looked up "
            f"({one_line(error)}); check the name"
        ) from error
    return folder


def _hub_folder(name: str) -> Path:
    """The snapshot of a hub's repository in the cache; its config.json is fetched where it is not there yet."""
    _check_reachable(name)
    found: Any = try_to_load_from_cache(name, CONFIG)
    try:
        return Path(found if isinstance(found, str) else str(cached_file(name, CONFIG))).parent
    except (OSError, ValueError) as error:
        raise InputError(
            f"lm: expected 'atlas', a checkpoint folder, or a hub name that is cached or reachable, but {name!r} could "
            f"not be loaded ({one_line(error)}); download it where there is a network, or give its folder"
        ) from error


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
