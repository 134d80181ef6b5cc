"""Second moments of the keys over text: ``estimate`` finds or makes them, ``accumulate`` adds up, ``folder`` keeps."""

from editkit.covariance.estimate import SecondMomentSource, ensure, factored_second_moments, second_moments

__all__ = ["SecondMomentSource", "ensure", "factored_second_moments", "second_moments"]
