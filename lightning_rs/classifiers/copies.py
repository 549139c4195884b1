"""What objectives share that see several noisy copies of an image: drawing, layout, and attack phases.

Copies are laid out one after the other: rows 0..B-1 are the first copy of every image, rows B..2B-1 the second, and
logits are (copies, images, classes). So labels need no repetition, which could be laid out otherwise by mistake.

Batches: the published scripts of SmoothAdv, consistency, SmoothMix and CAT-RS cut a batch of 256 images into m pieces
of 256 / m, each of which takes one step with m copies an image. Their epoch has m times the steps of plain noise
augmentation, of 256 rows each. Here that is ``batch_size: 256 / m``, one step a batch. MACER does not cut: 256 images
(64 in its own repository) with 16 copies each are one step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lightning_rs.checks import check_at_least
from lightning_rs.classifiers.base import BaseClassifier, _generator


class NoisyCopies(BaseClassifier):
    """A training objective that is a function of the logits of several noisy copies of each image.

    Subclasses implement :meth:`loss`. Losses are computed in float32 whatever the precision of the network.

    Args:
        copies: number m of noisy copies of an image.
        **kwargs: see :class:`BaseClassifier`.

    Raises:
        ValueError: for fewer copies than the objective needs.
    """

    least_copies: ClassVar[int] = 1

    def __init__(self, copies: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if check_at_least("copies", copies, 1) < self.least_copies:
            name = type(self).__name__
            raise ValueError(f"copies must be >= {self.least_copies}: {name} compares copies of an image, got {copies}")
        self.copies = copies

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        return self.copies, self.copies

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of images (B, *shape) and labels (B,)."""
        images, labels = batch
        loss, logits = self.loss(self.laid_out(images), labels, batch_idx)
        hits = logits.detach().argmax(-1) == labels
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        self.log("train/accuracy_noisy", hits.float().mean(), on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    @abstractmethod
    def loss(
        self, images: Float[Tensor, "B ..."], labels: Int64[Tensor, " B"], batch_idx: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "copies B C"]]:
        """Return the loss, a scalar, and the logits (copies, B, classes) of the noisy copies, for the log."""

    def draw(self, images: Float[Tensor, "B ..."], batch_idx: int) -> Float32[Tensor, "copies B d"]:
        """Return fresh variates of ``copies`` noisy copies of every image: (copies, B, d).

        Streams are those of :meth:`noisy`: each copy has its own, named by seed, rank, epoch and batch.
        """
        return torch.stack([self.variates(images, batch_idx, copy) for copy in range(self.copies)])

    def copies_of(
        self, images: Float[Tensor, "B ..."], variates: Float32[Tensor, "copies B d"]
    ) -> Float[Tensor, "copies*B ..."]:
        """Return noisy copies, (copies * B, *shape), of images (B, *shape) at variates (copies, B, d)."""
        rows = images if len(variates) == 1 else torch.cat([images] * len(variates))  # cat keeps the memory layout
        return self.noise.at(rows, variates.flatten(0, 1))

    def logits(
        self, images: Float[Tensor, "B ..."], variates: Float32[Tensor, "copies B d"]
    ) -> Float32[Tensor, "copies B C"]:
        """Return the logits of noisy copies, (copies, B, classes), float32."""
        return self(self.copies_of(images, variates)).float().unflatten(0, variates.shape[:2])

    def stream(self, images: Tensor, batch_idx: int, purpose: str) -> torch.Generator:
        """Return a stream for other random choices of a step, named as the noise is."""
        key = (purpose, self.seed, self.global_rank, self.current_epoch, batch_idx)
        return _generator(images.device, *key)

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Within it, the network is frozen in evaluation mode: BatchNorm statistics and weights stay untouched."""
        modes = [(module, module.training) for module in self.network.modules()]
        wanted = [(weight, weight.requires_grad) for weight in self.network.parameters()]
        try:
            self.network.eval().requires_grad_(False)
            with torch.enable_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            for weight, requires_grad in wanted:
                weight.requires_grad_(requires_grad)

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Within it, nothing is rounded to the low precision of mixed-precision training."""
        with torch.autocast(self.device.type, enabled=False):
            yield
