r"""SmoothMix (Jeong et al. 2021): between an image and its adversary, the answer should fade to uniform.

From x, T steps of fixed length a along the unit gradient of J (:mod:`lightning_rs.classifiers.smoothadv`), with no ball
but the box, lead to x~. With x0 = x, or one step of a (``one_step``), lam ~ U[0, 1/2] for each image and the same noise
everywhere:

    x_mix = (1 - lam) x0 + lam x~,      t_mix = (1 - lam) Fbar(x0) + lam / classes
    L = mean_i CE(z(x0 + e_i), y) + eta w mean_i 1[argmax Fbar(x0) = y] KL(t_mix || F(x_mix + e_i))

w = min(1, (epoch + 1) / 10). t_mix is not detached, and the means run over all rows: masked ones count as 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_rs.checks import check_at_least, check_nonnegative
from lightning_rs.classifiers.ascent import check_eps, direction, gradient, norm_of, project
from lightning_rs.classifiers.copies import NoisyCopies
from lightning_rs.classifiers.smoothadv import smoothadv_objective


def smoothmix_loss(
    clean: Float[Tensor, "copies B C"],
    mixed: Float[Tensor, "copies B C"],
    labels: Int64[Tensor, " B"],
    lam: Float[Tensor, " B"],
    eta: float,
) -> Float[Tensor, ""]:
    """Return the loss above with eta for eta w, the mean over images: a scalar.

    Args:
        clean: logits at x0 + e_i, (copies, images, classes).
        mixed: logits at x_mix + e_i, (copies, images, classes).
        labels: (images,).
        lam: (images,), in [0, 1/2].
        eta: weight of the second term.
    """
    mean = clean.softmax(-1).mean(0)
    target = (1.0 - lam[:, None]) * mean + lam[:, None] / mean.shape[-1]
    divergence = (target * (target.clamp(min=torch.finfo(target.dtype).tiny).log() - mixed.log_softmax(-1))).sum(-1)
    right = (mean.argmax(-1) == labels).to(divergence.dtype)
    cross_entropy = nn.functional.cross_entropy(clean.flatten(0, 1), labels.repeat(len(clean)))
    return cross_entropy + eta * (right * divergence).mean()


class SmoothMix(NoisyCopies):
    """Mixing images with their unrestricted adversaries (Jeong et al. 2021).

    Any noise; splitting noise by straight-through gradients. Cost: m (T + 2) forward and backward passes an image, 24
    with the defaults. Settings: MNIST m = 4, a = 1, eta = 5 with T = 2, 4, 8 at sigma 0.25, 0.5, 1 (or eta = 1, one
    step, T = 3, 4, 8); CIFAR-10 m = 2, T = 4, eta = 5, a = 0.5, 1, 2. Batches: see
    :mod:`lightning_rs.classifiers.copies`.

    Args:
        eta: weight of the mixed term.
        steps: number T of steps.
        step_size: length a of a step, in pixel units, in the norm of the noise's usual certificate.
        copies: number m of noisy copies.
        one_step: x0 is the image after the first step, within a ball of radius a that grows over ``warmup``.
        warmup: epochs over which the mixed term's weight grows to eta.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        eta: float = 5.0,
        steps: int = 4,
        step_size: float = 1.0,
        copies: int = 4,
        one_step: bool = False,
        warmup: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(copies=copies, **kwargs)
        self.eta = float(check_nonnegative("eta", eta))
        self.steps = check_at_least("steps", steps, 1)
        self.norm = norm_of(self.noise)
        self.step_size = check_eps(step_size, self.norm, math.prod(self.shape), self.domain, "step_size")
        self.one_step, self.warmup = bool(one_step), check_at_least("warmup", warmup, 0)

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        return self.copies * (self.steps + 2), self.copies * (self.steps + 2)

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (copies, B, classes) at x0."""
        variates = self.draw(images, batch_idx)
        start, far = self._path(images, labels, variates)
        lam = torch.rand(len(images), generator=self.stream(images, batch_idx, "mix"), device=images.device) / 2
        share = lam.view(-1, *[1] * (images.ndim - 1)).to(images.dtype)
        clean = self.logits(start, variates)
        mixed = self.logits(start + share * (far - start), variates)
        with self.float32():
            return smoothmix_loss(clean, mixed, labels, lam, self.eta * self._grown), clean

    @property
    def _grown(self) -> float:
        return 1.0 if self.warmup == 0 else min(1.0, (self.current_epoch + 1) / self.warmup)

    def _path(self, images: Tensor, labels: Tensor, variates: Tensor) -> tuple[Tensor, Tensor]:
        def objective(point: Tensor) -> Tensor:
            logits = self.logits(point, variates)
            with self.float32():
                return smoothadv_objective(logits, labels) * len(labels)

        point, start = images, images
        with self.attacking():
            for step in range(self.steps):
                point = point + self.step_size * direction(gradient(objective, point), self.norm)
                point = point if self.domain is None else point.clamp(*self.domain)
                if step == 0 and self.one_step:
                    start = project(point, images, self.step_size * self._grown, self.norm, self.domain)
        return start.detach(), point.detach()
