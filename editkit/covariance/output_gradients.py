"""Sums of g gᵀ at the MLP output projections: the output side of the Kronecker-factored Fisher information.

g is the gradient of the model's own loss over a window of text by the projection's output at one token. The loss is the
sum, over all of the window's positions, of −log p of a label that is drawn from what the model predicts there, not read
off the text: the true Fisher (Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate
Curvature"). Every token of the window counts as one g, as it counts as one key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from editkit.covariance.accumulate import SecondMoments
from editkit.covariance.summand import OUTPUT_GRADIENTS
from editkit.data.windows import Round
from editkit.functional.values import row_wise, token_nll
from editkit.models.editable import StopForward, frozen, hidden_of, watching
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
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.editable.model):
            device = self.editable.device
            ids, kept = batch.ids.clone().to(device), batch.mask.clone().flatten().bool().to(device)
            digits = digits_of(self.editable.vocabulary)
            draws = torch.cat(
                [
                    uniforms(self.label_seed, number, length, digits)
                    for number, length in zip(batch.numbers, batch.mask.sum(1).tolist(), strict=True)
                ]
            )
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


def uniforms(seed: int, number: int, length: int, digits: int) -> Tensor:
    """Numbers in [0, 1) for a window's positions, (length, digits) float64; a shorter window begins with the same ones.

    >>> bool((uniforms(0, 7, 3, 12) == uniforms(0, 7, 5, 12)[:3]).all())
    True
    """
    generator = random.Random(f"labels {seed} {number}")  # whose numbers stay the same on all machines and versions
    numbers = [generator.random() for _ in range(length * digits)]
    return torch.tensor(numbers, dtype=torch.float64).view(length, digits)


def digits_of(vocabulary: int) -> int:
    """How many binary digits a label has.

    >>> digits_of(4096), digits_of(50257)
    (12, 16)
    """
    return max(1, (vocabulary - 1).bit_length())


def drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """One label of each row's softmax: its binary digits, the lowest first, each by its probability given those before.

    Rounding then changes a label only where a number falls within it of one of a dozen probabilities. One number,
    looked up among the cumulated probabilities of all labels, would have thousands of boundaries to fall on: of 3,000
    tokens of a random model, batches of another size gave some another label.

    Args:
        logits: (n, vocabulary).
        draws: (n, ``digits_of(vocabulary)``) float64, uniform in [0, 1).

    Returns:
        (n,) long, where the logits are.

    >>> drawn(torch.tensor([0.2, 0.3, 0.5]).log()[None], torch.tensor([[0.75, 0.0]])).tolist()  # odd: there is one
    [1]
    >>> drawn(torch.tensor([0.2, 0.3, 0.5]).log()[None], torch.tensor([[0.25, 0.4]])).tolist()  # even: 0.4 > 0.2 / 0.7
    [2]
    """
    if logits.device.type == "mps":  # which has no float64
        return drawn(logits.cpu(), draws.cpu()).to(logits.device)
    mass = (logits - logits.amax(1, keepdim=True)).exp()
    sums = [nn.functional.pad(mass, (0, (1 << draws.shape[1]) - mass.shape[1]))]
    while (half := sums[-1].shape[1] // 2) > 1:  # of all labels whose lowest digits are the column's number
        sums.append(sums[-1][:, :half] + sums[-1][:, half:])
    label = torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
    for draw, level in zip(draws.to(logits.device).T, reversed(sums), strict=True):
        one = level.shape[1] // 2
        zeros, ones = level.gather(1, label).double(), level.gather(1, label + one).double()
        label = label + one * (draw[:, None] * (zeros + ones) >= zeros)
    return label.squeeze(1)
