"""Pictures during training."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from lightning_rs.checks import check_at_least
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.loggers import log_figure, when_begun
from lightning_rs.plots import image_grid


class NoisyImageGrid(pl.Callback):
    """Logs, once at the start, images beside their noisy copies: what the network has to read.

    Validation images, or training images where none are held out.

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
        data = getattr(trainer, "datamodule", None)
        if not (trainer.is_global_zero and isinstance(pl_module, BaseClassifier) and isinstance(data, ImageDataModule)):
            return
        if len(data.shape) != 3:
            return
        view = data.dataset("val")
        if not len(view):
            view = data.dataset("train")
        clean = view.__getitems__(range(min(self.images, len(view)))).image
        generator = torch.Generator().manual_seed(0)
        columns = {"clean": clean.numpy()}
        for copy in range(1, self.copies + 1):
            columns[f"copy {copy}"] = pl_module.noise(clean, generator).numpy()
        figure = image_grid(columns, title=repr(pl_module.noise))
        when_begun(trainer, lambda: log_figure(trainer, "noise/images", figure))
