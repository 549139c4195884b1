"""Training of a denoiser before a frozen classifier (Salman et al., 2020; Karras et al., 2022).

With D the denoiser, f the classifier, x an image and e fresh noise, one of

    mse             || D(x + e) - x ||^2, the mean over all numbers; f plays no part
    stability       CE( f(D(x + e)), argmax f(x) ): hard labels of the classifier itself, none of the data
    classification  CE( f(D(x + e)), y )

f is frozen and in evaluation mode; what is certified afterwards is f o D, one network. One denoiser for all noise
levels is trained with the first of them under ``sigma_range``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_rs.checks import check_choice, check_positive
from lightning_rs.classifiers.base import BaseClassifier, _generator, passes_told
from lightning_rs.networks.denoise import DenoisedNetwork
from lightning_rs.noise.base import AdditiveNoise

Objective = Literal["mse", "stability", "classification"]


def denoising_loss(denoised: Tensor, clean: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error of denoised images (m, C, H, W), each weighted by ``weight`` (m,) if given."""
    error = (denoised.float() - clean.float()).square()
    return error.mean() if weight is None else (error.flatten(1).mean(1) * weight.float()).mean()


def level_weight(sigma: Tensor, data_std: float) -> Tensor:
    r"""Return the weight of EDM, :math:`1 / c_\mathrm{out}^2 = (s^2 + d^2) / (s d)^2`: all levels count alike.

    Args:
        sigma: noise levels (m,) in pixel units; ``s = 2 sigma``.
        data_std: standard deviation of the pixels; ``d = 2 data_std``.
    """
    s, d = 2 * sigma, 2 * data_std
    return (s.square() + d**2) / (s * d).square()


class DenoiserTraining(BaseClassifier):
    """Train the denoiser of a `DenoisedNetwork` (``network: denoised``) before its frozen classifier.

    Cost per image: a forward and a backward pass of the denoiser; for stability and classification also a forward and
    a backward pass of the classifier, and for stability one more forward pass of it.

    Args:
        objective: "mse", "stability" or "classification", as above.
        sigma_range: smallest and largest noise level, in pixel units; each image gets its own, log-uniform between
            them, for a denoiser that is told the level. None trains at the level of the noise alone. Needs "mse" and
            a noise that is added: the law is scaled.
        **kwargs: of `BaseClassifier`; ``network_args`` names ``denoiser`` and ``classifier``.

    Raises:
        ValueError: if the network is no `DenoisedNetwork`, or an argument is out of range.
    """

    def __init__(self, objective: Objective = "mse", sigma_range: Sequence[float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("objective", objective, get_args(Objective))
        if not isinstance(self.network.get_submodule("net"), DenoisedNetwork):
            raise ValueError(f"network must be 'denoised' with a denoiser to train, got {self.hparams['network']!r}")
        self.kind: Objective = objective
        self.sigma_range = None if sigma_range is None else self._checked_range(sigma_range)
        self.denoised.freeze_part("classifier")

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the denoiser for one training image; see also :attr:`of_classifier`."""
        return 1, 1

    @property
    def of_classifier(self) -> tuple[int, int]:
        """Forward and backward passes of the classifier for one training image."""
        return {"mse": (0, 0), "stability": (2, 1), "classification": (1, 1)}[self.kind]

    @property
    def cost(self) -> str:
        """What one training image costs, in words."""
        own = passes_told(*self.passes, "of the denoiser an image")
        return own if self.kind == "mse" else f"{own}, {passes_told(*self.of_classifier, 'of the classifier')}"

    @property
    def denoised(self) -> DenoisedNetwork:
        """The denoiser with its classifier."""
        found = self.network.get_submodule("net")
        assert isinstance(found, DenoisedNetwork)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of clean images (m, C, H, W) and labels (m,)."""
        images, labels = self.laid_out(batch[0]), batch[1]
        noisy = self.noisy(images, batch_idx)
        if self.kind == "mse":
            loss = self._error(noisy, images, batch_idx)
        else:
            logits = self.denoised.classify(self.denoised.denoise(noisy))
            target = labels if self.kind == "classification" else self._own_labels(images)
            loss = nn.functional.cross_entropy(logits.float(), target)
            agreement = (logits.argmax(1) == target).float().mean()
            self.log("train/accuracy_noisy", agreement, on_step=False, on_epoch=True)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _error(self, noisy: Tensor, images: Tensor, batch_idx: int) -> Tensor:
        if self.sigma_range is None:
            return denoising_loss(self.denoised.denoise(noisy, cut=False), images)
        sigma = self._levels(noisy, batch_idx)
        scaled = images + (noisy - images) * (sigma / self.noise.sigma).view(-1, 1, 1, 1)
        return denoising_loss(
            self.denoised.denoise(scaled, sigma, cut=False), images, level_weight(sigma, self._data_std())
        )

    def _own_labels(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.denoised.classify(images).argmax(1)

    def _levels(self, noisy: Tensor, batch_idx: int) -> Tensor:
        """Draw one level an image, log-uniform, from a stream of its own."""
        assert self.sigma_range is not None
        low, high = (math.log(end) for end in self.sigma_range)
        key = ("levels", self.seed, self.global_rank, self.current_epoch, batch_idx)
        drawn = torch.empty(len(noisy), device=noisy.device, dtype=noisy.dtype)
        return drawn.uniform_(low, high, generator=_generator(noisy.device, *key)).exp()

    def _data_std(self) -> float:
        std = self.hparams["std"]
        return 0.25 if std is None else sum(std) / len(std)

    def _checked_range(self, ends: Sequence[float]) -> tuple[float, float]:
        low, high = (float(end) for end in check_positive("sigma_range", list(ends))) if len(ends) == 2 else (1.0, 0.0)
        if not low < high:
            raise ValueError(f"sigma_range must be (smallest, largest) in pixel units, got {list(ends)!r}")
        if self.kind != "mse":
            raise ValueError(f"sigma_range needs the objective 'mse', got {self.kind!r}")
        if not isinstance(self.noise, AdditiveNoise):
            raise ValueError(f"sigma_range needs a noise that is added to the input, got {self.noise!r}")
        return low, high
