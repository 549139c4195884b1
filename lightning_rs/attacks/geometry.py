"""Where an attack may go: a norm ball, cut with the box, the pixel grid and a subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_rs.checks import check_choice
from lightning_rs.noise.base import Domain
from lightning_rs.numerics.projections import project_l1
from lightning_rs.numerics.regions import region_mask
from lightning_rs.records.units import counts_pixels

NORMS = ("l1", "l2", "linf")
# How much shorter a perturbation is made when rounding to the grid would leave the ball.
_SHRINK = (1.0, 0.99, 0.97, 0.93, 0.85)


@dataclass(frozen=True)
class Geometry:
    """The threat set of a certificate. Points are flat rows, (m, d); radii, (m,), in input units.

    Attributes:
        norm: "l1", "l2" or "linf".
        domain: interval of the inputs, None for R^d.
        grid: number q of steps if inputs are multiples of 1/q.
        mask: which coordinates may change, (d,); None: all.
        basis: orthonormal rows that span the perturbations, (k, d); None: all of R^d.
    """

    norm: str
    domain: Domain = None
    grid: int | None = None
    mask: Tensor | None = None
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what no attack can do."""
        check_choice("norm", self.norm, NORMS)
        if self.basis is not None and self.grid is not None:
            raise ValueError(f"grid must be None for a subspace that is not made of coordinates, got {self.grid}")

    @classmethod
    def of_certificate(
        cls,
        norm: str,
        shape: tuple[int, ...],
        domain: Domain,
        grid: int | None,
        vectors: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> Geometry:
        """Return the threat set of a certificate.

        Args:
            norm: as records name it: "l2", "l2:red", "linf:top", "l2:subspace-0123abcd".
            shape: shape of one input.
            domain: interval of the inputs, or None.
            grid: number q of steps if inputs are multiples of 1/q.
            vectors: orthonormal rows that span a subspace which is not made of coordinates, (k, d).

        Raises:
            ValueError: for a norm that has no attack, or a subspace without its vectors or on a grid.
        """
        base, _, region = norm.partition(":")
        if counts_pixels(norm):
            from lightning_rs.attacks.pixels import PixelGeometry  # here, because it builds on this module

            return PixelGeometry(norm, domain, grid, shape=tuple(shape))
        if base not in NORMS:
            raise ValueError(f"norm {norm!r} has no attack: {', '.join(NORMS)}, patch and l0 do, and regions of them")
        if not region:
            return cls(base, domain, grid)
        if not region.startswith("subspace-"):
            named = int(region) if region.isdigit() else region
            return cls(base, domain, grid, mask=torch.from_numpy(region_mask(named, shape)))
        if grid is not None:
            raise ValueError(f"norm {norm!r} has no attack on a grid (of {grid} steps): what it allows leaves the grid")
        if vectors is None:
            raise ValueError(f"norm {norm!r} needs the vectors of its subspace: give their .npy file as Attacker.basis")
        return cls(base, domain, None, basis=torch.from_numpy(vectors).float())

    def distance(self, x: Tensor, z: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the norms of z - x in float64, from the very numbers that the tensors hold, (m,)."""
        move = (z.detach().double() - x.detach().double()).abs().flatten(1)
        if self.norm == "l2":
            return move.square().sum(1).sqrt().cpu().numpy()
        return (move.sum(1) if self.norm == "l1" else move.amax(1)).cpu().numpy()

    def within(self, move: Tensor) -> Tensor:
        """Return the part of perturbations or gradients that lies in the subspace."""
        if self.basis is not None:
            rows = self.basis.to(move)
            return (move @ rows.T) @ rows
        return move if self.mask is None else move * self.mask.to(move)

    def project(self, z: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Return points of the ball and the box: for l1 the nearest, for l2 and l-infinity ball first, then box."""
        move, radius = self.within(z - x), eps.to(x)[:, None]
        if self.norm == "l1":
            moved = project_l1(x + move, x, radius[:, 0], None if self.basis is not None else self.domain)
        elif self.norm == "l2":
            length = move.norm(dim=1, keepdim=True).clamp(min=1e-12)
            moved = x + move * (radius / length).clamp(max=1.0)
        else:
            moved = x + move.clamp(-radius, radius)
        return self._into_box(moved, x)

    def step(self, z: Tensor, x: Tensor, gradient: Tensor, size: Tensor, count: Tensor | None = None) -> Tensor:
        """Return the steepest step of the norm's length ``size``, (m,), uphill from z.

        For l1 it moves the ``count`` coordinates with the largest gradient that have room left, by equal amounts
        (Tramer and Boneh 2019); a hundredth of them, at least one, if ``count``, (m,), is not given.
        """
        uphill, length = self.within(gradient), size.to(x)[:, None]
        if self.norm == "linf":
            return z + length * uphill.sign()
        if self.norm == "l2" or self.basis is not None:  # within a subspace no coordinate moves alone
            order = 1 if self.norm == "l1" else 2
            return z + length * uphill / uphill.norm(p=order, dim=1, keepdim=True).clamp(min=1e-30)
        if self.domain is not None:
            room = torch.where(uphill > 0, self.domain[1] - z, z - self.domain[0])
            uphill = torch.where(room > 1e-6, uphill, 0.0)
        few = torch.full_like(x[:, 0], math.ceil(0.01 * x.shape[1])) if count is None else count
        rank = uphill.abs().argsort(dim=1, descending=True).argsort(dim=1)
        move = torch.where(rank < few[:, None], uphill.sign(), 0.0)
        return z + length * move / move.abs().sum(1, keepdim=True).clamp(min=1.0)

    def furthest(self, x: Tensor, gradient: Tensor, eps: Tensor) -> Tensor:
        """Return the points of the ball, (m,), that lie furthest uphill; for l1 of the ball cut with the box.

        There it is the exact maximiser of a linear function: coordinates in the order of their gradient get all the
        room that the box leaves them until the radius is spent, so that all but one of the moved ones reach the box.
        """
        if self.norm != "l1" or self.basis is not None:
            return self.project(self.step(x, x, gradient, eps), x, eps)
        uphill, radius = self.within(gradient), eps.to(x)[:, None]
        room = radius.expand_as(x)
        if self.domain is not None:
            room = torch.where(uphill > 0, self.domain[1] - x, x - self.domain[0]).clamp(min=0.0).minimum(radius)
        room = torch.where(uphill == 0, 0.0, room)
        order = uphill.abs().argsort(dim=1, descending=True)
        sorted_room = room.gather(1, order)
        spent = sorted_room.cumsum(1) - sorted_room
        length = torch.zeros_like(x).scatter_(1, order, sorted_room.minimum((radius - spent).clamp(min=0.0)))
        return x + length * uphill.sign()

    def random(self, x: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Return points near the sphere of radius ``eps``: Gaussian, sparse or sign directions by the norm."""
        direction = torch.randn(x.shape, generator=generator, device=x.device)
        if self.norm == "linf":
            direction = direction.sign()
        if self.norm == "l1":
            direction = direction * (direction.abs() > 2.0)
        direction = self.within(direction)
        order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[self.norm]
        length = torch.linalg.vector_norm(direction, ord=order, dim=1, keepdim=True).clamp(min=1e-12)
        return self.project(x + direction * eps.to(x)[:, None] / length, x, eps)

    def snap(self, z: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Return points of the grid near z, none outside the ball if ``eps``, (m,), is given; z without a grid."""
        if self.grid is None:
            return z
        if eps is None:
            return self._rounded(z)
        best = self._rounded(x + self._toward_zero(z - x))
        limit = eps.double().cpu().numpy()
        for factor in reversed(_SHRINK):
            tried = self._rounded(x + factor * (z - x))
            inside = torch.from_numpy(self.distance(x, tried) <= limit).to(x.device)
            best = torch.where(inside[:, None], tried, best)
        return best

    def limited(self, z: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Return points that lie in the ball by :meth:`distance`, in the box, on the grid and in the subspace."""
        points = self.snap(self.project(z, x, eps), x, eps)
        limit = eps.double().cpu().numpy()
        for _ in range(8):  # float32 rounding may leave the ball by a hair
            outside = torch.from_numpy(self.distance(x, points) > limit).to(x.device)
            if not outside.any():
                break
            points = torch.where(outside[:, None], self.snap(x + (points - x) * (1 - 1e-6), x, eps), points)
        return points

    def _into_box(self, z: Tensor, x: Tensor) -> Tensor:
        if self.domain is None:
            return z
        low, high = self.domain
        if self.basis is None:
            return z.clamp(low, high)
        # Clamping would leave the subspace: shorten the whole perturbation instead.
        move = z - x
        room = torch.where(move > 0, high - x, x - low)
        share = torch.where(move.abs() > 1e-12, room / move.abs().clamp(min=1e-12), torch.inf).amin(1, keepdim=True)
        return x + move * share.clamp(max=1.0)

    def _rounded(self, z: Tensor) -> Tensor:
        assert self.grid is not None
        whole = (z.double() * self.grid).round()
        if self.domain is not None:
            whole = whole.clamp(math.ceil(self.domain[0] * self.grid), math.floor(self.domain[1] * self.grid))
        return (whole / self.grid).float()

    def _toward_zero(self, move: Tensor) -> Tensor:
        assert self.grid is not None
        return ((move.double() * self.grid + move.sign().double() * 1e-6).trunc() / self.grid).float()
