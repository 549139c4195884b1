"""When a run of W&B begins, what it is called, what it is told of itself, and when it ends.

Lightning starts a run before it has read the data or the checkpoint. Here a run waits until there is a first result, so
that bad input and a certification with nothing left to do leave none:

    with held(trainer):             W&B's loggers are replaced by ones that wait
        ...
        begin(trainer, job)         the first result: named, configured, started
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_rs.loggers.jobs import Job, checkpoint_file
from lightning_rs.records.certification import to_line


def run_directory(trainer: pl.Trainer) -> Path:
    """Return the folder of this run: the logger's, as ModelCheckpoint uses it, else the trainer's own.

    Without a logger that is ``run_folder``, which the command line sets, or ``default_root_dir``.
    """
    logger = trainer.logger
    if logger is None:
        return getattr(trainer, "run_folder", None) or Path(trainer.default_root_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def prepare_loggers(trainer: pl.Trainer) -> None:
    """Apply ``WANDB_SILENT`` before the W&B run starts, or it warns about an argument that Lightning passes on."""
    if os.environ.get("WANDB_SILENT") == "true" and any(isinstance(log, WandbLogger) for log in trainer.loggers):
        import wandb

        wandb.termsetup(wandb.Settings(silent=True), None)


def close_loggers(failed: bool = False) -> None:
    """End the W&B run of this process, if there is one, so that the next command gets its own; say where it lies."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return
    folder, offline = Path(run.dir).parent, run.offline
    run.finish(exit_code=int(failed))
    if offline:
        print(f"W&B run, offline: wandb sync {folder}", file=sys.stderr)


class Waiting(Logger):
    """Stands in for W&B's logger until the run begins; what is logged before that is dropped.

    Args:
        logger: the logger that waits. It gets its id now, because folders are named after it.
    """

    def __init__(self, logger: WandbLogger) -> None:
        super().__init__()
        self.logger = logger
        self.actions: list[Callable[[], None]] = []
        if logger._id is None:
            # A sweep's agent names the run that it waits for.
            logger._id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
            logger._wandb_init["id"] = logger._id

    @property
    def name(self) -> str | None:
        """The project."""
        return self.logger.name

    @property
    def version(self) -> str | None:
        """The id of the run that will begin."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """Where the run's files will lie."""
        return self.logger.save_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Drop metrics: there is no run."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Drop Lightning's hyperparameters: :func:`begin` tells the whole configuration."""

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Hand on what must not be lost."""
        self.actions.append(lambda: self.logger.after_save_checkpoint(checkpoint_callback))

    def named(self, job: Job) -> WandbLogger:
        """Return the logger, with name, group, job type and tags where the user has given none."""
        chosen = self.logger._wandb_init
        given = {"name": job.name, "group": job.group, "job_type": job.kind, "tags": list(job.tags)}
        for key, value in given.items():
            if not chosen.get(key):
                chosen[key] = value
        return self.logger


@contextmanager
def held(trainer: pl.Trainer) -> Iterator[None]:
    """Within it, W&B's loggers whose run has not begun wait for :func:`begin`."""
    given = list(trainer.loggers)
    trainer.loggers = [
        Waiting(logger) if isinstance(logger, WandbLogger) and logger._experiment is None else logger
        for logger in given
    ]
    try:
        yield
    finally:
        trainer.loggers = given


def when_begun(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Do what belongs to a run, at once or as soon as it begins; nothing if it never does."""
    for logger in trainer.loggers:
        if isinstance(logger, Waiting):
            logger.actions.append(action)
            return
    action()


def begin(trainer: pl.Trainer, job: Job) -> None:
    """Begin the runs that wait, tell W&B what the job is, and do what waited for that."""
    waiting = [logger for logger in trainer.loggers if isinstance(logger, Waiting)]
    trainer.loggers = [log.named(job) if isinstance(log, Waiting) else log for log in trainer.loggers]
    fresh = {id(log.logger) for log in waiting}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            _tell(logger.experiment, job, id(logger) in fresh)
    for log in waiting:
        for action in log.actions:
            action()


def tell(trainer: pl.Trainer, job: Job) -> None:
    """Tell the W&B runs that are there, for instance that of a training, what a further job in them is."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            _tell(logger.experiment, job, fresh=False)


def _tell(run: Any, job: Job, fresh: bool) -> None:
    """Set the configuration (under the job's name in a run that is another job's) and the axes."""
    config = json.loads(to_line(dict(job.config)))
    run.config.update(config if fresh else {job.kind: config}, allow_val_change=True)
    for axis in sorted({axis for axis, _ in job.axes.values()}):
        run.define_metric(axis)
    for metric, (axis, kept) in job.axes.items():
        # By name: which of two patterns that fit a name counts is not defined, and Lightning sets one for all names.
        run.define_metric(metric, step_metric=axis, summary=kept)


def link_files(trainer: pl.Trainer, checkpoint: Mapping[str, Any], records: Path) -> None:
    """Say online which checkpoint the records came from, as artifacts; offline, group and configuration say it."""
    for run in _online(trainer):
        artifact = _checkpoint_artifact(checkpoint)
        if artifact is not None:
            run.use_artifact(artifact)
        run.log_artifact(_artifact(records.stem, "records", records))


def link_checkpoint(trainer: pl.Trainer, path: str | Path) -> None:
    """Say online which checkpoint a training left: the same artifact that its certifications then use."""
    for run in _online(trainer):
        artifact = _checkpoint_artifact(checkpoint_file(path))
        if artifact is not None:
            run.log_artifact(artifact)


def _online(trainer: pl.Trainer) -> list[Any]:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return [log.experiment for log in loggers if trainer.is_global_zero and log.experiment.offline is False]


def _checkpoint_artifact(checkpoint: Mapping[str, Any]) -> Any:
    """Return the artifact of a checkpoint file, named by its contents; None if it is not known to hold what ran."""
    digest, path = checkpoint.get("sha256"), checkpoint.get("path")
    if not digest or not path:
        return None
    return _artifact(f"checkpoint-{digest[:12]}", "model", Path(path))


def _artifact(name: str, kind: str, path: Path) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    artifact.add_file(str(path))
    return artifact
