r"""Scores of labelled tasks: accuracy, F1 and Matthews correlation, with answers that are no label counted apart.

A prediction of -1 is an answer that names no label. It is wrong for the accuracy, and for F1 and the correlation it is
a prediction of no class (a row of the confusion table without a column to be right in); its share is reported on its
own. Research code counts it as a class of its own, which changes F1 and the correlation with the number of such
answers.

Sources: Wang et al. 2019, "GLUE" (ICLR), section 3, names the score of each task; Matthews 1975, and Gorodkin 2004
for more than two classes, define the correlation.
"""

from __future__ import annotations

import torch
from torch import Tensor

INVALID = -1
"""The prediction of an answer that names no label."""


def confusion(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """How often each label was answered with each class; the last column counts answers that are none.

    Args:
        predicted: (rows,), integer, 0 to ``classes`` - 1, or -1.
        label: (rows,), integer, 0 to ``classes`` - 1.
        classes: number of classes.

    Returns:
        (classes, classes + 1) long.

    Raises:
        ValueError: if the shapes differ or are not (rows,), or a number is outside its range.

    Example:
        >>> confusion(torch.tensor([0, 1, -1]), torch.tensor([0, 0, 1]), 2)
        tensor([[1, 1, 0],
                [0, 0, 1]])
    """
    if predicted.shape != label.shape or label.ndim != 1:
        raise ValueError(
            f"Arguments `predicted`, `label` expected to have one shape, (rows,), but got {tuple(predicted.shape)}, "
            f"{tuple(label.shape)}"
        )
    for name, values, least in (("predicted", predicted, INVALID), ("label", label, 0)):
        if len(values) and (int(values.min()) < least or int(values.max()) >= classes):
            raise ValueError(f"Argument `{name}` expected to hold {least} to {classes - 1}, but got {values.tolist()}")
    column = predicted.long().where(predicted >= 0, classes)
    flat = torch.bincount(label.long() * (classes + 1) + column, minlength=classes * (classes + 1))
    return flat.view(classes, classes + 1)


def accuracy(table: Tensor) -> Tensor:
    r"""Share of right answers, in per cent: :math:`100 \sum_c C_{cc} / \sum C`, invalid answers being wrong.

    Args:
        table: (classes, classes + 1), see :func:`confusion`.

    Returns:
        0-dim float64, in [0, 100], higher is better; NaN without rows.

    Example:
        >>> accuracy(torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor(50., dtype=torch.float64)
    """
    table = table.double()
    return 100 * table[:, :-1].diagonal().sum() / table.sum()


def f1(table: Tensor) -> Tensor:
    r"""F1, in per cent: of class 1 with two classes, else the mean over classes (macro).

    :math:`F_c = 2\,\mathrm{TP}_c / (2\,\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c)`; an invalid answer is a false
    negative of its label and a false positive of none.

    Args:
        table: (classes, classes + 1), see :func:`confusion`.

    Returns:
        0-dim float64, in [0, 100], higher is better; a class that neither occurs nor is predicted counts as 0; NaN
        without rows.

    Example:
        >>> f1(torch.tensor([[3, 1, 0], [0, 2, 2]]))  # TP 2, FP 1, FN 2
        tensor(57.1429, dtype=torch.float64)
    """
    table = table.double()
    hits = table[:, :-1].diagonal()
    each = 2 * hits / (table.sum(1) + table[:, :-1].sum(0)).clamp(min=1)
    found = 100 * (each[1] if len(each) == 2 else each.mean())
    return found if table.sum() > 0 else found * torch.nan


def matthews(table: Tensor) -> Tensor:
    r"""Matthews correlation of answers and labels, times 100 (Gorodkin's :math:`R_K` for several classes).

    :math:`\frac{c\,s - \sum_k p_k t_k}{\sqrt{(s^2 - \sum_k p_k^2)(s^2 - \sum_k t_k^2)}}` with s valid answers, c of
    them right, and :math:`p_k`, :math:`t_k` the times that class k was answered and was the label among them. Invalid
    answers have no class and are left out, so read it beside their share.

    Args:
        table: (classes, classes + 1), see :func:`confusion`.

    Returns:
        0-dim float64, in [-100, 100], higher is better; 0 where all answers (or labels) are one class, as GLUE has it;
        NaN without a valid answer.

    Example:
        >>> matthews(torch.tensor([[2, 0, 0], [0, 2, 5]]))
        tensor(100., dtype=torch.float64)
    """
    valid = table[:, :-1].double()
    total, right = valid.sum(), valid.diagonal().sum()
    answered, labels = valid.sum(0), valid.sum(1)
    below = ((total**2 - (answered**2).sum()) * (total**2 - (labels**2).sum())).sqrt()
    found = 100 * (right * total - (answered * labels).sum()) / below
    if total == 0:
        return total * torch.nan
    return found if below > 0 else torch.zeros_like(total)


def invalid_share(table: Tensor) -> Tensor:
    """Share of answers that name no label, in per cent; 0-dim float64, lower is better, NaN without rows.

    Example:
        >>> invalid_share(torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor(25., dtype=torch.float64)
    """
    return 100 * table[:, -1].sum().double() / table.sum()
