"""Threads that each run torch on one core: micro-batches side by side instead of layers cut in pieces.

A small network leaves little to share inside a layer: with several threads a layer ends when the slowest does, and
rounding may depend on how many there are. Whole micro-batches on one thread each need no such waiting, stay in that
core's cache, and give the same numbers whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the calling thread, and put its setting back afterwards."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers:
    """Runs calls in ``count`` threads on which torch is single-threaded; one worker is the calling thread itself.

    Args:
        count: number of threads, >= 1.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[..., Result], *args: Any) -> Future[Result]:
        """Start ``call(*args)``; calls start in the order in which they come. With one worker it is done at once."""
        if self.count > 1:
            return self._started().submit(call, *args)
        done: Future[Result] = Future()
        try:
            done.set_result(call(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # set_num_threads(1) in a worker also becomes the default of threads that start later: put it back.
            before = torch.get_num_threads()
            meeting = threading.Barrier(self.count)
            self._pool = ThreadPoolExecutor(self.count, "micro-batch", lambda: torch.set_num_threads(1))
            list(self._pool.map(lambda _: meeting.wait(), range(self.count)))
            torch.set_num_threads(before)
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        """Leave the threads behind: another process starts its own."""
        return {"count": self.count, "_pool": None}
