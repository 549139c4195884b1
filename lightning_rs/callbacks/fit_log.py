"""What loggers are told of every training: when it begins, its configuration and learning rate."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.callbacks.pace import loggers_listen
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.loggers import begin, fit_job
from lightning_rs.loggers.runs import link_checkpoint


class FitLog(pl.Callback):
    """Begins the W&B run with the first trained batch, and logs ``train/learning_rate``.

    Bad images and labels leave no run: by then a batch has been loaded, and gone forward and backward.
    ``lightning_rs.Trainer.fit`` puts it before all other callbacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning hook: begin with the first batch; log."""
        self._begin(trainer, pl_module)
        if batch_idx > 0 and not loggers_listen(trainer):
            return
        for optimizer in trainer.optimizers[:1]:  # an objective may do without
            rate = float(optimizer.param_groups[0]["lr"])
            pl_module.log("train/learning_rate", rate, on_step=True, on_epoch=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: name the best checkpoint, which its certifications will name too."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                link_checkpoint(trainer, callback.best_model_path)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._begun:
            return
        assert isinstance(pl_module, BaseClassifier)
        callbacks = [each for each in trainer.callbacks if isinstance(each, EpochEndCertification)]  # type: ignore[attr-defined]
        begin(trainer, fit_job(trainer, pl_module, [each.planned(pl_module) for each in callbacks]))
        self._begun = True
