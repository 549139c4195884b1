"""What an attack on the smoothed classifier maximises, and estimates of its gradient (Salman et al. 2019, App. A)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import NormPowerFamily
from lightning_rs.smoothed import SmoothedClassifier


class Objective(ABC):
    """A function of the image that grows toward a wrong smoothed prediction."""

    needs_gradient = True

    @abstractmethod
    def value(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the objective, (B,), from logits (m, B, C) of the copies and the classes to leave, (B,)."""

    def gradient(self, smoothed: SmoothedClassifier, images: Tensor, classes: Tensor) -> Tensor:
        """Return an estimate of the gradient in the images, flat, (B, d).

        Raises:
            ValueError: if the network has no gradient.
        """
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            total = self.value(smoothed.temperature * smoothed.copy_logits(x), classes).sum()
            (found,) = torch.autograd.grad(total, x, allow_unused=True) if total.requires_grad else (None,)
        if found is None:
            raise ValueError(
                "the network must have a gradient in its input for a gradient attack; without one use "
                "lightning_rs.attacks.VoteSearch, or PGD with the objective lightning_rs.attacks.Reinforce"
            )
        return torch.nan_to_num(found.flatten(1))


class PlugIn(Objective):
    """``-log (1/m) sum_i softmax(z_i)[y]``, the plug-in estimate of the soft vote's cross-entropy (SmoothAdv)."""

    def value(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the cross-entropy of the mean probability."""
        return -_log_vote(scores).gather(1, classes[:, None])[:, 0]


class Margin(Objective):
    """``max_{c != y} log F[c] - log F[y]`` of the mean probability F: positive where the soft vote is wrong."""

    def value(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the margin by which another class leads."""
        vote = _log_vote(scores)
        own = vote.gather(1, classes[:, None])[:, 0]
        return vote.scatter(1, classes[:, None], -torch.inf).amax(1) - own


class Reinforce(Objective):
    """The share of hard votes against y, with the gradient from votes alone (REINFORCE, antithetic pairs).

    ``grad E h(x + e) = E[-grad log density(e) h(x + e)]`` needs no gradient of the network: Gaussian noise gives
    ``e / sigma^2``, Laplace noise ``sign(e) / b``, powers of norms the derivative of their density. Each copy is paired
    with its mirror image.
    """

    needs_gradient = False

    def value(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the share of copies that vote for another class."""
        return (scores.argmax(2) != classes).float().mean(0)

    @torch.no_grad()
    def gradient(self, smoothed: SmoothedClassifier, images: Tensor, classes: Tensor) -> Tensor:
        """Return the mean of score times vote over pairs.

        Raises:
            ValueError: for a law without a density that is differentiable.
        """
        noise = smoothed.noise
        e = smoothed.variates(images[0].numel(), images.device)
        if isinstance(noise, GaussianNoise):
            score = e / noise.sigma**2
        elif isinstance(noise, LaplaceNoise):
            score = e.sign() / noise.scale
        elif isinstance(noise, NormPowerFamily):
            with torch.enable_grad():
                z = e.double().requires_grad_()
                score = -torch.autograd.grad(noise.log_density(z).sum(), z)[0].to(e)
        else:
            raise ValueError(
                f"noise of the objective Reinforce must be Gaussian, Laplace or a power of norms, got {noise!r}; "
                "lightning_rs.attacks.VoteSearch works for every noise"
            )
        wrong = [(smoothed.copy_logits(images, v).argmax(2) != classes).float() for v in (e, -e)]
        return (wrong[0] - wrong[1]).T @ score / (2 * len(e))


def _log_vote(scores: Tensor) -> Tensor:
    return torch.logsumexp(torch.log_softmax(scores, 2), 0) - math.log(len(scores))
