"""Second moments of the keys over text: ``estimate`` finds or makes them, ``accumulate`` adds up, ``folder`` keeps."""

from editkit.covariance.estimate import MomentSource, ensure, factored_moments, second_moments

__all__ = ["MomentSource", "ensure", "factored_moments", "second_moments"]
