"""The interface of every attack: images, classes and radii in, points of the threat set out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lightning_rs.attacks.geometry import NORMS, Geometry
from lightning_rs.checks import check_at_least
from lightning_rs.smoothed import SmoothedClassifier


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
        start: Tensor | None = None,
    ) -> Tensor:
        """Return one point an image, (B, *shape), inside the ball, the box, the grid and the subspace.

        Args:
            smoothed: the victim; its noise is renewed.
            images: (B, *shape).
            classes: classes to leave, (B,).
            eps: radii of the balls, (B,).
            geometry: norm, box, grid and subspace.
            seed: of the attack's own randomness.
            start: directions to start from, flat, (B, d), instead of the images.

        Raises:
            ValueError: for a norm that this attack cannot search, or a network without gradient.
        """
        if geometry.norm not in self.norms:
            raise ValueError(f"{type(self).__name__} attacks in {', '.join(self.norms)}, got norm {geometry.norm!r}")
        generator = torch.Generator(device=images.device).manual_seed(seed % 2**31)
        found = self._run(smoothed, images, classes, eps, geometry, generator, start)
        x = images.flatten(1)
        return geometry.limited(found.detach().flatten(1).to(x), x, eps).view(images.shape)

    @abstractmethod
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
