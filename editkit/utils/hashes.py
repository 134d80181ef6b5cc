"""Hashes of tensors: of every bit."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """Every byte of a tensor, row by row, without a copy where it lies so on the CPU."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (first 16 hex digits) of every bit of a tensor.

    >>> zeros = torch.zeros(3)
    >>> tensor_hash(zeros) == tensor_hash(zeros.clone()), tensor_hash(zeros) == tensor_hash(-zeros)
    (True, False)
    """
    return hashlib.sha256(bytes_of(tensor)).hexdigest()[:16]
