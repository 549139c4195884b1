"""What a prediction tells its loggers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from lightning_rs.loggers.jobs import Job
from lightning_rs.loggers.numbers import log_numbers, write_out
from lightning_rs.loggers.runs import begin

_METRICS = ("accuracy", "abstain", "images_per_s", "complete")
_ROWS = 10_000
_SHOWN = ("index", "label", "prediction", "abstain", "p_value", "n")


class PredictionLog:
    """Observes one prediction in the first process; the W&B run begins with the first predicted image.

    Args:
        trainer: whose loggers.
        clock: for tests.
    """

    metrics = _METRICS

    def __init__(self, trainer: pl.Trainer, clock: Callable[[], float] = time.monotonic) -> None:
        self._trainer, self._clock, self._start = trainer, clock, clock()
        self._seen: list[tuple[int, int]] = []

    def add(self, labels: Sequence[int], predictions: Sequence[int], job: Callable[[], Job]) -> None:
        """Take a finished batch: true classes and predictions, -1 where it abstains."""
        if not self._trainer.is_global_zero or not labels:
            return
        if not self._seen:
            begin(self._trainer, job())
        self._seen += zip(labels, predictions, strict=True)
        log_numbers(self._trainer, self._numbers(self._seen), len(self._seen))

    def finish(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Log the result of all processes, from the rows of the file; W&B gets a table of them too."""
        if not self._trainer.is_global_zero or not self._seen:
            return
        self._conclude(rows, complete=True)

    def interrupted(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Log what this process has done, marked as incomplete; ``rows`` are those of its file."""
        if self._trainer.is_global_zero and self._seen:
            self._conclude(rows[: len(self._seen)], complete=False)

    def _conclude(self, rows: Sequence[Mapping[str, str]], complete: bool) -> None:
        seen = [(int(row["label"]), int(row["prediction"])) for row in rows]
        log_numbers(self._trainer, {**self._numbers(seen), "predict/complete": float(complete)}, len(seen))
        for logger in self._trainer.loggers:
            if isinstance(logger, WandbLogger):
                shown = [[float(row[name]) for name in _SHOWN] for row in rows[:_ROWS]]
                logger.log_table("predict/table", columns=list(_SHOWN), data=shown)
        write_out(self._trainer)

    def _numbers(self, seen: Sequence[tuple[int, int]]) -> dict[str, float]:
        return {
            "predict/images": float(len(seen)),
            "predict/accuracy": sum(label == prediction for label, prediction in seen) / len(seen),
            "predict/abstain": sum(prediction < 0 for _, prediction in seen) / len(seen),
            "predict/images_per_s": len(self._seen) / max(self._clock() - self._start, 1e-9),
        }
