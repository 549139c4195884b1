"""Noise and images as integers on one lattice, so that the law at x' is the exact translate of the law at x.

In floating point x + w carries x: the sums that x can give are not those that x' can give, and a network that looks
for the difference is certified falsely. Here an image is X = x / h in whole numbers, the noise is a whole number
W = round(V), V the real noise in units of h, and the network sees J h, J = X + W. Because X is whole,
J = round(x / h + V) exactly: J is a function of the real sum, "round, then answer" is an ordinary base classifier, and
every certificate for the real law holds between all images on the lattice. Rounding J h to the network's dtype is a
function of J.

Where data are multiples of 1/q, h = 1 / (q 2^bits). Elsewhere h = 2^-bits is so fine that rounding the images costs
little: x is moved by ||x - X h||, any other image by at most half a step in each coordinate, and both are taken off
the radius (the distance of two rounded images is at most the distance of the images plus both).

W is drawn from its exact law by integer thresholds; what the draws are off in total variation, times all coordinates of
all samples, is taken off alpha by :meth:`LatticeNoise.level`: the one place where it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Integer, Num
from torch import Tensor

from lightning_rs.checks import FloatArray
from lightning_rs.noise._integer_laws import TABLE_VERSION
from lightning_rs.noise._tables import Scratch

_EXACT_IN_FLOAT32 = 1 << 24
LIMIT = 1 << 30
"""No |J| is larger: sums stay far inside 32 bits."""


@dataclass(frozen=True)
class Lattice:
    """The points k / ``scale``, k whole.

    Attributes:
        scale: number of lattice steps in one input unit.
        grid: number q of steps of the data's own grid, of which ``scale`` is a multiple, or None.
        bits: scale = stride q 2^bits, or stride 2^bits off the grid.
        stride: images lie on every ``stride``-th point: 2 for uniform noise, whose values are half steps.
    """

    scale: int | float
    grid: int | None
    bits: int
    stride: int = 1

    def place(self, x: Tensor) -> Tensor:
        """Return the nearest lattice points of inputs, in steps, float64 of the same shape."""
        whole = x.double()
        if self.grid is None:
            return torch.round(whole * (self.scale / self.stride)) * self.stride
        return torch.round(whole * self.grid) * (self.scale / self.grid)

    def rounding(self, x: Tensor, norm: str) -> FloatArray:
        """Return how much is to be taken off a radius around each row of ``x``, (B, ...) -> (B,); 0 on a grid.

        The distance of x from the lattice, and the largest that any other image can have.
        """
        if self.grid is not None:
            return np.zeros(len(x))
        flat = x.detach().cpu().double().flatten(1)
        own = (flat - self.place(flat) / self.scale).abs()
        moved = {"l1": own.sum(1), "l2": own.square().sum(1).sqrt(), "linf": own.amax(1)}[norm]
        # 1e-9 for the rounding errors of these sums.
        return (moved.numpy() * (1 + 1e-9) + self.worst(norm, flat.shape[1])) * (1 + 1e-9)

    def worst(self, norm: str, dim: int) -> float:
        """Return the largest distance of an input with ``dim`` coordinates from the lattice; 0 on a grid."""
        if self.grid is not None:
            return 0.0
        return {"l1": float(dim), "l2": math.sqrt(dim), "linf": 1.0}[norm] * 0.5 * self.stride / float(self.scale)


class LatticeNoise(ABC):
    """A law whose variates are whole numbers of lattice steps.

    Attributes:
        lattice: the points that noisy copies lie on, before they are rounded to the network's dtype.
        dtype: integers that hold W: int16 or int32.
        largest: bound on |W|.
    """

    def __init__(self, lattice: Lattice, dtype: torch.dtype, largest: int) -> None:
        self.lattice = lattice
        self.dtype = dtype
        self.largest = largest

    @property
    @abstractmethod
    def distance(self) -> float:
        """Bound on the total variation between one drawn coordinate and its law."""

    @abstractmethod
    def draw_(
        self,
        out: Integer[Tensor, "m d"],
        generator: torch.Generator,
        scratch: Scratch,
        means: Float64[Tensor, "m d"] | None = None,
    ) -> None:
        """Fill ``out``, of :attr:`dtype`, contiguous, on the CPU, with fresh W, one row a noisy copy.

        Args:
            out: to be filled.
            generator: a CPU generator: streams are the same whatever the device of the network.
            scratch: buffers of this thread.
            means: filled with E[V | W] in input units, what gradient evidence uses in place of
                the noise. E[f(J) V] = E[f(J) E[V | W]], because J is a function of W; and for every convex function,
                exp above all, that of a conditional mean is at most that of V in expectation (Jensen).
        """

    def place(self, x: Float[Tensor, "m d"]) -> Num[Tensor, "m d"]:
        """Return inputs in lattice steps: float32, where sums are exact there, else int32.

        Raises:
            ValueError: if an input is so large that sums with the noise would leave the integers.
        """
        steps = self.lattice.place(x)
        limit = (_EXACT_IN_FLOAT32 if self.dtype == torch.int16 else LIMIT) - self.largest
        if steps.numel() and float(steps.abs().max()) > limit:
            raise ValueError(
                f"images must lie within +-{limit / float(self.lattice.scale):g} for noise on a lattice of step "
                f"{1 / float(self.lattice.scale):g}, got {float(x.flatten()[steps.abs().argmax()])!r}"
            )
        return steps.to(torch.float32 if self.dtype == torch.int16 else torch.int32)

    def apply(self, placed: Num[Tensor, "*m d"], w: Integer[Tensor, "m d"], out: Float[Tensor, "m d"]) -> None:
        """Write J h, J = X + W, into ``out``: a function of the whole number J, rounded to the dtype of ``out`` last.

        Args:
            placed: X as :meth:`place` gives it, for all rows or one a row.
            w: what :meth:`draw_` filled, on the device of ``out``.
            out: to be filled.
        """
        if out.dtype != torch.float32:
            exact = torch.empty(out.shape, dtype=torch.float32, device=out.device)
            self.apply(placed, w, exact)
            out.copy_(exact)
            return
        if placed.dtype == torch.float32:
            torch.add(w, placed, out=out)
        else:
            out.copy_(w + placed)
        out.div_(self.lattice.scale)

    def level(self, alpha: float, n: int, dim: int) -> float:
        """Return what is left of alpha for the statistics of n samples after the total variation of the noise.

        Raises:
            ValueError: if nothing is left.
        """
        spent = self.spent(n, dim)
        if spent >= alpha:
            raise ValueError(f"alpha must exceed the error {spent:g} of the noise law at n = {n}, got {alpha:g}")
        return alpha - spent

    def spent(self, n: int, dim: int) -> float:
        """Return the total variation between n drawn samples of ``dim`` coordinates and their law."""
        return n * dim * self.distance * (1 + 1e-9)

    def describe(self) -> dict[str, Any]:
        """Return what decides the draws, as plain values: it binds a record file."""
        return {
            "grid": self.lattice.grid,
            "bits": self.lattice.bits,
            "scale": self.lattice.scale,
            "table": TABLE_VERSION,
        }

    def statement(self, n: int, dim: int) -> str:
        """Return what is exact in a certificate from n samples of ``dim`` coordinates."""
        return f"the arithmetic is exact up to the network's input, the noise law to {self.spent(n, dim):.1e}"
