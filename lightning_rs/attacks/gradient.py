"""Gradient attacks on the soft vote: projected ascent in every norm, its l1 form, and decoupled direction and norm."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_rs.attacks.base import Aim, Attack, check_steps
from lightning_rs.attacks.objectives import Margin, Objective, PlugIn
from lightning_rs.checks import check_at_least, check_positive
from lightning_rs.smoothed import SmoothedClassifier

# Step size in units of eps / steps: Salman et al. for l2; an l1 step must reach single pixels, a sign step the corners.
_RATE = {"l1": 6.0, "l2": 2.0, "linf": 2.5}
_MOMENTUM = 0.75
# l1-APGD: multiples of eps and the shares of the steps that they get; share of the coordinates that the first step
# moves; how much the number of moved coordinates may fall before the step is as long as the radius again.
_PHASES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
_FIRST_SHARE, _SPARSER, _STABLE = 0.2, 1.5, 0.95


class Ascent(Attack):
    """Runs of one ascent: from the image, from where gradient evidence points if there is any, from random points.

    Of several runs the point with the largest objective on fresh noise is kept.

    Args:
        steps: number T of steps.
        restarts: number of runs beside the one from gradient evidence.
        objective: :class:`Margin`, :class:`PlugIn` or :class:`Reinforce`; None: the margin.

    Raises:
        ValueError: for steps or restarts < 1.
    """

    def __init__(self, steps: int, restarts: int, objective: Objective | None) -> None:
        self.steps = check_steps(steps)
        self.restarts = check_at_least("restarts", restarts, 1)
        self.objective = objective or Margin()

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        directed = aim.directed()
        begins = [aim.x, *([] if directed is None else [directed])]
        begins += [aim.random() for _ in range(self.restarts - 1)]
        found = torch.stack([self._ascend(smoothed, aim, z) for z in begins])
        if len(found) == 1:
            return found[0]
        smoothed.renew()
        scores = torch.stack([self._value(smoothed, aim, z) for z in found])
        return found[scores.argmax(0), torch.arange(found.shape[1], device=found.device)]

    @abstractmethod
    def _ascend(self, smoothed: SmoothedClassifier, aim: Aim, z: Tensor) -> Tensor:
        """Return where one run from z ends, flat."""

    @torch.no_grad()
    def _value(self, smoothed: SmoothedClassifier, aim: Aim, z: Tensor) -> Tensor:
        return self.objective.value(smoothed.temperature * smoothed.copy_logits(aim.shaped(z)), aim.classes)


class PGD(Ascent):
    """Projected gradient ascent (Madry et al. 2018) on the soft vote (Salman et al. 2019).

    The first two thirds of the steps see one noise (fast progress that overfits it), the last third a fresh one at each
    step with momentum .75.

    Args:
        steps: number T of steps.
        restarts: number of runs beside the one from gradient evidence; see :class:`Ascent`.
        objective: :class:`Margin`, :class:`PlugIn` or :class:`Reinforce`.
        rate: step size in units of eps / steps; None: 2 for l2, 2.5 for l-infinity, 6 for l1.

    Raises:
        ValueError: for steps or restarts < 1, or a rate that is not positive.
    """

    def __init__(
        self, steps: int = 20, restarts: int = 1, objective: Objective | None = None, rate: float | None = None
    ) -> None:
        super().__init__(steps, restarts, objective)
        self.rate = None if rate is None else float(check_positive("rate", rate))

    def _ascend(self, smoothed: SmoothedClassifier, aim: Aim, z: Tensor) -> Tensor:
        geometry, size = aim.geometry, aim.eps * (self.rate or _RATE[aim.geometry.norm]) / self.steps
        smoothed.renew()
        velocity = torch.zeros_like(z)
        for step in range(self.steps):
            fresh = step >= math.ceil(self.steps * 2 / 3)
            if fresh:
                smoothed.renew()
            uphill = self.objective.gradient(smoothed, aim.shaped(z), aim.classes)
            uphill = uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-30)
            velocity = _MOMENTUM * velocity + uphill if fresh else uphill
            # A fifth of the step at the end: a full one would only circle around the maximum.
            shrink = 1.0 if geometry.norm != "l1" else 1.0 - 0.8 * step / self.steps
            z = aim.project(geometry.step(z, aim.x, velocity, size * shrink))
        return z


class L1APGD(Ascent):
    """l1-APGD (Croce and Hein 2021) on the soft vote: sparse steps whose length and sparsity adapt to the progress.

    Three phases search balls of 3, 2 and 1 times the radius, each from the best point of the one before. A step moves
    the k coordinates with the largest gradient that have room left by equal amounts, then projects onto ball and box.
    At checkpoints k becomes the number of coordinates that the best point changes, over 1.5; where that number is
    stable the step is shortened by 1.5, down to a tenth of the radius, else it is as long as the radius again. A phase
    sees one noise, the next a fresh one.

    Args:
        steps: number T of steps, of all phases together.
        restarts: number of runs beside the one from gradient evidence; see :class:`Ascent`.
        objective: as for :class:`PGD`.

    Raises:
        ValueError: for steps or restarts < 1.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1",)

    def __init__(self, steps: int = 30, restarts: int = 1, objective: Objective | None = None) -> None:
        super().__init__(steps, restarts, objective)

    def _ascend(self, smoothed: SmoothedClassifier, aim: Aim, z: Tensor) -> Tensor:
        for size, share in _PHASES:
            z = self._phase(smoothed, aim, z, size, max(1, round(share * self.steps)))
        return z

    def _phase(self, smoothed: SmoothedClassifier, aim: Aim, z: Tensor, size: float, steps: int) -> Tensor:
        x, radius = aim.x, size * aim.eps.to(aim.x)
        smoothed.renew()
        z = best = aim.project(z, size)
        high = self._value(smoothed, aim, z)
        count = torch.full_like(radius, _FIRST_SHARE * x.shape[1])
        length, checkpoint = radius.clone(), max(1, steps // 5)
        for step in range(1, steps + 1):
            uphill = self.objective.gradient(smoothed, aim.shaped(z), aim.classes)
            z = aim.project(aim.geometry.step(z, x, uphill, length, count), size)
            value = self._value(smoothed, aim, z)
            better = value > high
            best, high = torch.where(better[:, None], z, best), torch.maximum(value, high)
            if step % checkpoint == 0:
                sparser = ((best - x).abs() > 1e-6).sum(1).to(count) / _SPARSER
                stable = sparser >= _STABLE * count
                length = torch.where(stable, torch.maximum(length / 1.5, radius / 10), radius)
                count, z = sparser.clamp(min=1.0), best
        return best


class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019) on the soft vote: short l2 perturbations without a given radius.

    Unit gradient steps whose rate falls from 1 to .01 along a cosine; the norm shrinks by gamma where clearly more than
    half of the copies are wrong and grows by it elsewhere. The shortest such perturbation is kept, or the last one.

    Args:
        steps: number T of steps.
        gamma: relative change of the norm, in (0, 1).

    Raises:
        ValueError: for steps < 1, or gamma outside (0, 1).
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(self, steps: int = 40, gamma: float = 0.05) -> None:
        self.steps = check_steps(steps)
        self.gamma = float(check_positive("gamma", gamma))
        if self.gamma >= 1:
            raise ValueError(f"gamma must lie in (0, 1), got {gamma!r}")

    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        x, classes, radius = aim.x, aim.classes, aim.eps.to(aim.x)
        norm = radius * 0.5
        directed = aim.directed()
        z = aim.geometry.project(x if directed is None else directed, x, norm)
        move = best = z - x
        shortest = torch.full_like(norm, torch.inf)
        objective = PlugIn()
        for step in range(self.steps):
            smoothed.renew()
            with torch.no_grad():
                votes = smoothed.copy_logits(aim.shaped(z)).argmax(2)
            # Two standard deviations more than half: the shortest of many steps is otherwise a lucky one.
            wrong = (votes != classes).float().mean(0) > 0.5 + 1 / math.sqrt(max(len(votes), 16))
            length = (z - x).norm(dim=1)
            better = wrong & (length < shortest)
            best = torch.where(better[:, None], z - x, best)
            shortest = torch.where(better, length, shortest)
            uphill = aim.geometry.within(objective.gradient(smoothed, aim.shaped(z), classes))
            rate = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            move = move + rate * uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-30)
            norm = torch.minimum(norm * torch.where(wrong, 1 - self.gamma, 1 + self.gamma), radius)
            move = move * norm[:, None] / move.norm(dim=1, keepdim=True).clamp(min=1e-30)
            z = aim.geometry.project(x + move, x, norm)
            move = z - x
        return x + torch.where(torch.isfinite(shortest)[:, None], best, move)
