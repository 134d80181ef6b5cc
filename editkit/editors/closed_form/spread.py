"""How a residual at the last edited layer is divided among the edited layers (Gupta et al. 2024, eqs. 6 and 7)."""

from __future__ import annotations


class Spread:
    """A layer's share of what is still missing. Subclass and override ``share`` for another rule."""

    def share(self, remaining: int) -> float:
        """Share of the present residual that a layer takes.

        Args:
            remaining: edited layers left, this one included; the last has 1.

        Returns:
            A number in (0, 1]; 1 at ``remaining`` = 1 lets the last layer complete the edit.
        """
        return 1.0 / remaining


class SquareRootSpread(Spread):
    """R / √(L − l + 1): more to the early layers, as in PMET (Li et al. 2023)."""

    def share(self, remaining: int) -> float:
        """1 / √remaining."""
        return float(remaining**-0.5)


class LastLayer(Spread):
    """Everything at the last layer, nothing before it."""

    def share(self, remaining: int) -> float:
        """1 at the last layer, else 0."""
        return 1.0 if remaining == 1 else 0.0
