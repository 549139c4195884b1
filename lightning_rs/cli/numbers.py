"""Numbers as people write them."""

from __future__ import annotations

import argparse
import re
from decimal import Decimal

_WHOLE = re.compile(r"\+?\d[\d_]*(\.\d*)?([eE]\+?\d+)?|\d{1,3}(,\d{3})+", re.ASCII)
LARGEST = 10**18


def whole(text: str) -> int | None:
    """Return the whole number >= 2 that a text stands for: 100000, 1e5, 1E+5, 1.5e3, 100_000, 100,000, 100000.0.

    None for other texts, and below 2: there, 1 and 1.0 are different things to Lightning (one batch, all batches).
    """
    if not _WHOLE.fullmatch(text):
        return None
    # Before the number is written out, which 1e99999999 would take minutes for.
    number = Decimal(text.replace("_", "").replace(",", ""))
    if not 2 <= number < LARGEST or number != number.to_integral_value():
        return None
    return int(number)


def whole_number(text: str) -> int:
    """Return the whole number that an option of a command on records is given."""
    found = whole(text.strip())
    if found is not None:
        return found
    try:
        return int(text)  # 1 and below, for the command to judge
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number (100000, 1e5, 100_000), got {text!r}") from None


def number(text: str) -> float:
    """Return the number that an option of a command on records is given."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number (0.001, 1e-3), got {text!r}") from None
