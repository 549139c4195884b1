"""Pictures during training."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from lightning_rs.callbacks.logging import log_figure
from lightning_rs.checks import check_at_least
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.plots import image_grid


class NoisyImageGrid(pl.Callback):
    """Logs, once at the start, validation images beside their noisy copies: what the network has to read.

    Args:
        images: number of images.
        copies: noisy copies of each.
    """

    def __init__(self, images: int = 6, copies: int = 4) -> None:
        super().__init__()
        self.images = check_at_least("images", images, 1)
        self.copies = check_at_least("copies", copies, 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: draw with an own generator, so that training does not change."""
        if not trainer.is_global_zero or not isinstance(pl_module, BaseClassifier) or len(pl_module.shape) != 3:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        subset = data.epoch_end_subset(self.images)
        clean = subset.__getitems__(list(range(len(subset)))).image
        generator = torch.Generator().manual_seed(0)
        columns = {"clean": clean.numpy()}
        for copy in range(1, self.copies + 1):
            columns[f"copy {copy}"] = pl_module.noise(clean, generator).numpy()
        log_figure(trainer, "noise/images", image_grid(columns, title=repr(pl_module.noise)))
