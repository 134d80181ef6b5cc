"""Accuracy, F1 and correlation against plain counting, and what answers that are no label do to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from editkit.functional.probes import accuracy, confusion, f1, invalid_share, matthews


def drawn(classes: int, seed: int, invalid: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (200,), generator=generator)
    noise = torch.randint(-1 if invalid else 0, classes, (200,), generator=generator)
    return torch.where(torch.rand(200, generator=generator) < 0.6, label, noise), label


def plain_f1(predicted: list[int], label: list[int], of: int) -> float:
    true = sum(p == y == of for p, y in zip(predicted, label, strict=True))
    precision, recall = true / max(1, predicted.count(of)), true / max(1, label.count(of))
    return 100 * 2 * precision * recall / (precision + recall) if true else 0.0


@pytest.mark.parametrize("invalid", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_equal_plain_counting(classes: int, invalid: bool) -> None:
    predicted, label = drawn(classes, classes, invalid)
    table, p, y = confusion(predicted, label, classes), predicted.tolist(), label.tolist()
    assert int(table.sum()) == 200
    assert float(accuracy(table)) == pytest.approx(100 * sum(a == b for a, b in zip(p, y, strict=True)) / 200)
    each = [plain_f1(p, y, c) for c in range(classes)]
    assert float(f1(table)) == pytest.approx(each[1] if classes == 2 else sum(each) / classes)
    assert float(invalid_share(table)) == pytest.approx(100 * p.count(-1) / 200)
    # the correlation is Pearson's between one-hot answers and labels, summed over classes, on valid answers
    keep = predicted >= 0
    a, b = (torch.nn.functional.one_hot(t[keep], classes).double() for t in (predicted, label))
    a, b = a - a.mean(0), b - b.mean(0)
    pearson = 100 * (a * b).sum() / math.sqrt(float((a * a).sum() * (b * b).sum()))
    assert float(matthews(table)) == pytest.approx(float(pearson))


def test_limits() -> None:
    label = torch.tensor([0, 1, 0, 1])
    perfect, wrong, constant = (confusion(t, label, 2) for t in (label, 1 - label, torch.ones(4, dtype=torch.long)))
    assert [float(s(perfect)) for s in (accuracy, f1, matthews)] == pytest.approx([100, 100, 100])
    assert [float(s(wrong)) for s in (accuracy, f1, matthews)] == [0, 0, -100]
    assert float(matthews(constant)) == 0
    silent = confusion(torch.full((4,), -1), label, 2)
    assert (float(accuracy(silent)), float(f1(silent)), float(invalid_share(silent))) == (0, 0, 100)
    assert matthews(silent).isnan()
    nothing = confusion(label[:0], label[:0], 2)
    assert all(s(nothing).isnan() for s in (accuracy, f1, matthews, invalid_share))


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="`label`"):
        confusion(torch.tensor([0]), torch.tensor([-1]), 2)
    with pytest.raises(ValueError, match="`predicted`"):
        confusion(torch.tensor([2]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion(torch.tensor([1, 1]), torch.tensor([0]), 2)
