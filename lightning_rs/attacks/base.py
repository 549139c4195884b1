"""The interface of every attack: images, classes and radii in, points of the threat set out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lightning_rs.attacks.geometry import NORMS, Geometry
from lightning_rs.checks import check_at_least
from lightning_rs.smoothed import SmoothedClassifier


@dataclass(frozen=True)
class Aim:
    """What an attack is asked: to leave a class inside a ball, for each image of a batch.

    Attributes:
        images: (B, *shape).
        classes: classes to leave, (B,).
        eps: radii of the balls, (B,).
        geometry: norm, box, grid and subspace.
        generator: the attack's own randomness.
        uphill: directions along which something else saw the classes lose, flat, (B, d); None if nothing did.
    """

    images: Tensor
    classes: Tensor
    eps: Tensor
    geometry: Geometry
    generator: torch.Generator
    uphill: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The images as flat rows, (B, d)."""
        return self.images.flatten(1)

    def shaped(self, z: Tensor) -> Tensor:
        """Return flat rows in the shape of the images."""
        return z.view(self.images.shape)

    def project(self, z: Tensor, size: float = 1.0) -> Tensor:
        """Return flat rows put into the balls, ``size`` times as large, and the box."""
        return self.geometry.project(z, self.x, size * self.eps)

    def random(self) -> Tensor:
        """Return a random point of each ball, flat, at a distance that is uniform in [0, eps]."""
        share = torch.rand((), generator=self.generator, device=self.generator.device)
        return self.geometry.random(self.x, self.eps * share, self.generator)

    def directed(self) -> Tensor | None:
        """Return the points of the balls furthest along :attr:`uphill`, flat, or None."""
        return None if self.uphill is None else self.geometry.furthest(self.x, self.uphill, self.eps)


class Attack(ABC):
    """Looks for points of a ball at which the smoothed classifier leaves a class.

    Nothing that an attack returns is believed: points are put back into the threat set, and a success is confirmed by
    votes on noise that the attack never saw. A subclass implements :meth:`_run`.

    Attributes:
        norms: norms of the balls that it can search.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS

    @final
    def __call__(
        self,
        smoothed: SmoothedClassifier,
        images: Tensor,
        classes: Tensor,
        eps: Tensor,
        geometry: Geometry,
        seed: int = 0,
        uphill: Tensor | None = None,
    ) -> Tensor:
        """Return one point an image, (B, *shape), inside the ball, the box, the grid and the subspace.

        Args:
            smoothed: the victim; its noise is renewed.
            images: (B, *shape).
            classes: classes to leave, (B,).
            eps: radii of the balls, (B,).
            geometry: norm, box, grid and subspace.
            seed: of the attack's own randomness.
            uphill: directions to begin with as well, flat, (B, d), for instance from gradient evidence.

        Raises:
            ValueError: for a norm that this attack cannot search, or a network without gradient.
        """
        if geometry.norm not in self.norms:
            raise ValueError(f"{type(self).__name__} attacks in {', '.join(self.norms)}, got norm {geometry.norm!r}")
        generator = torch.Generator(device=images.device).manual_seed(seed % 2**31)
        aim = Aim(images, classes, eps, geometry, generator, uphill)
        found = self._run(smoothed, aim).detach().flatten(1)
        return aim.shaped(geometry.limited(found.to(aim.x), aim.x, eps))

    @abstractmethod
    def _run(self, smoothed: SmoothedClassifier, aim: Aim) -> Tensor:
        """Return candidates, flat or shaped; they need not lie on the grid or exactly in the ball."""

    def describe(self) -> dict[str, Any]:
        """Return class and parameters as plain values, for the record."""
        own = {name: _plain(value) for name, value in vars(self).items() if not name.startswith("_")}
        return {"class": type(self).__name__, **own}


def check_steps(steps: int) -> int:
    """Return the number of steps; raise ``ValueError`` below 1."""
    return check_at_least("steps", steps, 1)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None), list, dict)) else type(value).__name__
