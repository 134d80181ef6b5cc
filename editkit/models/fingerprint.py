"""Telling one model's weights from another's without hashing gigabytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

SAMPLES = 512


def sampled(parameter: Tensor) -> Tensor:
    """Up to 512 evenly spaced entries of a parameter, in its dtype."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over every parameter's name, shape and 512 evenly spaced entries, in float32.

    Independent of the dtype in which the model was loaded only as far as float32 holds the same number. A change of a
    few entries may go unseen; a different checkpoint, a fine-tuning step or an edit does not.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sampled(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (first 16 hex digits) of every bit of a tensor."""
    raw = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]
