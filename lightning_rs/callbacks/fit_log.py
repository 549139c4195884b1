"""What loggers are told of every training: when it begins, its configuration and learning rate."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_rs.callbacks.epoch_end import EpochEndCertification
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.loggers import begin, fit_job
from lightning_rs.loggers.runs import link_checkpoint


class FitLog(pl.Callback):
    """Begins the W&B run with the training, and logs ``train/learning_rate``.

    ``lightning_rs.Trainer.fit`` puts it before all other callbacks.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: data, network and a validation batch were found good."""
        assert isinstance(pl_module, BaseClassifier)
        callbacks = [each for each in trainer.callbacks if isinstance(each, EpochEndCertification)]  # type: ignore[attr-defined]
        begin(trainer, fit_job(trainer, pl_module, [each.planned(pl_module) for each in callbacks]))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning hook: log."""
        for optimizer in trainer.optimizers[:1]:  # an objective may do without
            rate = float(optimizer.param_groups[0]["lr"])
            pl_module.log("train/learning_rate", rate, on_step=True, on_epoch=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: name the best checkpoint, which its certifications will name too."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                link_checkpoint(trainer, callback.best_model_path)
