r"""MACER: maximise the certified radius (Zhai et al. 2020), for every noise with a radius.

With logits z_i of m noisy copies, Fbar = mean_i softmax(z_i) and G = mean_i softmax(beta z_i), whose two largest
entries are G_1 and G_2:

    C  = -log(Fbar[y] + 1e-10)
    xi = Phi^-1(G_1) - Phi^-1(G_2)
    Rb = (sigma / 2) (gamma - xi)   if argmax G = y and xi is finite and |xi| <= gamma, else 0
    L  = mean over images of C + lam Rb

The soft radius is sigma xi / 2, so that an image stops to count beyond gamma sigma / 2. For other laws, xi times a unit
is the law's own radius, :mod:`lightning_rs.classifiers.soft_radius`. Images whose G_1 rounds to 1 have no finite xi and
drop out, by design; they are left out before Phi^-1, because its infinite derivative would make NaN of a masked zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_rs.checks import check_at_least, check_nonnegative, check_positive
from lightning_rs.classifiers.copies import NoisyCopies
from lightning_rs.classifiers.soft_radius import SoftRadius, gaussian_score, soft_radius


def macer_loss(
    logits: Float[Tensor, "copies B C"],
    labels: Int64[Tensor, " B"],
    sigma: float,
    lam: float,
    gamma: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Return the loss above for Gaussian noise, the mean over images: a scalar.

    Args:
        logits: (copies, images, classes), float32 or float64.
        labels: (images,).
        sigma: standard deviation of the noise.
        lam: weight of the robustness term Rb.
        gamma: margin, in units of xi.
        beta: inverse temperature of the robustness term.
    """
    law = SoftRadius(0.5 * sigma, gaussian_score, math.inf)
    return (soft_cross_entropy(logits, labels) + lam * robustness_loss(logits, labels, law, gamma, beta)).mean()


def soft_cross_entropy(logits: Float[Tensor, "copies B C"], labels: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return -log(Fbar[y] + 1e-10), (images,): the cross-entropy of the soft smoothed classifier."""
    chosen = labels[None, :, None].expand(len(logits), -1, 1)
    log_mean = logits.log_softmax(-1).gather(-1, chosen)[..., 0].logsumexp(0) - math.log(len(logits))
    return -torch.logaddexp(log_mean, log_mean.new_tensor(math.log(1e-10)))


def robustness_loss(logits: Tensor, labels: Tensor, law: SoftRadius, gamma: float, beta: float) -> Tensor:
    """Return Rb, (images,), under a law's soft radius."""
    gamma = min(gamma, law.most)
    mean = (beta * logits).softmax(-1).mean(0)
    top, where = mean.topk(2, dim=-1)
    loss = logits.new_zeros(len(labels))
    rows = ((where[:, 0] == labels) & (top[:, 0] < 1) & (top[:, 1] > 0)).nonzero()[:, 0]
    xi = law.score(top[rows, 0]) - law.score(top[rows, 1])
    near = (xi.detach().abs() <= gamma).nonzero()[:, 0]
    return loss.index_put((rows[near],), law.unit * (gamma - xi[near]))


class MACER(NoisyCopies):
    """Attack-free training of the certified radius itself (Zhai et al. 2020).

    Every noise that has a certificate. Cost: m forward and m backward passes an image, 16 by default. Settings: m = 16,
    beta = 16, gamma = 8; lam = 16, 16, 6 on MNIST at sigma 0.25, 0.5, 1, the robustness term only from the first drop
    of the learning rate on (Jeong and Shin's runs, epoch 31 of 90: ``start_epoch``); CIFAR-10 lam = 12, 4, 12. Batches
    are not cut for the copies: 256 images (64 in the authors' repository) are one step of 16 times as many rows.

    On a trained network the robustness term needs a small rate (published: 0.001 when it sets in) or a clipped
    gradient: only a tenth of the images have a finite xi, and their gradient is steep.

    Args:
        lam: weight of the robustness term.
        gamma: margin in units of xi; capped where a law's xi has a largest value.
        beta: inverse temperature of the robustness term.
        copies: number m of noisy copies.
        start_epoch: first epoch, counted from 0, with the robustness term.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for parameters out of range, or a noise without certificate.
    """

    def __init__(
        self,
        lam: float = 16.0,
        gamma: float = 8.0,
        beta: float = 16.0,
        copies: int = 16,
        start_epoch: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(copies=copies, **kwargs)
        self.lam = float(check_nonnegative("lam", lam))
        self.gamma = float(check_positive("gamma", gamma))
        self.beta = float(check_positive("beta", beta))
        self.start_epoch = check_at_least("start_epoch", start_epoch, 0)
        self._law = soft_radius(self.noise, self.shape)

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (copies, B, classes)."""
        logits = self.logits(images, self.draw(images, batch_idx))
        with self.float32():
            loss = soft_cross_entropy(logits, labels)
            if self.current_epoch >= self.start_epoch and self.lam > 0:
                loss = loss + self.lam * robustness_loss(logits, labels, self._law, self.gamma, self.beta)
            return loss.mean(), logits
