"""What a training tells the C library's allocator."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt, see malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Users who set one of these have decided for themselves.
_DECIDED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep memory that the process frees, up to 2 GiB, instead of giving it back to the system.

    A training on the CPU frees and takes the same activations at every step. By default glibc returns blocks of their
    size, and the system clears every page of them anew: a quarter of the time of LeNet's steps. What is computed does
    not change. Applies to the whole process and stays.

    Returns:
        Whether it was done: not without glibc, nor where the environment says ``MALLOC_TRIM_THRESHOLD_``,
        ``MALLOC_TOP_PAD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _DECIDED):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The threshold for mmap first: glibc moves it, and the other two with it, until somebody sets one.
    # Older ones refuse more than 32 MiB, the largest that they would move it to.
    above = any(mallopt(_MMAP_THRESHOLD, size) for size in (2**30, 2**25))
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)) and above
