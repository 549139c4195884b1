"""Certification during training: a small, fixed subset of the validation split at the end of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_rs.callbacks.logging import certification_metrics, metric_radii
from lightning_rs.certifier import Certifier
from lightning_rs.checks import check_at_least
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.records import Certification


class EpochEndCertification(pl.Callback):
    """Logs ``certify/ACR``, ``certify/accuracy@R`` and ``certify/abstain`` at validation, on few images and samples.

    The images are a fixed subset of the validation split, never of the test set; the network is copied, so that
    training is bit-identical with and without this callback; ranks share the images. The metrics can be monitored by
    ModelCheckpoint and early stopping.

    Args:
        images: number of validation images.
        every_n_epochs: certify at every n-th epoch; the first one included, so that a monitor always finds the
            metrics.
        certifier: how to certify; default: Cohen's certificate with n0 = 64, n = 1,000 at alpha = 0.01.
        radii: radii of the logged accuracies; default: multiples of the noise's sigma.
    """

    def __init__(
        self,
        images: int = 64,
        every_n_epochs: int = 1,
        certifier: Certifier | None = None,
        radii: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.images = check_at_least("images", images, 1)
        self.every_n_epochs = check_at_least("every_n_epochs", every_n_epochs, 1)
        self.certifier = certifier or Certifier(n0=64, n=1000, alpha=0.01)
        self.radii = None if radii is None else [float(r) for r in radii]
        self._last: dict[str, float] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: certify, and log where the validation metrics are logged."""
        if trainer.sanity_checking or not isinstance(pl_module, BaseClassifier):
            return
        if trainer.current_epoch % self.every_n_epochs == 0 or not self._last:
            certifications = self._certify(trainer, pl_module)
            radii = metric_radii(pl_module.noise.sigma) if self.radii is None else self.radii
            self._last = certification_metrics(certifications, radii)
        # All ranks hold the same numbers; between certifications the last ones stand, for monitors.
        for name, value in self._last.items():
            pl_module.log(name, value, prog_bar=name.endswith("ACR"), rank_zero_only=False, sync_dist=False)

    def _certify(self, trainer: pl.Trainer, model: BaseClassifier) -> list[Certification]:
        data = _datamodule(trainer)
        subset = data.epoch_end_subset(self.images)
        mine = list(range(trainer.global_rank, len(subset), trainer.world_size))
        with torch.inference_mode(), torch.random.fork_rng(devices=_cuda_devices(model)):
            session = self.certifier.session(
                model.network,
                self.certifier.noise or model.noise,
                model.shape,
                device=model.device,
                domain=data.domain,
                grid=data.grid,
                stage="epoch-end",
            )
            batch = subset.__getitems__(mine).collated() if mine else None
            own = [] if batch is None else list(session.certify(batch["image"], batch["label"], batch["index"]))  # type: ignore[call-overload]
        return sorted(_gather(own, trainer.world_size), key=lambda record: record.index)


def _datamodule(trainer: pl.Trainer) -> ImageDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        raise TypeError(
            "EpochEndCertification takes its images from the trainer's datamodule, which must be one of "
            f"lightning_rs.data, got {type(data).__name__}"
        )
    return data


def _gather(own: list[Certification], world_size: int) -> list[Certification]:
    if world_size == 1:
        return own
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, own)
    return [record for part in parts for record in part]


def _cuda_devices(model: pl.LightningModule) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
