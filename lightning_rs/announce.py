"""Long work announces itself: what takes more than two seconds says what it is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds


@contextmanager
def announced(
    what: str, quiet: bool = False, timer: Callable[..., threading.Timer] = threading.Timer
) -> Iterator[None]:
    """Say on standard error what is going on, once, if it takes longer than people wait without asking.

    Args:
        what: for instance "loading torch".
        quiet: say nothing (other processes than the first).
        timer: for tests.
    """
    alarm = timer(PATIENCE, lambda: print(f"{what} ...", file=sys.stderr))
    alarm.daemon = True
    if not quiet:
        alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
