"""Certification during training: a small, fixed subset of the validation split at the end of epochs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from lightning_rs.certifier import Certifier
from lightning_rs.checks import check_at_least
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.loggers import certification_metrics, metric_radii
from lightning_rs.noise import Noise
from lightning_rs.records import Certification
from lightning_rs.stages.ranks import gather

# A fast development run wants to see that it works, not what comes out.
_FEW = 4


class EpochEndCertification(pl.Callback):
    """Logs ``certify/ACR``, ``certify/accuracy@R`` and ``certify/abstain`` at validation, on few images and samples.

    The images are a fixed subset of the validation split, never of the test set; the network is copied, so that
    training is bit-identical with and without this callback; ranks share the images. The metrics can be monitored by
    ModelCheckpoint and early stopping: in epochs without certification the last ones stand.

    Args:
        images: number of validation images.
        every_n_epochs: certify at every n-th epoch, and at the first one, so that a monitor always finds the metrics.
        certifier: how to certify; default: the usual certificate of the noise with n0 = 64, n = 1,000, alpha = 0.01.
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
        self.certifier = certifier
        self.radii = None if radii is None else [float(r) for r in radii]
        self._last: dict[str, float] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: certify, and log where the validation metrics are logged."""
        if trainer.sanity_checking or not isinstance(pl_module, BaseClassifier):
            return
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due or not self._last or trainer.state.fn != TrainerFn.FITTING:
            configured = self.certifier or Certifier(n0=64, n=1000, alpha=0.01)
            noise = configured.noise or pl_module.noise
            certifier = configured.for_noise(noise)
            if not certifier.certificates:
                warnings.warn(
                    f"no certification at epoch ends: none is registered for {type(noise).__name__}, see usual_for",
                    stacklevel=2,
                )
                return
            radii = self.radii or metric_radii(noise.sigma)
            self._last = certification_metrics(self._certify(trainer, pl_module, certifier, noise), radii)
        for name, value in self._last.items():
            # All ranks hold the same numbers, so their mean is the number.
            pl_module.log(name, value, prog_bar=name.endswith("ACR"), sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the standing metrics, so that a resumed training monitors what it did."""
        return {"last": dict(self._last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the standing metrics."""
        self._last = dict(state_dict["last"])

    @torch.no_grad()
    def _certify(
        self, trainer: pl.Trainer, model: BaseClassifier, certifier: Certifier, noise: Noise
    ) -> list[Certification]:
        data = _datamodule(trainer)
        subset = data.epoch_end_subset(_FEW if getattr(trainer, "fast_dev_run", False) else self.images)
        mine = list(range(trainer.global_rank, len(subset), trainer.world_size))
        own: list[Certification] = []
        with _undisturbed(model):
            session = certifier.session(
                model.network,
                noise,
                model.shape,
                device=model.device,
                domain=data.domain,
                grid=data.grid,
                stage="epoch-end",
            )
            if mine:
                batch = subset.__getitems__(mine)
                own = list(session.certify(batch.image, batch.label, batch.own))
        records = [record for part in gather(own, trainer.world_size) for record in part]
        return sorted(records, key=lambda record: record.index)


def _datamodule(trainer: pl.Trainer) -> ImageDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        raise ValueError(
            "EpochEndCertification takes its images from the trainer's datamodule, which must be one of "
            f"lightning_rs.data, got {type(data).__name__}"
        )
    return data


@contextmanager
def _undisturbed(model: pl.LightningModule) -> Iterator[None]:
    """Keep random state, thread count and precision of the training as they are."""
    threads = torch.get_num_threads()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
