"""A checkpoint's folder, judged by its files before a library reads them: what is missing, broken, or not to be run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from editkit.utils.errors import InputError, shorten
from editkit.utils.words import listed

CONFIG, ADAPTER = "config.json", "adapter_config.json"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"  # which there need not be
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
COPY = "copy the checkpoint again"
#: a config that describes so much more than the files hold is refused before memory is taken for it
MANY_BLOCKS, MANY_PARAMETERS, EXCESS = 1000, 1 << 28, 4


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of a tensor.

    Attributes:
        dtype: as safetensors calls it: "F32", "BF16", "I64" …
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]


def one_line(error: BaseException, width: int = 200) -> str:
    """What an error says, in one line; its kind too where it says nothing or only a key."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__}{': ' if text else ''}{text}"
    return text if len(text) <= width else text[: width - 1] + "…"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"lm: expected JSON in {file}, but it cannot be read ({one_line(error)}); {COPY}") from error
    if not isinstance(found, dict):
        raise InputError(f"lm: expected a JSON object in {file}, but got {shorten(found)}; {COPY}")
    return found


def check_files(folder: Path) -> None:
    """Refuse a folder whose configs cannot be read or ask for what editkit does not do.

    Raises:
        InputError: no config, not JSON, code of its own, quantised weights, an adapter, or a kind of model that
            transformers does not know.
    """
    if (folder / ADAPTER).exists():
        raise InputError(
            f"lm: expected a whole model, but {folder / ADAPTER} makes it an adapter on top of one; merge it into its "
            "model (merge_and_unload of PEFT) and save that"
        )
    config = read_json(folder / CONFIG)
    others = {name: folder / name for name in (TOKENIZER_CONFIG, GENERATION_CONFIG) if (folder / name).exists()}
    for name, content in {CONFIG: config, **{name: read_json(file) for name, file in others.items()}}.items():
        if content.get("auto_map"):
            raise InputError(
                f"lm: expected a checkpoint that transformers reads by itself, but {folder / name} has auto_map, code "
                "of its own, which is not run; choose a checkpoint without it, or take auto_map out where "
                "transformers knows the model too"
            )
    if config.get("transformers_weights") is not None:
        raise InputError(
            f"lm: expected weights in {folder / WEIGHTS}, but transformers_weights of {folder / CONFIG} names "
            f"{shorten(config['transformers_weights'])}; give the file that name, and take the field out"
        )
    if config.get("quantization_config") is not None:
        raise InputError(
            f"lm: expected weights that can be changed, but {folder / CONFIG} has quantization_config; give the "
            "checkpoint that it was made from"
        )
    kind = config.get("model_type")
    if kind is not None and (not isinstance(kind, str) or kind not in CONFIG_MAPPING):
        raise InputError(
            f"lm: expected a model_type that transformers knows in {folder / CONFIG}, but got {shorten(kind)}; correct "
            "it, or choose another checkpoint"
        )


def read_config(source: str | Path) -> PreTrainedConfig:
    """The config of a causal language model, as transformers understands it.

    Args:
        source: folder of a checkpoint, or a hub's name.

    Raises:
        InputError: transformers refuses it, or it is another kind of model's.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # foreign code on a foreign file may raise anything
        raise InputError(
            f"lm: expected a model's config.json in {source}, but transformers refuses it ({one_line(error)}); "
            "correct it, or choose another checkpoint"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        what = "an encoder and a decoder" if config.is_encoder_decoder else "another kind of model"
        raise InputError(
            f"lm: expected a decoder-only causal language model, but {source} is {what} "
            f"({config.model_type}); choose another checkpoint"
        )
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, those that an index names included.

    Raises:
        InputError: there are none, they are pickled, the index cannot be read, or a file that it names is missing.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if index.is_file():
        table = _weight_map(index)
        files = [folder / name for name in sorted(set(table.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise InputError(
                f"lm: expected all files that {index} names, but {listed(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing; {COPY}"
            )
        return files
    if pickled := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise InputError(
            f"lm: expected weights in {folder / WEIGHTS}, but got {listed(pickled)}, pickled Python, which may run "
            "any code when it is read; convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise InputError(f"lm: expected weights in {folder / WEIGHTS}, but there is no such file; {COPY}")


def _weight_map(index: Path) -> dict[str, str]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise InputError(f"lm: expected weight_map in {index}, names of tensors and their files, but got none; {COPY}")
    for name, file in table.items():
        if not isinstance(file, str) or not file or file != Path(file).name:
            raise InputError(
                f"lm: expected weight_map in {index} to name files beside it, but {shorten(name)} is in "
                f"{shorten(file)}; {COPY}"
            )
    return table


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint, from the headers of its files.

    Raises:
        InputError: as ``weight_files``; a file is truncated or no safetensors, or lacks a tensor that the index names.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 - no mapping
                    part = content.get_slice(name)
                    found[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"lm: expected weights as safetensors in {file}, but it is truncated or something else "
                f"({one_line(error)}); {COPY}"
            ) from error
    if not (folder / WEIGHTS).is_file():
        for name, file_name in _weight_map(folder / INDEX).items():
            if name not in found:
                raise InputError(
                    f"lm: expected the tensors that {folder / INDEX} names, but {file_name} has no {shorten(name)}; "
                    f"{COPY}"
                )
    return found


def check_size(config: PreTrainedConfig, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Refuse a config that describes a model out of all proportion to the weights, or one that cannot be built.

    Nothing of the model's size is taken: it is built without memory behind its parameters.

    Raises:
        InputError: numbers of the config do not go together, or the files hold far less.
    """
    file = folder / CONFIG
    depth, most = getattr(config.get_text_config(), "num_hidden_layers", None), max(len(stored), MANY_BLOCKS)
    if isinstance(depth, int) and not 0 < depth <= most:  # too many take minutes to build even without memory
        raise InputError(
            f"lm: expected the number of blocks in {file}, but got {depth}, with {len(stored)} tensors in the "
            "checkpoint; correct it"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        described = sum(parameter.numel() for parameter in model.parameters())
    except Exception as error:  # foreign code on a foreign file may raise anything
        raise InputError(
            f"lm: expected the description of a model in {file}, but none can be built from it ({one_line(error)}); "
            "correct it"
        ) from error
    held = sum(prod(tensor.shape) for tensor in stored.values())
    if described > EXCESS * held and described > MANY_PARAMETERS:
        raise InputError(
            f"lm: expected the {described:,} parameters that {file} describes, but the checkpoint has "
            f"{held:,} numbers in {len(stored)} tensors; correct the one, or copy the other again"
        )
