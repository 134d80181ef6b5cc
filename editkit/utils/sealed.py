"""Safetensors files that notice when a single bit of them is not what was written.

The file's metadata has one entry, ``editkit``: JSON with whatever is to be known of the tensors, a SHA-256 of each
tensor (dtype, shape, bytes), and a SHA-256 of these two. A file that does not agree with it is not read. There is one
entry since safetensors writes several in no fixed order: equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.utils.files import atomic_write
from editkit.utils.hashes import bytes_of

ENTRY = "editkit"
Tensors = dict[str, Tensor]


class BrokenSeal(ValueError):
    """A file that is not, bit for bit, what was written."""


def seal(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the spaces between.

    >>> seal({"a": 1, "b": (2,)}) == seal({"b": [2], "a": 1})
    True
    """
    plain = json.loads(json.dumps(value, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_sealed(file: Path, tensors: Mapping[str, Tensor], about: Any, field: str = "path") -> None:
    """Write tensors and what is to be known of them, whole or not at all.

    Args:
        file: where it goes; its folder is made.
        tensors: on any device.
        about: JSON values.
        field: name of the user's option that chose the place, for messages.

    Raises:
        InputError: it could not be written.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = {"about": about, "tensors": _hashes(kept)}
    text = json.dumps({**header, "sha256": seal(header)}, default=str)
    atomic_write(file, lambda part: save_file(kept, part, {ENTRY: text}), field)


def read_sealed(file: Path) -> tuple[Tensors, Any]:
    """The tensors of a file, on the CPU, and what is to be known of them.

    Raises:
        BrokenSeal: it is not what ``write_sealed`` wrote.
        OSError: it is not there, or cannot be read.
    """
    with _opened(file) as content:
        header = _header(content.metadata())
        # copies: what is read is the file itself, mapped, and changes with it
        tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    hashes = _hashes(tensors)
    for name in sorted({*hashes, *header["tensors"]}):
        if hashes.get(name) != header["tensors"].get(name):
            raise BrokenSeal(f"its tensor {name} is not what was written")
    return tensors, header["about"]


def read_about(file: Path) -> Any:
    """What is to be known of a file's tensors, which are not read.

    Raises:
        BrokenSeal: the header is not what ``write_sealed`` wrote.
        OSError: the file is not there, or cannot be read.
    """
    with _opened(file) as content:
        return _header(content.metadata())["about"]


def is_sealed(file: Path) -> bool:
    """Whether a file was written by ``write_sealed``, harmed or not; older editkits wrote others.

    Raises:
        BrokenSeal: it is no safetensors file.
        OSError: it is not there, or cannot be read.
    """
    with _opened(file) as content:
        return ENTRY in (content.metadata() or {})


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise BrokenSeal(str(error)) from error


def _header(metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads((metadata or {})[ENTRY])
        given = header.pop("sha256")
        whole = seal(header) == given and isinstance(header["tensors"], dict) and "about" in header
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenSeal("it has no header that editkit wrote") from error
    if not whole:
        raise BrokenSeal("its header is not what was written")
    return header


def _hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    def hashed(tensor: Tensor) -> str:
        digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
        return digest.hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip(tensors, pool.map(hashed, tensors.values()), strict=True))
