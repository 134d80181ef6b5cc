"""Second moments of the keys over text: all requested layers in one pass of ``Trainer.predict``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse.typing import PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from editkit.data.text import token_windows, window_loader
from editkit.errors import InputError
from editkit.functional.moments import MomentSum
from editkit.models.family import Family, StopForward, orient, watching
from editkit.models.fingerprint import fingerprint
from editkit.quiet import quiet_lightning

MOMENTS_FILE = "moments.safetensors"


@dataclass
class MomentSource:
    """Where the second moments E[k kᵀ] of the keys to preserve come from.

    Args:
        path: folder of moments. Loaded where it has some of the same model, else estimated and saved there. Default:
            estimated at the start of the run (and kept in its folder).
        text: "atlas", a text file, or a folder of .txt files.
        num_tokens: tokens to average over. Default: 100 for each dimension of the projection's input.
        max_length: tokens per window.
        max_tokens: tokens per padded batch; bounds memory, not results.
        seed: of the atlas's text.
    """

    path: str | None = None
    text: str = "atlas"
    num_tokens: PositiveInt | None = None
    max_length: PositiveInt = 128
    max_tokens: PositiveInt = 8192
    seed: int = 0


class SecondMoments(L.LightningModule):
    """Accumulates Σ k kᵀ at the MLP output projections of several blocks; ends each forward after the last of them.

    Args:
        family: the unedited model.
        layers: blocks whose projection's input is wanted.

    Attributes:
        sums: block to its ``MomentSum``; ``sums[layer].mean()`` is C = E[k kᵀ] in float64.
    """

    def __init__(self, family: Family, layers: Sequence[int]) -> None:
        super().__init__()
        self.language_model = family.model
        self.family = family
        self.sums = {layer: MomentSum.zeros(input_width(family, layer)) for layer in sorted(set(layers))}

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add one batch: (rows, length) token ids and their mask; padded positions are not counted."""
        ids, mask = (t.to(self.family.device) for t in batch)
        last = max(self.sums)

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self.sums[layer].add(inputs[0].reshape(-1, inputs[0].shape[-1])[mask.flatten().bool()])
                if layer == last:
                    raise StopForward

            return hook

        hooks = [self.family.projection(layer).register_forward_pre_hook(keep(layer)) for layer in self.sums]
        with torch.no_grad(), watching(*hooks):
            self.family.model(input_ids=ids, attention_mask=mask, use_cache=False)


def input_width(family: Family, layer: int) -> int:
    """d_in of a block's projection."""
    return int(orient(family.projection(layer), family.weight(layer)).shape[1])


def second_moments(
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    source: MomentSource,
    progress: bool = True,
) -> dict[int, Tensor]:
    """Load the second moments of ``layers``, or estimate them (and save them where ``source.path`` says).

    Returns:
        Block to C = E[k kᵀ], (d_in, d_in) float64 on the CPU.

    Raises:
        InputError: the file at ``source.path`` is not of this model or these layers or not readable, or the text has
            fewer tokens than d_in.
    """
    model = fingerprint(family.model)
    file = Path(source.path) / MOMENTS_FILE if source.path else None
    if file is not None and file.exists():
        return _load(file, model, layers)
    width = max(input_width(family, layer) for layer in layers)
    windows = token_windows(tokenizer, source.text, source.num_tokens or 100 * width, source.max_length, source.seed)
    count = sum(map(len, windows))
    if count < width:
        raise InputError(
            f"moments: expected at least d_in = {width} tokens for an invertible second moment, but got {count}; raise "
            "moments.num_tokens, or give a longer moments.text"
        )
    module = SecondMoments(family, layers)
    device = family.device
    with quiet_lightning():
        _predict(module, window_loader(windows, source.max_tokens), device, progress)
    moments = {layer: total.mean().cpu() for layer, total in module.sums.items()}
    if file is not None:
        save_moments(file.parent, moments, model, {"text": source.text, "tokens": str(count)})
    return moments


def _predict(module: SecondMoments, loader: DataLoader[Any], device: torch.device, progress: bool) -> None:
    trainer = L.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.index is None else [device.index],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        inference_mode=False,
    )
    trainer.predict(module, loader, return_predictions=False)
    nn.Module.to(module.language_model, device)  # Trainer's teardown leaves models on the CPU


def save_moments(folder: Path, moments: dict[int, Tensor], model: str, about: dict[str, str]) -> None:
    """Write moments, float32, with the fingerprint of the model that they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"layer.{layer}": moment.float().contiguous() for layer, moment in moments.items()}
    part = folder / f".{MOMENTS_FILE}.part"
    save_file(tensors, part, metadata={"model": model, **about})
    part.replace(folder / MOMENTS_FILE)


def _load(file: Path, model: str, layers: Sequence[int]) -> dict[int, Tensor]:
    try:
        with safe_open(file, framework="pt") as stored:
            came = (stored.metadata() or {}).get("model")
            if came != model:
                raise InputError(
                    f"moments.path: {file} is of the model with fingerprint {came}, but this one has {model}; give "
                    "another folder, and the moments are estimated into it"
                )
            missing = [layer for layer in layers if f"layer.{layer}" not in stored.keys()]  # noqa: SIM118
            if missing:
                raise InputError(f"moments.path: {file} lacks layers {missing}; give another folder, or its layers")
            return {layer: stored.get_tensor(f"layer.{layer}").double() for layer in layers}
    except (SafetensorError, OSError) as error:
        raise InputError(f"moments.path: {file} could not be read ({error}); delete it, and it is made anew") from error
