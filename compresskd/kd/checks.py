"""Range checks of numbers from a ``kd`` config: errors name the key, the value and what is allowed."""

import math

_COLDEST, _HOTTEST = 1e-3, 1e6


def check_positive(key: str, value: float) -> None:
    """Raises: ValueError unless ``value`` is a finite number above 0."""
    if not (_is_finite(value) and value > 0):
        raise ValueError(f"{key}: expected a number above 0, got {value!r}")


def check_temperature(key: str, value: float) -> None:
    """Raises: ValueError unless ``value`` is a temperature whose losses float32 can tell apart.

    Above 1e6 the softened classes differ by less than float32 resolves, below 1e-3 logits of usual size overflow.
    """
    check_positive(key, value)
    if not _COLDEST <= value <= _HOTTEST:
        raise ValueError(
            f"{key}: expected a number from {_COLDEST:g} to {_HOTTEST:g} (1 to 20 is usual), got {value!r}"
        )


def check_non_negative(key: str, value: float) -> None:
    """Raises: ValueError unless ``value`` is a finite number, 0 or above."""
    if not (_is_finite(value) and value >= 0):
        raise ValueError(f"{key}: expected a number of 0 or above, got {value!r}")


def check_fraction(key: str, value: float, *, below_one: bool = False) -> None:
    """Raises: ValueError unless ``value`` lies within 0..1 (1 itself excluded by ``below_one``)."""
    if not (_is_finite(value) and 0 <= value <= 1) or (below_one and value == 1):
        allowed = "from 0 to below 1" if below_one else "within 0..1"
        raise ValueError(f"{key}: expected a number {allowed}, got {value!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
