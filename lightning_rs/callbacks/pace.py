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

# A training shorter than this has no pace to tell; no bar is read more often.
_SECONDS = 1.0


class TrainingPace(pl.Callback):
    """Measures images a second: ``images/s`` in the progress bar, ``train/images_per_s`` for loggers.

    ``Trainer.fit`` adds it to the training of a classifier of ours. The rate is that of all processes since the epoch
    began, without validation and certification; these are in ``min_left``, the minutes left. At the start it says how
    many passes of the network an image costs (``BaseClassifier.passes``), at the end what all took. Training is
    bit-identical with and without it. Numbers are told once a second, at the first and last batch of an epoch,
    and whenever loggers take them: each costs Lightning half a millisecond, of a small network's step a seventieth.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._began = self._mark = self._seconds = 0.0
        self._first_step = self._images = self._of_epoch = 0
        self._last_step = math.inf
        self._told = -math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: say what is to be done."""
        self._began = self._clock()
        self._first_step, self._images = trainer.global_step, 0
        self._last_step = float(trainer.estimated_stepping_batches)
        if isinstance(pl_module, BaseClassifier) and trainer.is_global_zero and trainer.progress_bar_callback:
            print(f"{type(pl_module).__name__}: {pl_module.cost}", file=sys.stderr)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: count anew."""
        self._mark, self._seconds, self._of_epoch = self._clock(), 0.0, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: what validation took is no training."""
        self._mark = self._clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning hook: count and log."""
        count = len(batch["image"] if isinstance(batch, Mapping) else batch[0]) * trainer.world_size
        self._images += count
        self._of_epoch += count
        now = self._clock()
        self._seconds += now - self._mark
        self._mark = now
        step = trainer.global_step
        at_an_end = batch_idx == 0 or trainer.is_last_batch or step >= self._last_step
        if now - self._told < _SECONDS and not at_an_end and not loggers_listen(trainer):
            return
        self._told = now
        speed = self._of_epoch / max(self._seconds, 1e-9)
        pl_module.log("train/images_per_s", speed, on_step=True, on_epoch=False)
        pl_module.log("images/s", speed, prog_bar=True, logger=False)
        left = seconds_left(now - self._began, step - self._first_step, self._last_step - step)
        if left is not None:
            pl_module.log("min_left", left / 60, prog_bar=True, logger=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: the account."""
        seconds = self._clock() - self._began
        if trainer.is_global_zero and trainer.progress_bar_callback and self._images and seconds > _SECONDS:
            print(
                f"trained on {self._images:,} images in {duration(seconds)}, {self._images / seconds:,.0f} images/s",
                file=sys.stderr,
            )


def loggers_listen(trainer: pl.Trainer) -> bool:
    """Return whether loggers take what is logged with this batch."""
    return bool(trainer._logger_connector.should_update_logs)


def seconds_left(passed: float, done: int, left: float) -> float | None:
    """Return the time for ``left`` more steps where ``done`` took ``passed`` seconds; None where nobody knows."""
    return passed * left / done if done > 0 and math.isfinite(left) else None
