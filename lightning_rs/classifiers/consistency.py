r"""Consistency regularisation (Jeong and Shin 2020).

With logits z_i of m noisy copies, F_i = softmax(z_i) and their mean Fbar:

    L = mean_i CE(z_i, y) + lam mean_i KL(Fbar || F_i) + eta H(Fbar)

The mean is not detached: gradients go through it, too. KL(Fbar || F_i) is not the Jensen-Shannon term KL(F_i || Fbar);
mean_i KL(Fbar || F_i) + H(Fbar) is the mean cross-entropy of the F_i to the soft label Fbar.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_rs.checks import check_nonnegative
from lightning_rs.classifiers.copies import NoisyCopies


def consistency_loss(
    logits: Float[Tensor, "copies B C"], labels: Int64[Tensor, " B"], lam: float, eta: float
) -> Float[Tensor, ""]:
    """Return the loss above, the mean over images: a scalar.

    Args:
        logits: (copies, images, classes), copies >= 1; with one copy the lam term is zero.
        labels: (images,).
        lam: weight of the KL term.
        eta: weight of the entropy of the mean.
    """
    log_f = logits.log_softmax(-1)
    log_mean = log_f.logsumexp(0) - math.log(len(logits))
    mean = log_mean.exp()
    cross_entropy = nn.functional.nll_loss(log_f.flatten(0, 1), labels.repeat(len(logits)))
    entropy = -(mean * log_mean).sum(-1)
    # mean_i KL(Fbar || F_i) = sum_c Fbar_c (log Fbar_c - mean_i log F_ic)
    divergence = (mean * (log_mean - log_f.mean(0))).sum(-1)
    return cross_entropy + (lam * divergence + eta * entropy).mean()


class Consistency(NoisyCopies):
    """Consistency regularisation (Jeong and Shin 2020): noisy copies of an image should be classified alike.

    Any noise. Cost: m forward and m backward passes an image. The paper's settings: MNIST m = 2, lam = 10, 5, 5 at
    sigma 0.25, 0.5, 1; CIFAR-10 lam = 20, 10, 10 (ResNet-110); eta = 0.5 always. Batches: see
    :mod:`lightning_rs.classifiers.copies`.

    Args:
        lam: weight of KL(mean || copy).
        eta: weight of the entropy of the mean.
        copies: number m >= 2 of noisy copies.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for negative weights or fewer than 2 copies.
    """

    least_copies = 2

    def __init__(self, lam: float = 5.0, eta: float = 0.5, copies: int = 2, **kwargs: Any) -> None:
        super().__init__(copies=copies, **kwargs)
        self.lam = float(check_nonnegative("lam", lam))
        self.eta = float(check_nonnegative("eta", eta))

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (copies, B, classes)."""
        logits = self.logits(images, self.draw(images, batch_idx))
        with self.float32():
            return consistency_loss(logits, labels, self.lam, self.eta), logits
