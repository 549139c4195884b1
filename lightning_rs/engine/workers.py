"""Threads that each run torch on one core: micro-batches side by side instead of layers cut in pieces.

A small network leaves little to share inside a layer: with several threads a layer ends when the slowest does, and
rounding may depend on how many there are. Whole micro-batches on one thread each need no such waiting, stay in that
core's cache, and give the same numbers whatever the number of threads.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from lightning_rs.engine.flags import flushes_denormals

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
        self._here = threading.local()

    @property
    def number(self) -> int:
        """Number of the thread that asks: 1, 2, ... for the workers, 0 for any other."""
        return getattr(self._here, "number", 0)

    def everywhere(self, call: Callable[..., Result], *args: Any) -> list[Result]:
        """Return the results of ``call(*args)`` of every thread, at work at the same time."""
        meeting = threading.Barrier(self.count)

        def meet() -> Result:
            meeting.wait()  # no thread takes two of the calls
            return call(*args)

        return [future.result() for future in [self.submit(meet) for _ in range(self.count)]]

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
            meeting, numbers, flush = threading.Barrier(self.count), itertools.count(1), flushes_denormals()

            def begin() -> None:
                self._here.number = next(numbers)
                torch.set_num_threads(1)
                torch.set_flush_denormal(flush)  # a setting of each thread

            self._pool = ThreadPoolExecutor(self.count, "micro-batch", begin)
            list(self._pool.map(lambda _: meeting.wait(), range(self.count)))
            torch.set_num_threads(before)
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        """Leave the threads behind: another process starts its own."""
        return {"count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
