"""What an attack on the smoothed classifier maximises, and estimates of its gradient (Salman et al. 2019, App. A)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import NormPowerFamily
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.smoothed import SmoothedClassifier

# Rows that go through the network at once where copies are put on the faces of the cube.
_ROWS = 4096


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

    A uniform law has no such score: inside the cube its density is constant, and the whole derivative lies on the
    faces. With ``E h(x + e) = (2 lam)^-d`` times the integral of h over the cube around x, it is
    ``d/dx_i E h = (E[h | e_i = lam] - E[h | e_i = -lam]) / (2 lam)``: each copy is put on both faces of its share of
    the coordinates, two forward passes for each coordinate, once around all of them or for every copy, whichever is
    more. Splitting noise gets an error: its law is not even continuous in x.
    """

    needs_gradient = False

    def value(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the share of copies that vote for another class."""
        return (scores.argmax(2) != classes).float().mean(0)

    @torch.no_grad()
    def gradient(self, smoothed: SmoothedClassifier, images: Tensor, classes: Tensor) -> Tensor:
        """Return the mean of score times vote over pairs.

        Raises:
            ValueError: for a law without a density that is differentiable, the uniform one excepted.
        """
        noise = smoothed.noise
        if isinstance(noise, UniformNoise):
            return self._on_faces(smoothed, noise.lam, images, classes)
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
                f"noise of the objective Reinforce must be Gaussian, Laplace, uniform or a power of norms, because the "
                f"votes must have a derivative that its density gives, got {noise!r}; lightning_rs.attacks.VoteSearch "
                "works for every noise"
            )
        wrong = [_wrong(smoothed, images, classes, v) for v in (e, -e)]
        return (wrong[0] - wrong[1]).T @ score / (2 * len(e))

    def _on_faces(self, smoothed: SmoothedClassifier, lam: float, images: Tensor, classes: Tensor) -> Tensor:
        """Return the differences of votes between opposite faces of the cube, (B, d); unbiased."""
        e = smoothed.variates(images[0].numel(), images.device)
        copies, dim = e.shape
        pairs = torch.arange(max(copies, dim), device=e.device)
        copy, coordinate = pairs % copies, pairs % dim
        total, seen = torch.zeros(len(images), dim, device=e.device), torch.bincount(coordinate, minlength=dim)
        for part in pairs.split(max(1, _ROWS // len(images))):
            moved, at = e[copy[part]], coordinate[part]
            place = torch.arange(len(part), device=e.device)
            ends = []
            for end in (lam, -lam):
                moved[place, at] = end
                ends.append(_wrong(smoothed, images, classes, moved))
            total.index_add_(1, at, (ends[0] - ends[1]).T)
        return total / (2 * lam * seen)


def _wrong(smoothed: SmoothedClassifier, images: Tensor, classes: Tensor, variates: Tensor) -> Tensor:
    """Return which copies vote for another class, 0 or 1, (m, B)."""
    return (smoothed.copy_logits(images, variates).argmax(2) != classes).float()


def _log_vote(scores: Tensor) -> Tensor:
    return torch.logsumexp(torch.log_softmax(scores, 2), 0) - math.log(len(scores))
