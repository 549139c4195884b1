"""Gradient attacks on the soft vote: projected gradient ascent in every norm, and decoupled direction and norm."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lightning_rs.attacks.base import Attack, check_steps
from lightning_rs.attacks.geometry import Geometry
from lightning_rs.attacks.objectives import Margin, Objective, PlugIn
from lightning_rs.checks import check_at_least, check_positive
from lightning_rs.smoothed import SmoothedClassifier

# Step size in units of eps / steps: Salman et al. for l2; an l1 step must reach single pixels, a sign step the corners.
_RATE = {"l1": 6.0, "l2": 2.0, "linf": 2.5}
_MOMENTUM = 0.75


class PGD(Attack):
    """Projected gradient ascent (Madry et al. 2018) on the soft vote (Salman et al. 2019).

    The first two thirds of the steps see one noise (fast progress that overfits it), the last third a fresh one at each
    step with momentum .75. With several restarts the point with the largest objective on fresh noise is kept: the first
    starts at the image (or at ``start``), further ones at random points of the ball.

    Args:
        steps: number T of steps.
        restarts: number of runs.
        objective: :class:`Margin`, :class:`PlugIn` or :class:`Reinforce`.
        rate: step size in units of eps / steps; None: 2 for l2, 2.5 for l-infinity, 6 for l1.

    Raises:
        ValueError: for steps or restarts < 1, or a rate that is not positive.
    """

    def __init__(
        self, steps: int = 20, restarts: int = 1, objective: Objective | None = None, rate: float | None = None
    ) -> None:
        self.steps = check_steps(steps)
        self.restarts = check_at_least("restarts", restarts, 1)
        self.objective = objective or Margin()
        self.rate = None if rate is None else float(check_positive("rate", rate))

    def _run(
        self,
        smoothed: SmoothedClassifier,
        images: Tensor,
        classes: Tensor,
        eps: Tensor,
        geometry: Geometry,
        generator: torch.Generator,
        start: Tensor | None,
    ) -> Tensor:
        x = images.flatten(1)
        best, score = x, torch.full_like(x[:, 0], -torch.inf)
        for number in range(self.restarts):
            first = x if start is None else geometry.project(x + start, x, eps)
            begin = first if number == 0 else geometry.random(x, eps * torch.rand((), generator=generator), generator)
            found = self._ascend(smoothed, images, classes, eps, geometry, begin)
            if self.restarts == 1:
                return found
            reached = self._score(smoothed, found.view(images.shape), classes)
            best = torch.where((reached > score)[:, None], found, best)
            score = torch.maximum(score, reached)
        return best

    def _ascend(
        self, smoothed: SmoothedClassifier, images: Tensor, classes: Tensor, eps: Tensor, geometry: Geometry, z: Tensor
    ) -> Tensor:
        x = images.flatten(1)
        size = eps * (self.rate or _RATE[geometry.norm]) / self.steps
        smoothed.renew()
        velocity = torch.zeros_like(x)
        for step in range(self.steps):
            fresh = step >= math.ceil(self.steps * 2 / 3)
            if fresh:
                smoothed.renew()
            uphill = self.objective.gradient(smoothed, z.view(images.shape), classes)
            uphill = uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-30)
            velocity = _MOMENTUM * velocity + uphill if fresh else uphill
            # A fifth of the step at the end: a full one would only circle around the maximum.
            shrink = 1.0 if geometry.norm != "l1" else 1.0 - 0.8 * step / self.steps
            z = geometry.project(geometry.step(z, x, velocity, size * shrink), x, eps)
        return z

    @torch.no_grad()
    def _score(self, smoothed: SmoothedClassifier, images: Tensor, classes: Tensor) -> Tensor:
        smoothed.renew()
        return self.objective.value(smoothed.temperature * smoothed.copy_logits(images), classes)


class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019) on the soft vote: short l2 perturbations without a given radius.

    Unit gradient steps whose rate falls from 1 to .01 along a cosine; the norm shrinks by gamma where clearly more than
    half of the copies are wrong and grows by it elsewhere. The shortest such perturbation is kept, or the last one.

    Args:
        steps: number T of steps.
        gamma: relative change of the norm, in (0, 1).

    Raises:
        ValueError: for steps < 1, or gamma that is not positive.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(self, steps: int = 40, gamma: float = 0.05) -> None:
        self.steps = check_steps(steps)
        self.gamma = float(check_positive("gamma", gamma))

    def _run(
        self,
        smoothed: SmoothedClassifier,
        images: Tensor,
        classes: Tensor,
        eps: Tensor,
        geometry: Geometry,
        generator: torch.Generator,
        start: Tensor | None,
    ) -> Tensor:
        x = images.flatten(1)
        norm = eps.to(x) * 0.5
        move = torch.zeros_like(x) if start is None else geometry.within(start)
        best, shortest = move, torch.full_like(norm, torch.inf)
        objective, z = PlugIn(), geometry.project(x + move, x, norm)
        for step in range(self.steps):
            smoothed.renew()
            with torch.no_grad():
                votes = smoothed.copy_logits(z.view(images.shape)).argmax(2)
            # Two standard deviations more than half: the shortest of many steps is otherwise a lucky one.
            wrong = (votes != classes).float().mean(0) > 0.5 + 1 / math.sqrt(max(len(votes), 16))
            length = (z - x).norm(dim=1)
            better = wrong & (length < shortest)
            best = torch.where(better[:, None], z - x, best)
            shortest = torch.where(better, length, shortest)
            uphill = geometry.within(objective.gradient(smoothed, z.view(images.shape), classes))
            rate = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            move = move + rate * uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-30)
            norm = torch.minimum(norm * torch.where(wrong, 1 - self.gamma, 1 + self.gamma), eps.to(x))
            move = move * norm[:, None] / move.norm(dim=1, keepdim=True).clamp(min=1e-30)
            z = geometry.project(x + move, x, norm)
            move = z - x
        return x + torch.where(torch.isfinite(shortest)[:, None], best, move)
