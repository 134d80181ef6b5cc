"""Second moments of the keys, or of output gradients, over text.

``source`` says where they come from, ``wanted`` what is asked for and what there is, ``estimate`` finds or makes them,
``accumulate`` adds up, ``folder`` keeps; ``summand`` says of what, and ``output_gradients`` adds up those.
"""

from editkit.covariance.estimate import ensure, factored_second_moments, output_gradient_moments, second_moments
from editkit.covariance.folder import SecondMomentFolder
from editkit.covariance.source import SecondMomentSource, check_can_keep, check_has_text, check_source
from editkit.covariance.wanted import check_ready

__all__ = [
    "SecondMomentFolder",
    "SecondMomentSource",
    "check_can_keep",
    "check_has_text",
    "check_ready",
    "check_source",
    "ensure",
    "factored_second_moments",
    "output_gradient_moments",
    "second_moments",
]
