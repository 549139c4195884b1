"""What an attack tells its loggers: shares against images done; the bracket as a chart and a table at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from lightning_rs.attacks import AttackRecord
from lightning_rs.loggers.jobs import Job
from lightning_rs.loggers.numbers import log_numbers, write_out
from lightning_rs.loggers.pictures import line_chart, log_figure, thinned
from lightning_rs.loggers.runs import begin
from lightning_rs.plots.brackets import bracket_figure, bracket_steps
from lightning_rs.records.units import axis

_METRICS = ("right", "certified", "broken", "contradicted", "median_gap", "images_per_s", "complete")
_ROWS = 10_000
_COLUMNS = ("index", "label", "prediction", "certified", "attacked", "searched", "tests", "contradicted", "statement")


class AttackLog:
    """Observes one attack in the first process; the W&B run begins with the first attacked image.

    Args:
        trainer: whose loggers.
        known: records that are there already.
        clock: for tests.
    """

    metrics = _METRICS

    def __init__(
        self, trainer: pl.Trainer, known: Sequence[AttackRecord] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trainer, self._clock, self._start = trainer, clock, clock()
        self._records, self._known = list(known), len(known)

    def add(self, record: AttackRecord, job: Callable[[], Job]) -> None:
        """Take one finished image."""
        if not self._trainer.is_global_zero:
            return
        self._records.append(record)
        if self._done == 1:
            begin(self._trainer, job())
        log_numbers(self._trainer, self._numbers(self._records), len(self._records))

    def finish(self, records: Sequence[AttackRecord], name: str) -> None:
        """Log the result of all processes; no W&B run begins for what was attacked before.

        Args:
            records: at least one.
            name: of the data, for the figure.
        """
        if not self._trainer.is_global_zero:
            return
        if self._done:
            self._conclude(records, complete=True)
        log_figure(self._trainer, "attack/bracket", bracket_figure({name: records}), wandb=False)

    def interrupted(self) -> None:
        """Log what is there, marked as incomplete."""
        if self._trainer.is_global_zero and self._done:
            self._conclude(self._records, complete=False)

    @property
    def _done(self) -> int:
        return len(self._records) - self._known

    def _conclude(self, records: Sequence[AttackRecord], complete: bool) -> None:
        log_numbers(self._trainer, {**self._numbers(records), "attack/complete": float(complete)}, len(records))
        for logger in self._trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._charts(logger, records)
        write_out(self._trainer)

    @staticmethod
    def _charts(logger: WandbLogger, records: Sequence[AttackRecord]) -> None:
        radii, certified, standing = (thinned(values) for values in bracket_steps(records))
        name = logger.experiment.name
        series = {f"{name}: certified": (radii, certified), f"{name}: not attacked": (radii, standing)}
        logger.log_metrics({"attack/bracket": line_chart(series, "certified, not attacked", axis(records[0].norm))})
        rows = [
            [
                r.index, r.label, r.prediction, r.radius if r.stated else 0.0, r.attacked, r.searched, len(r.tests),
                r.contradicted, repr(r),
            ]
            for r in records[:_ROWS]
        ]  # fmt: skip
        logger.log_table("attack/table", columns=list(_COLUMNS), data=rows)

    def _numbers(self, records: Sequence[AttackRecord]) -> dict[str, float]:
        right = [record for record in records if record.correct]
        gaps = [upper - lower for lower, upper in (r.bracket for r in right if r.stated) if math.isfinite(upper)]
        shares = {
            "right": len(right),
            "certified": sum(record.stated for record in right),
            "broken": sum(record.attacked is not None for record in right),
            "contradicted": sum(record.contradicted for record in records),
        }
        numbers = {f"attack/{name}": count / len(records) for name, count in shares.items()}
        numbers["attack/images"] = float(len(records))
        numbers["attack/images_per_s"] = self._done / max(self._clock() - self._start, 1e-9)
        return {**numbers, **({"attack/median_gap": float(np.median(gaps))} if gaps else {})}
