"""What a certification tells its loggers: live numbers against images done; charts and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.loggers.jobs import Job, certify_job
from lightning_rs.loggers.numbers import certification_metrics, log_numbers, metric_radii, write_out
from lightning_rs.loggers.pictures import certification_charts, certification_table, log_figure
from lightning_rs.loggers.runs import begin, link_files, tell
from lightning_rs.noise import Noise
from lightning_rs.plots import certified_accuracy_figure
from lightning_rs.records import Certification, Header, read_seconds

# Points of a live curve: enough to see where it settles, few enough to cost nothing.
_LIVE = 100


class CertificationLog:
    """Observes one certification in the first process.

    The W&B run begins with the first finished image, so that bad input leaves none.

    Args:
        trainer: whose loggers.
        model: what is certified.
        data: where the images come from.
        header: of the record file.
        path: the record file.
        noise: that images are smoothed with.
        total: images that this process will have done, with those that are recorded already.
        known: records that are there already.
        clock: for tests.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        model: BaseClassifier,
        data: ImageDataModule,
        header: Header,
        path: Path,
        noise: Noise,
        total: int,
        known: Iterable[Certification] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._model, self._data = trainer, model, data
        self._header, self._path, self._noise = header, path, noise
        self._radii = metric_radii(noise.sigma, str(header.binding["certificates"][0]["norm"]))
        self._records = list(known)
        self._known = len(self._records)
        self._every = max(1, total // _LIVE)
        self._clock, self._start = clock, clock()

    def add(self, record: Certification) -> None:
        """Take one finished image."""
        if not self._trainer.is_global_zero:
            return
        self._records.append(record)
        if self._done == 1:
            begin(self._trainer, self._job())
        if self._done % self._every == 0:
            log_numbers(self._trainer, self._numbers(self._records), len(self._records))

    def finish(self, records: Sequence[Certification]) -> None:
        """Log the results of all processes; no W&B run begins for what was certified before."""
        if not self._trainer.is_global_zero:
            return
        if self._done == 0:
            tell(self._trainer, self._job())
        self._conclude(records, complete=True)
        link_files(self._trainer, dict(self._header.informative.get("checkpoint") or {}), self._path)

    def interrupted(self, records: Sequence[Certification]) -> None:
        """Log what is recorded, marked as incomplete; nothing if nothing was certified."""
        if self._trainer.is_global_zero and self._done:
            self._conclude(records, complete=False)

    def _conclude(self, records: Sequence[Certification], complete: bool) -> None:
        numbers = {**self._numbers(records), "certify/complete": float(complete)}
        seconds = read_seconds(self._path)
        log_certifications(self._trainer, records, self._noise, numbers, seconds, self._data)

    @property
    def _done(self) -> int:
        return len(self._records) - self._known

    def _numbers(self, records: Sequence[Certification]) -> dict[str, float]:
        labelled = [record for record in records if record.label is not None]
        rate = self._done / max(self._clock() - self._start, 1e-9)
        numbers = {"certify/images": float(len(records)), **({"certify/images_per_s": rate} if self._done else {})}
        return {**numbers, **(certification_metrics(labelled, self._radii) if labelled else {})}

    def _job(self) -> Job:
        return certify_job(self._model, self._header, self._path, self._radii, self._noise)


def log_certifications(
    trainer: pl.Trainer,
    records: Sequence[Certification],
    noise: Noise,
    numbers: dict[str, float] | None = None,
    seconds: dict[int, float] | None = None,
    data: ImageDataModule | None = None,
) -> dict[str, float]:
    """Log the result of a certification, and return the metrics.

    Every logger gets the numbers; W&B native charts and the table of images; TensorBoard, or without any logger the
    run's folder, the curve as a figure.

    Args:
        trainer: whose loggers.
        records: what was certified.
        noise: that images were smoothed with.
        numbers: the metrics; None computes them from the records.
        seconds: seconds that images took, by index.
        data: where the pictures of the table come from; None: none.
    """
    labelled = [record for record in records if record.label is not None]
    if numbers is None:
        numbers = certification_metrics(labelled, metric_radii(noise.sigma, records[0].norm)) if labelled else {}
    if not numbers:
        return {}
    log_numbers(trainer, numbers, len(records))
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            charts = certification_charts(labelled, str(logger.experiment.name)) if labelled else {}
            table = certification_table(records, seconds or {}, data, noise)
            logger.log_metrics({**charts, "certify/table": table})
    if labelled and all(record.has_radius for record in labelled):
        title = f"{noise!r}, n = {labelled[0].n:,}, alpha = {labelled[0].alpha:g}"
        figure = certified_accuracy_figure({title: labelled}, norm=labelled[0].norm)
        log_figure(trainer, "certify/curve", figure, wandb=False)
    write_out(trainer)
    return numbers
