"""The losses of value vectors: in chunks as whole."""

from __future__ import annotations

import pytest
import torch

from editkit.functional.values import row_wise, token_nll


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_losses_in_chunks_have_the_gradient_of_the_whole(chunk: int) -> None:
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    head, targets, weights = torch.randn(5, 11).double(), torch.randint(11, (7,)), torch.rand(7).double()
    ours = row_wise(lambda part, rows: token_nll(part @ head, targets[rows]), hidden, chunk)
    whole = -(hidden @ head).log_softmax(-1)[range(7), targets]
    torch.testing.assert_close(ours, whole)
    (grad,) = torch.autograd.grad((ours * weights).square().sum(), hidden)
    (expected,) = torch.autograd.grad((whole * weights).square().sum(), hidden)
    torch.testing.assert_close(grad, expected)
