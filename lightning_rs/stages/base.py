"""What Trainer.certify and Trainer.predict share: a pass of the smoothed classifier over a certification subset."""

from __future__ import annotations

import signal
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rs.certifier import Certifier
from lightning_rs.classifiers.base import BaseClassifier
from lightning_rs.data.base import ImageDataModule
from lightning_rs.noise import Noise
from lightning_rs.session import Session, Stage
from lightning_rs.stages.ranks import Share, gather


class SmoothingStage(pl.LightningDataModule, ABC):
    """A pass of the smoothed classifier over a certification subset, driven by Lightning's predict loop.

    The predict loop is the only one whose distributed sampling does not pad, so that every image comes once. As the
    loop's data module the stage is asked for the loader after the processes have met and the weights are loaded:
    only then is it known which images are already recorded.

    Args:
        certifier: how to certify or predict; None: ``default_n`` samples and the usual certificate of the noise.
        data: where the images come from.

    Attributes:
        command: what the stage is called on the command line.
        default_n: samples an image without a certifier.
    """

    command: ClassVar[str]
    default_n: ClassVar[int]
    purpose: Stage = "final"

    def __init__(self, certifier: Certifier | None, data: ImageDataModule) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have nothing left to do
        self.data = data
        self._certifier = certifier
        self._session: Session | None = None
        self._error: ValueError | None = None

    @final
    def prepare_data(self) -> None:
        """Download what is asked for, once a machine."""
        self.data.prepare_data()

    @final
    def setup(self, stage: str) -> None:
        """Load the data."""
        self.data.trainer = self.trainer
        self.data.setup(stage)

    @abstractmethod
    def predict_dataloader(self) -> DataLoader[Any]:
        """Lightning hook: prepare everything and return the images that are left to do."""

    @final
    def step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Work on a batch ``{"index", "image", "label"}`` and return one number an image.

        What comes before a bad image is done first. With several processes a bad image ends the work of its own process
        only; :meth:`raise_errors` follows.

        Raises:
            ValueError: for an image that is not finite, outside the domain or off the grid, naming its index.
        """
        if self._error is not None:
            return []
        try:
            good, refusal = self._before_a_bad_one(batch)
            done = self._step({name: each[:good] for name, each in batch.items()}) if good else []
            if refusal is not None:
                raise refusal
            self.heed_termination()
            return done
        except ValueError as error:
            if self.pl_trainer.world_size == 1:
                raise
            self._error = error
            return []

    @final
    def heed_termination(self) -> None:
        """End the process if a scheduler has asked for it, which Lightning's predict loop never heeds."""
        if self.pl_trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)

    @abstractmethod
    def _step(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Work on a batch of good images."""

    def interrupted(self) -> None:
        """Release what is open after an error or Ctrl-C."""

    @final
    def raise_errors(self) -> None:
        """Raise in all processes what one of them met; called by all of them."""
        errors = [error for error in gather(self._error, self.pl_trainer.world_size) if error is not None]
        if errors and self.pl_trainer.is_global_zero:
            raise errors[0]
        if errors:
            raise SystemExit(2)

    @property
    def pl_trainer(self) -> pl.Trainer:
        """The trainer that drives the stage."""
        assert self.trainer is not None
        return self.trainer

    @property
    def model(self) -> BaseClassifier:
        """The classifier whose network is smoothed."""
        model = self.pl_trainer.lightning_module
        assert isinstance(model, BaseClassifier)
        return model

    @property
    def certifier(self) -> Certifier:
        """How to certify or predict; certificates that are not named depend on the checkpoint's noise."""
        configured = self._certifier or Certifier(n=self.default_n)
        return configured.for_noise(configured.noise or self.model.noise)

    @property
    def session(self) -> Session:
        """The prepared network; exists once the loader was asked for."""
        assert self._session is not None
        return self._session

    @final
    def noise(self) -> Noise:
        """Return the certifier's noise if one is configured, else that of the checkpoint.

        Raises:
            ValueError: if a noise with fixed per-coordinate parameters would be replaced by another one.
        """
        wanted, trained = self.certifier.noise, self.model.noise
        if wanted is None or wanted == trained:
            return trained
        bound = any(law.outcomes is not None for law in (wanted, trained))
        if bound and not self.certifier.allow_noise_mismatch:
            raise ValueError(
                f"noise of the certifier is {wanted!r}, but the classifier was trained with {trained!r}, which belongs "
                "to it; leave the noise out, or set allow_noise_mismatch"
            )
        warnings.warn(f"smoothing with {wanted!r}; the classifier was trained with {trained!r}", stacklevel=2)
        return wanted

    @final
    def open_session(self, micro_batch: int | None = None) -> Session:
        """Prepare the network where the trainer put it."""
        self._session = self.certifier.session(
            self.model.network,
            self.noise(),
            self.model.shape,
            device=self.model.device,
            domain=self.data.domain,
            grid=self.data.grid,
            stage=self.purpose,
            micro_batch=micro_batch,
        )
        return self._session

    @final
    def check_images(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse the first bad image of a batch by its own index."""
        _, refusal = self._before_a_bad_one(batch)
        if refusal is not None:
            raise refusal

    def _before_a_bad_one(self, batch: Mapping[str, Tensor]) -> tuple[int, ValueError | None]:
        """Return how many images come before the first bad one, and why that is none to work on."""
        for place, (image, index) in enumerate(zip(batch["image"], batch["index"].tolist(), strict=True)):
            try:
                self.session.noise.check_input(image[None], self.data.domain, self.data.grid)
            except ValueError as error:
                reason = str(error).removesuffix(" of image 0 of the batch")
                return place, ValueError(f"image {index} of {self.data.name}: {reason}")
        return len(batch["image"]), None

    @final
    def one(self, position: int) -> dict[str, Tensor]:
        """Return one image of the certification subset as a batch."""
        found = self.data.certification_subset().__getitems__([position])
        return {"index": found.own, "image": found.image, "label": found.label}

    @final
    def loader(self, positions: Sequence[int], at_once: int = 1) -> DataLoader[Any]:
        """Return the loader of this process's share of some positions of the subset, at least ``at_once`` a batch."""
        base = self.data.predict_dataloader()
        return DataLoader(
            base.dataset,
            # By keyword: Lightning re-creates the loader.
            batch_size=max(base.batch_size or 1, at_once),
            sampler=Share(list(positions), self.pl_trainer.global_rank, self.pl_trainer.world_size),
            num_workers=base.num_workers,
            collate_fn=base.collate_fn,
            pin_memory=base.pin_memory,
        )

    @final
    def say(self, text: str) -> None:
        """Tell people, once."""
        if self.pl_trainer.is_global_zero:
            print(text, file=sys.stderr)
