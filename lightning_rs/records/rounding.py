"""Shortening numbers for people without turning a guarantee into a claim."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal


def round_down(value: float, digits: int) -> str:
    """Return ``value`` with at most ``digits`` significant digits, rounded towards minus infinity.

    The text, read back as a float, is never above ``value``. Trailing zeros are dropped.
    """
    return _round(value, digits, ROUND_FLOOR)


def round_up(value: float, digits: int) -> str:
    """Return ``value`` with at most ``digits`` significant digits, rounded towards plus infinity."""
    return _round(value, digits, ROUND_CEILING)


def floor_decimals(value: float, decimals: int) -> str:
    """Return ``value`` with exactly ``decimals`` digits after the point, rounded towards minus infinity."""
    return format(_exact(value).quantize(Decimal(1).scaleb(-decimals), ROUND_FLOOR), "f")


def ceil_decimals(value: float, decimals: int) -> str:
    """Return ``value`` with exactly ``decimals`` digits after the point, rounded towards plus infinity."""
    return format(_exact(value).quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING), "f")


def nearest_decimals(value: float, decimals: int) -> str:
    """Return ``value`` with exactly ``decimals`` digits after the point, to nearest, ties up; for averages."""
    return format(_exact(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP), "f")


def complement(alpha: float) -> str:
    """Return 1 - ``alpha`` in full: the probability of a statement, never rounded up to 1."""
    return format(Context(prec=400, rounding=ROUND_FLOOR).subtract(Decimal(1), _exact(alpha)), "f")


def _round(value: float, digits: int, rounding: str) -> str:
    exact = _exact(value)
    if exact == 0:
        return "0"
    quantum = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    text = format(exact.quantize(quantum, rounding), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exact(value: float) -> Decimal:
    if not math.isfinite(value):
        raise ValueError(f"value must be finite, got {value!r}")
    # The shortest decimal that reads back as the float: 0.41 stays 0.41 instead of 0.40999...
    return Decimal(repr(float(value)))
