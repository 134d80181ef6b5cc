"""Second moments of the keys over text: ``estimate`` finds or makes them, ``accumulate`` adds up, ``folder`` keeps."""

from editkit.covariance.estimate import (
    SecondMomentSource,
    check_can_keep,
    check_has_text,
    check_ready,
    check_source,
    ensure,
    factored_second_moments,
    second_moments,
)

__all__ = [
    "SecondMomentSource",
    "check_can_keep",
    "check_has_text",
    "check_ready",
    "check_source",
    "ensure",
    "factored_second_moments",
    "second_moments",
]
