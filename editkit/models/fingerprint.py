"""Telling weights apart by all that they hold: hashes of every bit, and a sketch for machines that round otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from editkit.utils.hashes import bytes_of

SIGNS = 32  # rows and columns of a sketch
PIECE = 1 << 24  # entries that are converted at once


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over the name, the shape and every entry of each parameter and kept buffer.

    Entries of narrower dtypes count as the float32 number that they are, so that a bfloat16 checkpoint has one
    fingerprint in whichever of the two it was loaded. 1 GB of float32 takes about a second on one core.
    """
    kept = model.state_dict().keys()
    tensors = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in kept}
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        parts = pool.map(value_hash, tensors.values())
        digest = hashlib.sha256()
        for (name, tensor), part in zip(tensors.items(), parts, strict=True):
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + part)
    return digest.hexdigest()[:16]


def value_hash(tensor: Tensor, dtype: torch.dtype | None = None) -> bytes:
    """SHA-256 of a tensor's entries, row by row, whatever dtype holds them.

    Args:
        tensor: of any dtype; floating ones narrower than float32 count as float32.
        dtype: that entries are rounded to first.
    """
    digest = hashlib.sha256()
    for piece in _pieces(tensor):
        piece = piece if dtype is None else piece.to(dtype)
        narrow = piece.is_floating_point() and piece.element_size() < 4
        digest.update(bytes_of(piece.float() if narrow else piece))
    return digest.digest()


@torch.no_grad()
def sketch(parameter: Tensor) -> Tensor:
    """Sums of all entries of a parameter under fixed random signs, (32, 32) float64 on the CPU.

    S = AᵀWB with signs ±1 in A (rows, 32) and B (columns, 32), made of SHAKE-256, the same on every machine. For any
    two parameters of one shape, E‖S₁ − S₂‖² = 32² ‖W₁ − W₂‖² (Frobenius norms), so that sketches tell how far all
    entries are from each other together, for 8 KB.

    >>> one = torch.randn(300, 200, dtype=torch.float64)
    >>> other = one + 0.01 * torch.randn(300, 200, dtype=torch.float64)
    >>> bool(0.5 < (sketch(one) - sketch(other)).norm() / (32 * (one - other).norm()) < 2)
    True
    """
    matrix = parameter.detach().reshape(len(parameter) if parameter.dim() else 1, -1)
    where = matrix.device if matrix.device.type != "mps" else torch.device("cpu")  # mps has no float64
    left, right = (_signs(side, n).to(where) for side, n in zip(("rows", "columns"), matrix.shape, strict=True))
    found = torch.zeros(SIGNS, SIGNS, dtype=torch.float64, device=where)
    step = max(1, PIECE // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step].to(where).double()
        found += left[start : start + step].T @ (rows @ right)
    return found.cpu()


def _signs(side: str, count: int) -> Tensor:
    """(count, 32) float64 of ±1."""
    drawn = hashlib.shake_256(f"editkit {side}".encode()).digest(count * SIGNS // 8)
    bits = torch.frombuffer(bytearray(drawn), dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8)
    return (bits & 1).double().mul_(2).sub_(1).reshape(count, SIGNS)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.detach().reshape(-1).split(PIECE)


# ---------------------------------------------------------------- what older editkits looked at

SAMPLES = 512
SAMPLED = "sampled:"  # stands before such a fingerprint


def fingerprint_like(recorded: str, model: nn.Module) -> str:
    """The fingerprint of a model, of the kind that a record has."""
    return SAMPLED + sampled_fingerprint(model) if recorded.startswith(SAMPLED) else fingerprint(model)


def sampled(parameter: Tensor) -> Tensor:
    """The up to 512 entries that files of editkit 0.2 and before have of a parameter.

    They are ``len // 512`` apart, and so all of one column wherever 512 divides the number of rows: they can show that
    weights differ, and not that they agree.
    """
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


@torch.no_grad()
def sampled_fingerprint(model: nn.Module) -> str:
    """The fingerprint of editkit 0.2 and before, over ``sampled`` entries of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sampled(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
