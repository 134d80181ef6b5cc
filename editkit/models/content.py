"""Which weights second moments are of: those that the keys of a block depend on, told apart by content.

Two hashes, each over the embeddings and the blocks up to one block's output projection, or over the whole model for
what depends on all of it. ``content`` is over every stored bit of the checkpoint that the model was loaded from,
whatever dtype it was loaded in. ``memory`` is over every parameter as it is in memory, rounded to bfloat16: all there
is for a model without a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.models.editable import EditableModel
from editkit.models.fingerprint import fingerprint, sampled, value_hash
from editkit.utils.files import cached_by_files, digest, file_hash

ORIGIN = "editkit_origin"  # attribute of a model that editkit loaded


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from.

    Attributes:
        lm: the name that was asked for: "atlas", a folder, a hub's name.
        folder: of its checkpoint.
        fingerprint: of the model as it was then.
    """

    lm: str
    folder: Path
    fingerprint: str


def remember_origin(model: PreTrainedModel, folder: Path, lm: str) -> None:
    """Note on a model, just loaded, its name and the folder of its checkpoint.

    Its fingerprint is kept in the user's cache by the sizes and times of the checkpoint's files.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"])
    found: str = cached_by_files(files, f"fingerprint {model.dtype}", partial(fingerprint, model))
    setattr(model, ORIGIN, Origin(lm, folder, found))


def name_of(model: PreTrainedModel) -> str:
    """What loads a model, as far as that is known: the name that editkit or transformers was given; else empty."""
    noted: Origin | None = getattr(model, ORIGIN, None)
    return noted.lm if noted is not None else str(model.config.name_or_path or "")


def origin(model: PreTrainedModel) -> Path | None:
    """The checkpoint whose weights the model has, or None where it has none or was changed since it was loaded."""
    noted: Origin | None = getattr(model, ORIGIN, None)
    return noted.folder if noted is not None and noted.fingerprint == fingerprint(model) else None


def memory_hashes(editable: EditableModel, layers: Sequence[int], whole: bool = False) -> dict[int, str]:
    """Per block, a hash of every entry of each parameter up to it (``whole``: of the model), rounded to bfloat16.

    The rounding makes float32 and bfloat16 loads of one checkpoint agree; float16 may not.
    """

    def entries(parameter: Tensor) -> bytes:
        return value_hash(parameter, torch.bfloat16)

    return _hashes(editable, layers, entries, whole)


def sample_hashes(editable: EditableModel, layers: Sequence[int]) -> dict[int, str]:
    """What editkit 0.2 and before kept instead: of up to 512 entries of each parameter, rounded to bfloat16."""

    def entries(parameter: Tensor) -> bytes:
        return sampled(parameter).to(torch.bfloat16).float().cpu().numpy().tobytes()

    return _hashes(editable, layers, entries)


@torch.no_grad()
def _hashes(
    editable: EditableModel, layers: Sequence[int], entries: Callable[[Tensor], bytes], whole: bool = False
) -> dict[int, str]:
    named = dict(editable.model.named_parameters())

    def hashed(parameter: Tensor) -> str:
        return hashlib.sha256(f"{tuple(parameter.shape)}".encode() + entries(parameter)).hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        parts = dict(zip(named, pool.map(hashed, named.values()), strict=True))
    if whole:
        return dict.fromkeys(layers, digest(sorted(parts.items())))
    outside = _outside(list(parts), _stack(editable))
    return {layer: _combined(parts, editable, layer, outside) for layer in layers}


def content_hashes(editable: EditableModel, layers: Sequence[int], whole: bool = False) -> dict[int, str | None]:
    """Per block, a hash of every stored bit up to it in the model's checkpoint; None for a model that has none.

    With ``whole``, of every stored bit of the model, the same for all blocks.

    Every byte is read once: the hashes are kept in the user's cache by the files' sizes and times. Checkpoints that
    are not safetensors are hashed as whole files.
    """
    folder = origin(editable.model)
    if folder is None:
        return dict.fromkeys(layers)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    if not all(f.is_file() for f in files):
        others = sorted(folder.glob("pytorch_model*.bin"))
        return dict.fromkeys(layers, digest([file_hash(f) for f in others]) if others else None)
    parts: dict[str, str] = {}
    for file in files:
        parts |= cached_by_files([file], "tensors", partial(tensor_digests, file))
    named = [name for name, _ in editable.model.named_parameters()]
    if whole:  # a checkpoint may hold a tied weight twice, and buffers
        own = {n: part for n, part in parts.items() if any(n.endswith(name) or name.endswith(n) for name in named)}
        return dict.fromkeys(layers, digest(sorted((own or parts).items())))
    stack = _stack(editable)
    before = _outside(named, stack)
    loose = [name for name in parts if not re.search(_block(stack), name)]
    outside = {n for n in loose if any(n.endswith(b) or b.endswith(n) for b in before)} or set(loose)
    return {layer: _combined(parts, editable, layer, outside) for layer in layers}


def tensor_digests(file: Path) -> dict[str, str]:
    """SHA-256 of each stored tensor of a safetensors file: its dtype, its shape and its bits."""
    digests = {}
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            found = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
            stream.seek(8 + length + start)
            left = end - start
            while left and (piece := stream.read(min(left, 1 << 24))):
                found.update(piece)
                left -= len(piece)
            digests[name] = found.hexdigest()
    return digests


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a fast tokenizer's whole definition, less the truncation and padding that calls leave behind."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest({k: v for k, v in definition.items() if k not in ("truncation", "padding")})


def _stack(editable: EditableModel) -> str:
    return next(name for name, module in editable.model.named_modules() if module is editable.blocks)


def _block(stack: str) -> str:
    """Pattern of a block's number in a tensor's name; checkpoints may leave the first parts of a name out."""
    return rf"(?:^|\.){re.escape(stack.split('.')[-1])}\.(\d+)\."


def _outside(names: Sequence[str], stack: str) -> set[str]:
    """Parameters before the blocks (the embeddings); the final norm and the head are registered after them."""
    loose = [name for name in names if not name.startswith(stack + ".")]
    first = next((i for i, name in enumerate(names) if name.startswith(stack + ".")), 0)
    return set(names[:first]) or set(loose)


def _combined(parts: dict[str, str], editable: EditableModel, layer: int, outside: set[str]) -> str:
    pattern = _block(_stack(editable))
    projection = editable.projection(layer)
    own = next(name for name, module in editable.blocks[layer].named_modules() if module is projection)

    def belongs(name: str) -> bool:
        found = re.search(pattern, name)
        if found is None:
            return name in outside
        # a block's keys stand before its own projection, so that edits of it leave them as they are
        return int(found[1]) < layer or (int(found[1]) == layer and not name[found.end() :].startswith(own + "."))

    return digest(sorted((name, part) for name, part in parts.items() if belongs(name)))
