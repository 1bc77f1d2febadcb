"""Range checks of hyper-parameters: expected this, got that."""

from __future__ import annotations


def check_positive(**values: float) -> None:
    """Raises ValueError unless all named values are > 0 (NaN is not)."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")


def check_not_negative(**values: float) -> None:
    """Raises ValueError unless all named values are >= 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"expected {name} >= 0, got {value}")


def check_share(**values: float) -> None:
    """Raises ValueError unless all named values are in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"expected 0 <= {name} <= 1, got {value}")
