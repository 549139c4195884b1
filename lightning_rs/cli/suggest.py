"""Near matches for words that are unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean A or B?"`` for the known words that are near, else an empty string.

    Capitals do not matter, and of dotted names only what follows the last dot they share is compared.
    """
    names = {name.lower(): name for name in known}
    found = [names[name] for name in difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(found)}?" if found else ""
