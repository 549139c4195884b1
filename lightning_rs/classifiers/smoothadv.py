r"""Adversarial training of the smoothed classifier (Salman et al. 2019), also with consistency (Jeong and Shin 2020).

With F_i = softmax of the logits of m noisy copies x' + e_i, the attack raises

    J(x') = -log( (1/m) sum_i F_i[y] )        over ||x' - x|| <= eps, x' in the box,

the plug-in estimate of -log E F[y], not the mean cross-entropy: copies that are classified right weigh more. The loss
is taken at the x' found and at the same noise, which is drawn once a step:

    L = mean_i CE(z(x' + e_i), y)   or, with lam > 0, the consistency loss at x' + e_i.

During the attack the network is in evaluation mode and its weights are fixed, so that BatchNorm sees the loss phase
only. Inside the ball and the box the attack is the one of :mod:`lightning_rs.classifiers.ascent`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_rs.checks import check_at_least, check_choice, check_nonnegative
from lightning_rs.classifiers.ascent import ascend, check_eps, norm_of, project
from lightning_rs.classifiers.consistency import consistency_loss
from lightning_rs.classifiers.copies import NoisyCopies
from lightning_rs.noise import GaussianNoise, NormPowerNoise

_DDN_GAMMA = 0.05


def smoothadv_objective(logits: Float[Tensor, "copies B C"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return J, the mean over images: a scalar.

    Computed as logsumexp over copies of log softmax, so that its gradient does not vanish where all copies are lost.

    Args:
        logits: (copies, images, classes).
        labels: (images,).
    """
    chosen = labels[None, :, None].expand(len(logits), -1, 1)
    log_p = logits.log_softmax(-1).gather(-1, chosen)[..., 0]
    return (math.log(len(logits)) - log_p.logsumexp(0)).mean()


class SmoothAdv(NoisyCopies):
    """Adversarial training of the smoothed classifier; with ``lam`` > 0, with the consistency loss.

    Any noise: the gradient of splitting noise is straight-through (see ``Noise.at``), the ball is that of the law's
    usual certificate. Cost: (steps + 1) m forward and backward passes an image, 44 with the defaults; with
    ``attack="score"`` only m backward passes. Settings: MNIST m = 4, 10 steps, eps 0.996, warm-up 10 epochs, lam 0
    or 1 with eta 0.5; CIFAR-10 eps 1, m 4 / eps 1, m 8 / eps 2, m 2 at sigma 0.25, 0.5, 1. Batches: see
    :mod:`lightning_rs.classifiers.copies`. Published flags give eps in 1/256: 255 is 0.996.

    Args:
        eps: radius of the attack, in pixel units, in the norm of the noise's usual certificate.
        steps: steps of the attack; 0 trains on the noise alone.
        copies: number m of noisy copies; at least 2 for lam > 0 and for "score".
        warmup: epochs over which eps grows linearly to its value.
        attack: "pgd" projected gradients; "ddn" decoupled direction and norm (Rony et al. 2019), which looks for the
            smallest adversarial change, for l2; "score" the gradient-free variant, REINFORCE on p_y, for laws whose
            score is radial (Gaussian and its norm-power relatives).
        lam: weight of the consistency term.
        eta: weight of the entropy of the mean, used with lam > 0.
        **kwargs: see :class:`lightning_rs.classifiers.BaseClassifier`.

    Raises:
        ValueError: for arguments out of range, eps beyond the diameter of the images, or a noise the attack cannot use.
    """

    def __init__(
        self,
        eps: float = 0.99609375,
        steps: int = 10,
        copies: int = 4,
        warmup: int = 10,
        attack: Literal["pgd", "ddn", "score"] = "pgd",
        lam: float = 0.0,
        eta: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(copies=copies, **kwargs)
        check_choice("attack", attack, ("pgd", "ddn", "score"))
        self.lam, self.eta = float(check_nonnegative("lam", lam)), float(check_nonnegative("eta", eta))
        if copies < 2 and (self.lam > 0 or attack == "score"):
            raise ValueError(f"copies must be >= 2 for lam > 0 and for attack 'score', got {copies}")
        self.steps, self.warmup = check_at_least("steps", steps, 0), check_at_least("warmup", warmup, 0)
        self.norm = norm_of(self.noise)
        self.eps = check_eps(eps, self.norm, math.prod(self.shape), self.domain)
        if attack == "ddn" and self.norm != "l2":
            raise ValueError(
                f"attack 'ddn' changes l2 norms and needs a noise with an l2 certificate, got {self.noise!r}"
            )
        if attack == "score" and not isinstance(self.noise, (GaussianNoise, NormPowerNoise)):
            raise ValueError(
                "attack 'score' takes the noise itself for the direction of its score, which is right for "
                f"GaussianNoise and NormPowerNoise only, got {self.noise!r}"
            )
        self.attack = attack

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of the network for one training image."""
        attack = self.steps * self.copies
        return attack + self.copies, self.copies + (0 if self.attack == "score" else attack)

    @property
    def eps_now(self) -> float:
        """The radius of the attack in this epoch."""
        return self.eps if self.warmup == 0 else min(self.eps, (self.current_epoch + 1) * self.eps / self.warmup)

    def loss(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the loss at the adversarial images and the logits (copies, B, classes)."""
        variates = self.draw(images, batch_idx)
        logits = self.logits(self.adversarial(images, labels, variates), variates)
        with self.float32():
            return consistency_loss(logits, labels, self.lam, self.eta if self.lam > 0 else 0.0), logits

    def adversarial(self, images: Tensor, labels: Tensor, variates: Tensor) -> Tensor:
        """Return images in the ball and the box, (B, *shape), that raise J at these variates (copies, B, d)."""

        def objective(point: Tensor) -> Tensor:
            logits = self.logits(point, variates)
            with self.float32():
                return smoothadv_objective(logits, labels) * len(labels)

        if self.steps == 0:
            return images
        with self.attacking():
            if self.attack == "ddn":
                return self._ddn(images, labels, variates)
            if self.attack == "score":
                return self._score(images, labels, variates)
            return ascend(objective, images, self.eps_now, self.steps, self.norm, self.domain).detach()

    @torch.no_grad()
    def _score(self, images: Tensor, labels: Tensor, variates: Tensor) -> Tensor:
        """Gradient-free: J falls along mean_i p_i e_i, the REINFORCE estimate of the gradient of p_y, up to scale."""
        point = images
        for _ in range(self.steps):
            p = self.logits(point, variates).softmax(-1)
            p = p.gather(-1, labels[None, :, None].expand(self.copies, -1, 1))
            uphill = -(p * variates).mean(0)
            length = torch.linalg.vector_norm(uphill, dim=1, keepdim=True).clamp(min=torch.finfo(uphill.dtype).tiny)
            step = (2.0 * self.eps_now / self.steps * uphill / length).view_as(images)
            point = project(point + step, images, self.eps_now, self.norm, self.domain)
        return point

    def _ddn(self, images: Tensor, labels: Tensor, variates: Tensor) -> Tensor:
        """Decoupled direction and norm: the smallest change found that fools the majority of copies, 0 if none was."""
        count, low_high = len(images), self.domain or (-math.inf, math.inf)
        room = torch.maximum((images - low_high[0]).abs(), (low_high[1] - images).abs()).flatten(1)
        most = torch.linalg.vector_norm(room, dim=1)
        norm = torch.minimum(torch.full_like(most, 1.0), most)
        delta, best = torch.zeros_like(images), torch.zeros_like(images)
        smallest = torch.full_like(most, math.inf)
        for step in range(self.steps):
            at = (images + delta).detach().requires_grad_(True)
            logits = self.logits(at, variates)
            with self.float32():
                (found,) = torch.autograd.grad(smoothadv_objective(logits, labels) * count, at)
            fooled = (logits.detach().argmax(-1) != labels).sum(0) * 2 > self.copies
            size = torch.linalg.vector_norm(delta.flatten(1), dim=1)
            better = fooled & (size < smallest)
            smallest, best = torch.where(better, size, smallest), torch.where(_wide(better, images), delta, best)
            rate = 0.01 + 0.495 * (1.0 + math.cos(math.pi * step / self.steps))
            norm = torch.minimum(norm * torch.where(fooled, 1.0 - _DDN_GAMMA, 1.0 + _DDN_GAMMA), most)
            delta = delta + rate * _unit(found)
            delta = _wide(norm, images) * _unit(delta)
            if self.grid is not None:
                delta = (delta * self.grid).round() / self.grid
            if self.domain is not None:
                delta = (images + delta).clamp(*self.domain) - images
        return project(images + best, images, self.eps_now, "l2", self.domain).detach()


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows.flatten(1), dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
    return rows / _wide(length, rows)


def _wide(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (like.ndim - 1))
