"""A learning rate that falls along half a cosine and never rises again, also when a training is made longer."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Cosine(LRScheduler):
    """The rate times (1 + cos(pi s / total)) / 2 at step s, 0 from ``total`` on (Loshchilov and Hutter 2017).

    Resumed with another ``total``, it falls from the rate that it had then to zero at the new end. A training that had
    reached its end stays at rate zero, and says so.

    Args:
        optimizer: whose rates fall.
        total: number of steps, >= 1.
    """

    def __init__(self, optimizer: Optimizer, total: int) -> None:
        self.total, self.start, self.height = total, 0, 1.0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group at the current step."""
        return [base * self._factor() for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a new length starts a new fall at the rate of the checkpoint."""
        total = self.total
        super().load_state_dict(state_dict)
        if total == self.total:
            return
        height = self._factor()
        if height == 0.0:
            warnings.warn(
                f"the cosine schedule of the checkpoint ended at step {self.total} with a rate of zero, which stays: "
                "to train further, name another scheduler, or start from its weights with init_from",
                stacklevel=2,
            )
        self.total, self.start, self.height = total, self.last_epoch, height

    def _factor(self) -> float:
        if self.last_epoch >= self.total:
            return 0.0
        done = (self.last_epoch - self.start) / (self.total - self.start)
        return self.height * 0.5 * (1.0 + math.cos(math.pi * done))
