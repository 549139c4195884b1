"""How fast a training goes: images a second, passes an image, time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl

from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.stages.progress import duration

# Between two looks at the clock's result; a number that changes faster cannot be read.
_SECONDS = 1.0


class TrainingPace(pl.Callback):
    """Shows ``images/s`` and ``min_left`` in the progress bar; says at the start what an image costs, at the end all.

    ``Trainer.fit`` adds it to the training of a classifier of ours. Passes are those of the network, forward and
    backward, for one training image (``BaseClassifier.passes``); images a second count all ranks. Validation and
    certification at epoch ends are in the time left, not in the rate. Training is bit-identical with and without it.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._began = self._looked = 0.0
        self._first_step = self._images = self._seen = 0
        self._last_step = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: say what is to be done."""
        self._began = self._looked = self._clock()
        self._first_step, self._images, self._seen = trainer.global_step, 0, 0
        self._last_step = float(trainer.estimated_stepping_batches)
        if isinstance(pl_module, BaseClassifier) and trainer.is_global_zero and trainer.progress_bar_callback:
            forward, backward = pl_module.passes
            name = type(pl_module).__name__
            print(f"{name}: {forward} forward and {backward} backward passes an image", file=sys.stderr)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: what lies between two epochs is no training."""
        self._looked, self._seen = self._clock(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning hook: count, and once a second show."""
        count = len(batch["label"] if isinstance(batch, Mapping) else batch[1]) * trainer.world_size
        self._images += count
        self._seen += count
        now = self._clock()
        if now - self._looked < _SECONDS:
            return
        pl_module.log("images/s", self._seen / (now - self._looked), prog_bar=True, logger=False)
        step = trainer.global_step
        left = seconds_left(now - self._began, step - self._first_step, self._last_step - step)
        if left is not None:
            pl_module.log("min_left", left / 60, prog_bar=True, logger=False)
        self._looked, self._seen = now, 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: the account."""
        seconds = self._clock() - self._began
        if trainer.is_global_zero and trainer.progress_bar_callback and self._images and seconds > _SECONDS:
            print(
                f"trained on {self._images:,} images in {duration(seconds)}, {self._images / seconds:,.0f} images/s",
                file=sys.stderr,
            )


def seconds_left(passed: float, done: int, left: float) -> float | None:
    """Return the time for ``left`` more steps where ``done`` took ``passed`` seconds; None where nobody knows."""
    return passed * left / done if done > 0 and math.isfinite(left) else None
