"""Certification during training: a small, fixed subset of the validation split at the end of epochs."""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from lightning_rs.announce import PATIENCE, announced
from lightning_rs.certifier import Certifier
from lightning_rs.checks import check_alpha, check_at_least
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule, View
from lightning_rs.engine.runtime import usual_micro_batch
from lightning_rs.loggers import certification_metrics, metric_radii
from lightning_rs.noise import Noise
from lightning_rs.records import Certification
from lightning_rs.session import Session
from lightning_rs.stages.progress import duration
from lightning_rs.stages.ranks import gather

# A fast development run wants to see that it works, not what comes out.
_FEW = 4
_FEWEST = 8
_FEWEST_SAMPLES = 100
_REMAINS = 4  # part of the share that validation leaves in any case
# On a CPU a certification of so few samples would take most of its time to probe large micro-batches.
_MICRO_BATCH = 64
# In version 0.1 these metrics had the names of the final certification.
_OLD, _NEW = "certify/", "preview/"


class EpochEndCertification(pl.Callback):
    """Logs ``preview/ACR``, ``preview/accuracy@R`` and ``preview/abstain`` at validation, on few images and samples.

    The images are a fixed subset of the validation split, never of the test set; the network is copied, so that
    training is bit-identical with and without this callback; ranks share the images. Micro-batches have at most 64 rows
    on a CPU, where the certifier does not say. The metrics can be monitored by
    ModelCheckpoint and early stopping: in epochs without certification the last ones stand.

    Args:
        images: number of validation images.
        every_n_epochs: certify at every n-th epoch, and at the first one, so that a monitor always finds the metrics.
        certifier: how to certify; default: the usual certificate of the noise with n0 = 64, n = 1,000, alpha = 0.01.
        radii: radii of the logged accuracies; default: multiples of the noise's sigma, whole pixels for patches and l0.
        share: largest share of an epoch's time that validation and the certification take together (of short epochs,
            two seconds). Where all images would take longer, the first certification of the training settles on
            fewer images, and below eight of them on fewer samples; so the numbers of slow machines are coarser.
            Validation is never shortened: where it takes most of the share, a quarter of it remains for certifying.
            None: whatever it takes.
    """

    def __init__(
        self,
        images: int = 64,
        every_n_epochs: int = 1,
        certifier: Certifier | None = None,
        radii: Sequence[float] | None = None,
        share: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.images = check_at_least("images", images, 1)
        self.every_n_epochs = check_at_least("every_n_epochs", every_n_epochs, 1)
        self.certifier = certifier
        self.radii = None if radii is None else [float(r) for r in radii]
        self.share = None if share is None else float(check_alpha(share, "share"))
        self._last: dict[str, float] = {}
        self._size: tuple[int, int] | None = None  # images and samples that the share allows
        self._began: float | None = None
        self._validating: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning hook: refuse a monitor under the name that these metrics had in version 0.1.

        Raises:
            ValueError: naming the callback and the metric's name now.
        """
        if stage != "fit":
            return
        watching = [*trainer.callbacks, pl_module]  # type: ignore[attr-defined]
        for each in watching:
            for told in (getattr(each, "monitor", None), getattr(each, "_monitor", None)):
                if isinstance(told, str) and told.startswith(_OLD):
                    raise ValueError(
                        f"monitor of {type(each).__name__} must be {_renamed(told)!r}, got {told!r}: what is certified "
                        "of the validation images during training is called preview/..., certify/... is the test data"
                    )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: an epoch begins, whose length decides what a certification may cost."""
        self._began = self._clock()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: validation begins, which counts towards the share."""
        if not trainer.sanity_checking:
            self._validating = self._clock()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning hook: certify, and log where the validation metrics are logged."""
        if trainer.sanity_checking or not isinstance(pl_module, BaseClassifier):
            return
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due or not self._last or trainer.state.fn != TrainerFn.FITTING:
            certifier, _, radii = self.planned(pl_module)
            noise = certifier.noise or pl_module.noise
            if not certifier.certificates:
                warnings.warn(
                    f"no certification at epoch ends: none is registered for {type(noise).__name__}, see usual_for",
                    stacklevel=2,
                )
                return
            self._last = certification_metrics(self._certify(trainer, pl_module, certifier, noise), radii, "preview")
        for name, value in self._last.items():
            # All ranks hold the same numbers, so their mean is the number.
            pl_module.log(name, value, prog_bar=name.endswith("ACR"), sync_dist=True)

    def planned(self, model: BaseClassifier) -> tuple[Certifier, int, list[float]]:
        """Return how a classifier is certified, the number of images, and the radii of the logged accuracies."""
        configured = self.certifier or Certifier(n0=64, n=1000, alpha=0.01)
        noise = configured.noise or model.noise
        chosen = configured.for_noise(noise)
        norm = chosen.certificates[0].norm if chosen.certificates else "l2"
        return chosen, self.images, self.radii or metric_radii(noise.sigma, norm)

    def state_dict(self) -> dict[str, Any]:
        """Return the standing metrics, so that a resumed training monitors what it did."""
        settled = {} if self._size is None else {"size": self._size}
        return {"last": dict(self._last), **settled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the standing metrics, also under the names of version 0.1."""
        self._last = {_renamed(name): value for name, value in state_dict["last"].items()}
        size = state_dict.get("size")
        self._size = None if size is None else (int(size[0]), int(size[1]))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning hook: what a ModelCheckpoint of version 0.1 remembers is found under its monitor's name now."""
        states = checkpoint["callbacks"]
        for key in [key for key in states if f"'{_OLD}" in key]:
            states[key.replace(f"'{_OLD}", f"'{_NEW}")] = states.pop(key)

    @torch.no_grad()
    def _certify(
        self, trainer: pl.Trainer, model: BaseClassifier, certifier: Certifier, noise: Noise
    ) -> list[Certification]:
        data = _datamodule(trainer)
        subset = data.epoch_end_subset(_FEW if getattr(trainer, "fast_dev_run", False) else self.images)
        own: list[Certification] = []
        rows = None
        if certifier.runtime.micro_batch == "auto" and model.device.type == "cpu":
            rows = min(_MICRO_BATCH, usual_micro_batch(model.shape, "cpu"))

        def prepared(n: int) -> Session:
            fewer = copy.copy(certifier)
            fewer.n = n
            return fewer.session(
                model.network,
                noise,
                model.shape,
                device=model.device,
                domain=data.domain,
                grid=data.grid,
                stage="epoch-end",
                micro_batch=rows,
            )

        with _undisturbed(model), announced("certification at the end of the epoch", not trainer.is_global_zero):
            # What was settled before is known before the network is prepared, which takes longer than few samples.
            known = self._size if self._limited(trainer) else None
            session = prepared(certifier.n if known is None else min(certifier.n, known[1]))
            images, n = self._affordable(trainer, session, subset)
            if n < session.certifier.n:
                session = prepared(n)
            mine = list(range(trainer.global_rank, images, trainer.world_size))
            if mine:
                batch = subset.__getitems__(mine)
                own = list(session.certify(batch.image, batch.label, batch.own))
        records = [record for part in gather(own, trainer.world_size) for record in part]
        return sorted(records, key=lambda record: record.index)

    def _limited(self, trainer: pl.Trainer) -> bool:
        """Whether the share of an epoch limits a certification: not where weights at hand are only evaluated."""
        return self.share is not None and self._began is not None and trainer.state.fn == TrainerFn.FITTING

    def _affordable(self, trainer: pl.Trainer, session: Session, subset: View) -> tuple[int, int]:
        """Return how many images and samples the share of an epoch allows; settled once a training, for all ranks."""
        whole = len(subset), session.certifier.n
        if not self._limited(trainer):
            return whole
        assert self.share is not None
        assert self._began is not None
        if self._size is None:
            first = subset.__getitems__([0]).image
            session.probe(first)  # part of what every certification takes
            rate = session.measure(first, 0.2) * trainer.world_size
            now = self._clock()
            together = max(PATIENCE, self.share * (now - self._began))
            spent = now - (now if self._validating is None else self._validating)  # probing and measuring, too
            seconds = max(together - spent, together / _REMAINS)
            size = affordable(seconds * rate, whole[0], session.samples_per_image, session.certifier)
            self._size = trainer.strategy.broadcast(size)
            if self._size != whole and trainer.is_global_zero:
                print(
                    f"certification at epoch ends: {self._size[0]} of {whole[0]} images, n = {self._size[1]:,}, "
                    f"so that validation and it take at most {self.share:.0%} of an epoch (about {duration(seconds)} "
                    "are left for it); share: null lifts that",
                    file=sys.stderr,
                )
        return min(whole[0], self._size[0]), min(whole[1], self._size[1])

    @staticmethod
    def _clock() -> float:
        return time.monotonic()


def affordable(samples: float, images: int, samples_per_image: int, certifier: Certifier) -> tuple[int, int]:
    """Return the numbers of images and of estimation samples an image that a number of samples pays for.

    Images are given up first, down to eight; then samples, down to a hundred, where their number is fixed.
    """
    if images * samples_per_image <= samples:
        return images, certifier.n
    kept = min(images, max(_FEWEST, int(samples // samples_per_image)))
    if kept * samples_per_image <= samples or certifier.budget.fewest(certifier.n) < certifier.n:
        return kept, certifier.n
    passes = max(1, len(certifier.schemes))
    n = int((samples / kept - certifier.n0) / passes) // 2 * 2  # even, for pairs
    return kept, min(certifier.n, max(_FEWEST_SAMPLES, n))


def _datamodule(trainer: pl.Trainer) -> ImageDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        raise ValueError(
            "EpochEndCertification takes its images from the trainer's datamodule, which must be one of "
            f"lightning_rs.data, got {type(data).__name__}"
        )
    return data


def _renamed(metric: str) -> str:
    return _NEW + metric.removeprefix(_OLD) if metric.startswith(_OLD) else metric


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
