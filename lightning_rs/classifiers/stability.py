"""Stability training (Li et al. 2019), and its form for l1 noises (Yang et al. 2020; Voracek 2023).

    "clean":  CE(z(x), y) + lam CE_soft(F(x) -> F(x + e)),   CE_soft(t -> s) = -sum_c t_c log s_c
    "pair":   CE(z(x + e_1), y) + CE(z(x + e_2), y) + lam KL(F(x + e_1) || F(x + e_2))

In the first, labels are asked of the clean image only and the noisy copy sees the soft target. Nothing is detached.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_rs.checks import check_choice, check_nonnegative
from lightning_rs.classifiers.copies import NoisyCopies


def stability_loss(
    clean: Float[Tensor, "B C"], noisy: Float[Tensor, "B C"], labels: Int64[Tensor, " B"], lam: float
) -> Float[Tensor, ""]:
    """Return the "clean" form, the mean over images, for logits (images, classes) of clean images and noisy copies."""
    soft = -(clean.softmax(-1) * noisy.log_softmax(-1)).sum(-1)
    return nn.functional.cross_entropy(clean, labels) + lam * soft.mean()


def stability_pair_loss(logits: Float[Tensor, "2 B C"], labels: Int64[Tensor, " B"], lam: float) -> Float[Tensor, ""]:
    """Return the "pair" form, the mean over images, for logits (2, images, classes) of two noisy copies."""
    log_one, log_other = logits.log_softmax(-1)
    divergence = (log_one.exp() * (log_one - log_other)).sum(-1)
    cross_entropy = nn.functional.nll_loss(log_one, labels) + nn.functional.nll_loss(log_other, labels)
    return cross_entropy + lam * divergence.mean()


class Stability(NoisyCopies):
    """Stability training: a noisy copy should be classified as its image ("clean"), or as another copy ("pair").

    Any noise. Cost: 2 forward and 2 backward passes an image. The settings of the comparison tables: "clean" with
    lam = 2 on MNIST and, at sigma 0.25 and 0.5, on CIFAR-10, 1 there at sigma 1; "pair" with lam = 12 for l1 noises. In
    "clean" BatchNorm sees clean and noisy images in turn, as in the published code; on CIFAR-10 it is weaker than
    plain noise augmentation.

    Args:
        lam: weight of the second term.
        form: "clean" or "pair", as above.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for a negative weight or an unknown form.
    """

    def __init__(self, lam: float = 2.0, form: Literal["clean", "pair"] = "clean", **kwargs: Any) -> None:
        check_choice("form", form, ("clean", "pair"))
        super().__init__(copies=1 if form == "clean" else 2, **kwargs)
        self.lam = float(check_nonnegative("lam", lam))
        self.form = form

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        return 2, 2

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (copies, B, classes) of the noisy copies."""
        variates = self.draw(images, batch_idx)
        clean = self(images).float() if self.form == "clean" else None
        logits = self.logits(images, variates)
        with self.float32():
            if clean is not None:
                return stability_loss(clean, logits[0], labels, self.lam), logits
            return stability_pair_loss(logits, labels, self.lam), logits
