"""Accuracy by teacher-forced argmax: is each target token the model's most likely one, those before it given?

Exact match asks it of all tokens of a target (greedy decoding would say the target); the per-token share is what the
public evaluations of zsRE report (Meng et al. 2023, MEMIT, arXiv:2210.07229, section 5.1: efficacy, paraphrase and
specificity as accuracy of the argmax). On a target of one token both are the same. Both are on the 0-100 scale, higher
is better; what counts as right (the fact's answer, or what the unedited model said) is the protocol's.
"""

from __future__ import annotations

from torch import Tensor

from editkit.metrics.base import FactMetric


class TokenAccuracy(FactMetric):
    r"""Share of right target tokens: :math:`100\,\mathbb{E}_f\,\mathbb{E}_{i: f_i = f}\,\frac{\#\mathrm{right}}{\#}`.

    Args:
        short: Name in tables and files: EA of the fact's prompt, PA of paraphrases, NA of neighbourhood prompts, UA
            of unrelated ones.
        kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> metric = TokenAccuracy("EA")
        >>> metric.update(values=tensor([1.0, 0.5]), fact=tensor([0, 1]))
        >>> metric.compute()
        tensor(75.)
    """

    def update(self, values: Tensor, fact: Tensor) -> None:
        """Add rows.

        Args:
            values: (rows,), share of each row's target tokens that are the argmax at their place, 0 to 1.
            fact: (rows,), integer fact ids.

        Raises:
            ValueError: if the shapes differ or are not (rows,), or ``fact`` is not integer.
        """
        self._append(values=100 * values, fact=fact)


class ExactMatch(TokenAccuracy):
    r"""Share of rows whose every target token is right: :math:`100\,\mathbb{E}_f\,\mathbb{E}_{i: f_i = f}\,[s_i = 1]`.

    Example:
        >>> from torch import tensor
        >>> metric = ExactMatch("EA")
        >>> metric.update(values=tensor([1.0, 0.5]), fact=tensor([0, 1]))
        >>> metric.compute()
        tensor(50.)
    """

    def update(self, values: Tensor, fact: Tensor) -> None:
        """Add rows, see :meth:`TokenAccuracy.update`; a share of NaN stays NaN."""
        self._append(values=100 * (values == 1).to(values.dtype).masked_fill(values.isnan(), float("nan")), fact=fact)
