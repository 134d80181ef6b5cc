"""Sums of g gᵀ at the MLP output projections: the output side of the Kronecker-factored Fisher information.

g is the gradient of the model's own loss over a window of text by the projection's output at one token. The loss is the
sum, over all of the window's positions, of −log p of a label that is drawn from what the model predicts there, not read
off the text: the true Fisher (Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate
Curvature"). Every token of the window counts as one g, as it counts as one key.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from editkit.covariance.accumulate import SecondMoments
from editkit.covariance.summand import OUTPUT_GRADIENTS
from editkit.data.windows import Round
from editkit.functional.values import row_wise, token_nll
from editkit.models.editable import StopForward, hidden_of, watching
from editkit.models.fused import fused_activations

LOGITS = 1 << 24  # at once: with what is made of them on the way to a label and a gradient, a few hundred megabytes


class OutputGradientMoments(SecondMoments):
    """Accumulates Σ g gᵀ at the MLP output projections of several blocks.

    The forward runs to the last block, keeping a graph from the lowest wanted projection on; the head and the loss run
    a few positions at a time. The backward goes down to the lowest wanted projection and makes no parameter's gradient.

    A label depends on the seed, on its window's place in the text and on its own place in the window: not on what else
    is in the batch or on which process has it. As it is drawn by what the model predicts, it may become another where
    ``max_tokens`` is another and the probabilities are rounded otherwise: in float32 none of 40,000 on the atlas did.

    Arguments and attributes are those of ``SecondMoments``; ``label_seed`` is set before the run.
    """

    of = OUTPUT_GRADIENTS
    label_seed = 0

    @override
    def _forward(self, batch: Round) -> None:
        whole = bool(batch.mask.all())
        # a Trainer may be in inference mode, whose tensors no graph takes: what came from it is copied
        with torch.inference_mode(False), torch.enable_grad(), _frozen(self.editable.model):
            device = self.editable.device
            ids, kept = batch.ids.clone().to(device), batch.mask.clone().flatten().bool().to(device)
            draws = torch.cat(
                [
                    uniforms(self.label_seed, number, length)
                    for number, length in zip(batch.numbers, batch.mask.sum(1).tolist(), strict=True)
                ]
            ).to(ids.device)
            outputs, states = self._run(ids)
            loss = self._loss(states.reshape(-1, states.shape[-1])[kept], draws)
            gradients = torch.autograd.grad(loss, [outputs[layer] for layer in self.layers])
            del outputs, states, loss
        for layer, gradient in zip(self.layers, gradients, strict=True):
            rows = gradient.reshape(-1, gradient.shape[-1])
            self._take(layer, rows if whole else rows[kept])

    def _run(self, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """The wanted projections' outputs, and the last block's, with the graph between them."""
        outputs: dict[int, Tensor] = {}
        states: list[Tensor] = []
        lowest = self.layers[0]

        def keep(layer: int) -> Callable[..., Tensor]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                outputs[layer] = output.detach().requires_grad_() if layer == lowest else output
                return outputs[layer].clone()  # what comes next may change it in place

            return hook

        def end(module: nn.Module, inputs: Any, output: Any) -> None:
            states.append(hidden_of(output))
            raise StopForward

        hooks = [self.editable.projection(layer).register_forward_hook(keep(layer)) for layer in self.layers]
        hooks.append(self.editable.blocks[-1].register_forward_hook(end))
        with fused_activations(self.editable.model), watching(*hooks):
            # no mask: what is padded stands to the right of all tokens, which attend to their left only
            self.editable.model(input_ids=ids, use_cache=False)
        return outputs, states[0]

    def _loss(self, states: Tensor, draws: Tensor) -> Tensor:
        """Sum over positions of −log p of a label drawn at each."""

        def nll(part: Tensor, rows: slice) -> Tensor:
            logits = self.editable.head(part)
            return token_nll(logits, drawn(logits.detach(), draws[rows]))

        return row_wise(nll, states, max(1, LOGITS // self.editable.vocabulary)).sum()


def uniforms(seed: int, number: int, length: int) -> Tensor:
    """Numbers in [0, 1) for a window's positions, (length,) float64; a shorter window begins with the same ones.

    >>> bool((uniforms(0, 7, 3) == uniforms(0, 7, 5)[:3]).all())
    True
    """
    generator = random.Random(f"labels {seed} {number}")  # whose numbers stay the same on all machines and versions
    return torch.tensor([generator.random() for _ in range(length)], dtype=torch.float64)


def drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """One label of each row's softmax, by inversion of its cumulated probabilities.

    Args:
        logits: (n, vocabulary).
        draws: (n,) float64, uniform in [0, 1).

    Returns:
        (n,) long, where the logits are.

    >>> drawn(torch.tensor([0.2, 0.3, 0.5]).log().expand(3, -1), torch.tensor([0.19, 0.21, 0.51])).tolist()
    [0, 1, 2]
    """
    if logits.device.type == "mps":  # which has no float64
        return drawn(logits.cpu(), draws.cpu()).to(logits.device)
    mass = (logits - logits.amax(1, keepdim=True)).exp().cumsum(1, dtype=torch.float64)
    places = torch.searchsorted(mass, (draws[:, None] * mass[:, -1:]).to(mass), right=True)
    return places.squeeze(1).clamp(max=logits.shape[1] - 1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter wants a gradient, so that no graph is kept for one."""
    wanting: Sequence[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
