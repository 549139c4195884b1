r"""CAT-RS: confidence-aware training (Jeong, Kim and Shin 2023).

Let p be the soft votes of a noise-trained reference network on a training image, from many samples taken once. With the
cross-entropies CE_i of m noisy copies and K ~ max(1, Bin(m, share of copies that are classified right)):

    low  = (1/m) sum of the K smallest CE_i              (divided by m, not by K)
    high = 1[K = m] max_i KL(p || F(x + e_i*))
    L    = mean over images of low + lam high

e_i* starts at e_i and takes 4 steps of 2 eps / 4 up the unit gradient of KL(p || F(x + e)) in the l2 ball of radius
eps around e_i; then it is made as likely as e_i was: shifted and scaled to its mean and root mean square (Gaussian
noise), or clamped to the cube (uniform noise).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_rs.checks import check_at_least, check_nonnegative
from lightning_rs.classifiers.ascent import ascend, check_eps
from lightning_rs.classifiers.base import _generator
from lightning_rs.classifiers.copies import NoisyCopies
from lightning_rs.classifiers.initial import load_initial_weights
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.datasets import View
from lightning_rs.noise import GaussianNoise, UniformNoise
from lightning_rs.shipped import checkpoint_path

_CHUNK = 64  # images whose reference votes are taken at a time


def catrs_low(cross_entropies: Float[Tensor, "copies B"], kept: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return (1/m) times the sum of the ``kept`` (images,) smallest of the ``cross_entropies`` (copies, images)."""
    rising = cross_entropies.sort(dim=0).values
    rank = torch.arange(len(rising), device=rising.device)[:, None]
    return (rising * (rank < kept)).sum(0) / len(rising)


def divergence(reference: Float[Tensor, "B C"], logits: Float[Tensor, "copies B C"]) -> Float[Tensor, "copies B"]:
    """Return KL(p || F), (copies, images), for soft votes p (images, classes), logits (copies, images, classes)."""
    return (torch.special.xlogy(reference, reference) - reference * logits.log_softmax(-1)).sum(-1)


class CATRS(NoisyCopies):
    """Confidence-aware training (Jeong, Kim and Shin 2023): easy images against the worst noise, hard ones less.

    Gaussian and uniform noise: the attacked noise is made as likely as it was, which needs a law whose density is known
    by two numbers or is constant. Cost: (steps + 2) m forward and backward passes an image, 24 with the defaults, and
    ``reference_samples`` forward passes an image once, kept in the run's folder. Settings: m = 4, lam = 0.5, 1, 2 on
    CIFAR-10 at sigma 0.25, 0.5, 1. Batches: see :mod:`lightning_rs.classifiers.copies`.

    Args:
        reference: checkpoint of the same network trained by noise augmentation at this noise, a file or a shipped name.
        lam: weight of the high-confidence term.
        copies: number m >= 2 of noisy copies.
        eps: l2 radius within which noise is attacked, in pixel units.
        steps: steps of that attack.
        reference_samples: noisy copies of a training image from which its soft votes are taken.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for arguments out of range, or another noise.
        FileNotFoundError: at the start of a training, if there is no reference.
    """

    least_copies = 2
    needs_index = True

    def __init__(
        self,
        reference: str,
        lam: float = 1.0,
        copies: int = 4,
        eps: float = 1.0,
        steps: int = 4,
        reference_samples: int = 10_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(copies=copies, **kwargs)
        self._channels_last = False  # noise and image change are added up in one order
        if not isinstance(self.noise, (GaussianNoise, UniformNoise)):
            raise ValueError(
                "noise must be GaussianNoise or UniformNoise for CATRS, which makes attacked noise as likely as it "
                f"was, got {self.noise!r}"
            )
        self.reference = str(reference)
        self.lam = float(check_nonnegative("lam", lam))
        self.eps, self.steps = (
            check_eps(eps, "l2", math.prod(self.shape), self.domain),
            check_at_least("steps", steps, 0),
        )
        self.reference_samples = check_at_least("reference_samples", reference_samples, 1)
        self._votes: Tensor | None = None

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image, without those of the reference."""
        return self.copies * (self.steps + 2), self.copies * (self.steps + 2)

    @property
    def cost(self) -> str:
        """What one training image costs, in words."""
        return f"{super().cost}, and {self.reference_samples:,} forward passes of the reference once"

    def on_fit_start(self) -> None:
        """Lightning hook: take the reference's votes on the training images, or read them from the run's folder."""
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise ValueError(f"CATRS needs a data module of lightning_rs.data, got {type(data).__name__}")
        network = deepcopy(self.network)
        load_initial_weights(network, self.reference, "reference")
        images = (data.source("train").fingerprint(), data.split_indices("train").tobytes())
        key = (Path(checkpoint_path(self.reference)).read_bytes(), repr(self.noise), self.reference_samples, images)
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        file = Path(self.trainer.default_root_dir) / f"reference-votes-{name}.pt"
        if file.is_file():
            self._votes = torch.load(file, weights_only=True)
            return
        rank_zero_info(f"CATRS: {self.reference_samples:,} samples of the reference for each training image, once")
        self._votes = self._votes_of(network, data.dataset("train"))
        if self.trainer.is_global_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._votes, file)

    @torch.no_grad()
    def _votes_of(self, network: nn.Module, view: View) -> Tensor:
        votes = torch.zeros(len(view.source), self.num_classes)
        network.eval()
        for start in range(0, len(view), _CHUNK):
            batch = view.__getitems__(range(start, min(start + _CHUNK, len(view))))
            images = batch.image.to(self.device)
            stream = _generator(images.device, "reference", start)
            total = torch.zeros(len(images), self.num_classes, device=images.device)
            for _ in range(self.reference_samples):
                total += network(self.noise(images, stream)).float().softmax(-1)
            votes[batch.own] = (total / self.reference_samples).cpu()
        return votes

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch ``{"index", "image", "label"}``."""
        if not isinstance(batch, Mapping):
            raise ValueError("CATRS needs training batches with the images' own indices, as lightning_rs.data gives")
        assert self._votes is not None
        self._reference = self._votes[batch["index"].cpu()].to(batch["image"].device)
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (copies, B, classes)."""
        variates = self.draw(images, batch_idx)
        attacked = self._attacked(images, variates)
        logits, worst = self.logits(images, variates), self.logits(images, attacked)
        with self.float32():
            right = (logits.argmax(-1) == labels).float().mean(0)
            stream = self.stream(images, batch_idx, "kept")
            drawn = torch.rand(self.copies, len(labels), generator=stream, device=right.device)
            kept = (drawn < right).sum(0).clamp(min=1)
            repeated = labels.repeat(self.copies)
            each = nn.functional.cross_entropy(logits.flatten(0, 1), repeated, reduction="none").view(self.copies, -1)
            high = divergence(self._reference, worst).amax(0) * (kept == self.copies)
            return (catrs_low(each, kept) + self.lam * high).mean(), logits

    def _attacked(self, images: Tensor, variates: Tensor) -> Tensor:
        """Return noise, (copies, B, d), that raises the divergence from the reference and is as likely as it was."""
        flat, rows = variates.flatten(0, 1), torch.cat([images] * self.copies)

        def objective(point: Tensor) -> Tensor:
            logits = self(self.noise.at(point, flat)).float().unflatten(0, variates.shape[:2])
            with self.float32():
                return divergence(self._reference, logits).sum()

        with self.attacking():  # to move the image is to move its noise
            moved = ascend(objective, rows, self.eps, self.steps, "l2", None).detach() - rows
        found = variates + moved.view_as(variates)
        if isinstance(self.noise, UniformNoise):
            return found.clamp(-self.noise.lam, self.noise.lam)
        mean, spread = _moments(found)
        old_mean, old_spread = _moments(variates)
        return (found - mean) / spread.clamp(min=1e-12) * old_spread + old_mean


def _moments(noise: Tensor) -> tuple[Tensor, Tensor]:
    mean = noise.mean(-1, keepdim=True)
    return mean, (noise - mean).square().mean(-1, keepdim=True).sqrt()
