"""What several processes do together: one answer for all, everybody's share in one list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch.utils.data import DistributedSampler

T = TypeVar("T")


def on_rank_zero(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Run ``action`` in the first process and return its result in all; its error is raised there, once.

    The other processes end with status 2 instead of waiting for an answer that does not come.
    """
    outcome: tuple[Any, BaseException | None] = (None, None)
    if trainer.is_global_zero:
        try:
            outcome = (action(), None)
        except (ValueError, OSError) as error:
            outcome = (None, error)
    result, failure = trainer.strategy.broadcast(outcome)
    if failure is None:
        return result
    raise failure if trainer.is_global_zero else SystemExit(2)


def gather(own: T, world_size: int) -> list[T]:
    """Return every process's value, in the order of the ranks."""
    if world_size == 1:
        return [own]
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, own)
    return parts


class Share(DistributedSampler[int]):
    """The positions of one process, none repeated and possibly none at all; Lightning leaves this type alone.

    Lightning's own sampler for prediction refuses fewer images than processes, which is how a resumed run may end.
    """

    def __init__(self, positions: list[int], rank: int, world_size: int) -> None:
        super().__init__(positions, num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._own = positions[rank::world_size]

    def __iter__(self) -> Any:
        """Iterate over the positions."""
        return iter(self._own)

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self._own)
