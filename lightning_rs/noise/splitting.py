"""Splitting noise: the input is replaced by the centre of the cell of a random subdivision of [0, 1]."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lightning_rs.checks import check_at_least, check_positive, check_probability
from lightning_rs.noise.base import EnumeratedNoise, Noise
from lightning_rs.noise.uniform import half_width

Array = TypeVar("Array", NDArray[np.float64], Tensor)


@overload
def splitting_noise(x: Tensor, s: Tensor, lam: float) -> Tensor: ...
@overload
def splitting_noise(x: ArrayLike, s: ArrayLike, lam: float) -> NDArray[np.float64]: ...
def splitting_noise(x: ArrayLike | Tensor, s: ArrayLike | Tensor, lam: float) -> NDArray[np.float64] | Tensor:
    """Return the splitting representation of ``x``: the centre of its cell.

    The points s_i + 2 lam n (n integer) split [0, 1]; x_i lies in the cell
    (s_i + 2 lam (n - 1), s_i + 2 lam n] cut with [0, 1], n = ceil((x_i - s_i) / (2 lam)), and is replaced by
    the centre of that piece: [min(2 lam n + s_i, 1) + max(2 lam (n - 1) + s_i, 0)] / 2. For lam >= 1/2 this
    is (min(s_i, 1) + 1{x_i > s_i}) / 2. Levine and Feizi (2021), Theorem 2, for every lam > 0.

    With s_i uniform on [0, 2 lam), coordinate i differs between x and x' with probability
    min(1, |x_i - x'_i| / (2 lam)), whatever the joint law of s.

    Args:
        x: inputs in [0, 1], numpy (computed in float64) or a floating-point torch tensor.
        s: splits in [0, 2 lam], same kind as ``x``, broadcast against it.
        lam: half the width of a cell, in input units.

    Returns:
        Representations in [0, 1], broadcast shape: float64 array, numpy float64 for scalars, or tensor.

    Raises:
        ValueError: for ``x`` outside [0, 1], ``s`` outside [0, 2 lam], NaN or ``lam`` that is not positive.

    Example:
        >>> print(round(splitting_noise(0.3, 0.2, lam=0.5), 6), round(splitting_noise(0.3, 0.4, lam=0.5), 6))
        0.6 0.2
    """
    width = 2.0 * float(check_positive("lam", lam))
    if isinstance(x, Tensor):
        splits = torch.as_tensor(s, dtype=x.dtype, device=x.device)
        check_probability("x", x.detach().cpu().numpy())
        check_probability("s / (2 lam)", splits.detach().cpu().numpy() / width)
        return _centre(splits, torch.ceil((x - splits) / width), width)
    image, cuts = check_probability("x", x), np.asarray(s, dtype=np.float64)
    check_probability("s / (2 lam)", cuts / width)
    return _centre(cuts, np.asarray(np.ceil((image - cuts) / width)), width)[()]


def _centre(s: Array, cell: Array, width: float) -> Array:
    return ((cell * width + s).clip(max=1.0) + ((cell - 1.0) * width + s).clip(min=0.0)) / 2.0


def splitting_codes(x: Tensor, v: Tensor, outcomes: Tensor, levels: int, q: int) -> Tensor:
    """Return 4 q times the deterministic splitting representations, exactly, in integers.

    With S = (b + v) mod K the splits are (2 S + 1) / (2 q) + n K / q, halfway between grid points, so that
    everything is a whole number in units of 1 / (4 q). The nearest split below X is (2 X - 1 - 2 r) / (2 q)
    with r = (X - 1 - S) mod K, hence 4 q times the centre of the cell is
    min(y + 2 K, 2 q) + max(y, 0), y = 2 X - 1 - 2 r.

    Args:
        x: whole numbers X in 0..q, shape (d,) for all rows or (m, d).
        v: offsets in 0..levels-1, shape (d,).
        outcomes: outcome b in 0..levels-1 of each row, shape (m,).
        levels: number K = 2 lam q of outcomes.
        q: number of grid steps in [0, 1].

    Returns:
        Integers in 0..4q, shape (m, d), int16 if all intermediate values fit, else int32.
    """
    kind, bits = (torch.int16, 15) if 2 * (levels + q) <= 32767 else (torch.int32, 31)
    below, period = 2 * x.to(torch.int32) - 1, 2 * levels
    first = (below - 2 * torch.remainder(x.to(torch.int32) - 1 - v, levels)).to(kind)
    below = below.to(kind)
    y = first + 2 * outcomes.to(kind)[:, None]
    # y grows by 2 with b and wraps when it passes X: subtract the period where below - y < 0. Sign-bit masks
    # because comparisons and where are several times slower on 16-bit integers.
    scratch = below - y
    y -= scratch.bitwise_right_shift_(bits).bitwise_and_(period)
    torch.add(y, period, out=scratch).clamp_(max=2 * q)
    return y.clamp_(min=0).add_(scratch)


class SplittingNoise(Noise):
    """Splitting noise with independent splits s_i, uniform on [0, 2 lam) (SSN; Levine and Feizi 2021).

    Not additive: a noisy copy is ``splitting_noise(x, s, lam)``. Inputs must lie in [0, 1].

    Certificates assume real arithmetic. The splits are float32 numbers, 2^24 of them, so that a coordinate
    changes with probability at most |delta_i| / (2 lam) + 2^-24: for 8-bit images the sum over a ball of
    radius r is off by at most 255 r / 2^24, 6e-5 at r = 4. The deterministic law below has no such error.

    Args:
        lam: half the width of a cell, in input units.
        sigma: lam / sqrt(3) instead, the standard deviation of the uniform noise with the same certificate.

    Raises:
        ValueError: unless exactly one of the two is given, finite and positive.
    """

    domain = (0.0, 1.0)
    arithmetic = "images are only compared with the splits, whose law is exact to 2^-24 a coordinate"

    def __init__(self, lam: float | None = None, sigma: float | None = None) -> None:
        self.lam = half_width(lam, sigma)

    @property
    def sigma(self) -> float:
        """The scale lam / sqrt(3), by which tables list this law beside the uniform one."""
        return self.lam / math.sqrt(3.0)

    def spec(self) -> dict[str, Any]:
        """Return the canonical parameter."""
        return {"lam": self.lam}

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with independent splits."""
        out.uniform_(0.0, 2.0 * self.lam, generator=generator)

    def apply(self, x: Tensor, variates: Tensor, out: Tensor) -> None:
        """Write the centres of the cells into ``out``; computed in float32."""
        if self.lam >= 0.5:
            # The same number as below with one comparison, which is exact, in place of a rounded quotient.
            out.copy_(variates.clamp(max=1.0).add_(x > variates).mul_(0.5))
        else:
            width = 2.0 * self.lam
            out.copy_(_centre(variates, torch.ceil((x - variates) / width), width))


class DeterministicSplittingNoise(EnumeratedNoise):
    """Splitting noise derandomised on the grid {0, 1/q, ..., 1}^d (DSSN; Levine and Feizi 2021).

    A vector v in {0..K-1}^d, K = ``levels`` = floor(2 lam q), is drawn once, from
    ``numpy.random.RandomState(seed).randint(K, size=d)``, in the flattened order of ``shape``. Outcome b in
    {0..K-1} splits coordinate i at ((b + v_i) mod K + 1/2) / q and every K / q from there. All K outcomes
    are evaluated, each once, so that certificates are exact.

    v is part of the classifier: train, certify and predict with the same seed, lam, q and shape. ``spec``
    holds a hash of v; rebuilding the noise where the seed gives another v is an error.

    Args:
        lam: half the width of a cell, in input units. The cells that are used have the width K / q; a
            product 2 lam q within 1e-9 below a whole number counts as that number.
        sigma: lam / sqrt(3) instead.
        shape: shape of one input, for instance (3, 32, 32).
        q: number of grid steps of the data: 255 for 8-bit images.
        seed: seed of v.
        v_sha256: expected hash of v, as in ``spec``; None: not checked.

    Raises:
        ValueError: for parameters out of range, lam < 1 / (2 q), or a v with another hash.
    """

    domain = (0.0, 1.0)
    exchangeable = False

    def __init__(
        self,
        lam: float | None = None,
        sigma: float | None = None,
        *,
        shape: Sequence[int],
        q: int = 255,
        seed: int = 0,
        v_sha256: str | None = None,
    ) -> None:
        self.lam = half_width(lam, sigma)
        self.shape = tuple(check_at_least("shape", size, 1) for size in shape)
        self.q, self.seed = check_at_least("q", q, 1), check_at_least("seed", seed, 0)
        self.levels = math.floor(2.0 * self.lam * self.q + 1e-9)
        if self.levels < 1:
            raise ValueError(f"lam must be at least 1/(2q) = {0.5 / self.q:g} for q = {self.q}, got {self.lam:g}")
        v = np.random.RandomState(self.seed).randint(self.levels, size=math.prod(self.shape), dtype=np.int64)
        self.v_sha256 = hashlib.sha256(v.astype("<i8").tobytes()).hexdigest()
        if v_sha256 not in (None, self.v_sha256):
            raise ValueError(f"v_sha256 must be {self.v_sha256} for seed {self.seed} here, got {v_sha256}")
        self._v = {torch.device("cpu"): torch.from_numpy(v).to(torch.int32)}

    @property
    def sigma(self) -> float:
        """The scale lam / sqrt(3), by which tables list this law beside the uniform one."""
        return self.lam / math.sqrt(3.0)

    @property
    def size(self) -> int:
        """The number K of outcomes."""
        return self.levels

    @property
    def grid(self) -> int:
        """Inputs are multiples of 1/q."""
        return self.q

    @property
    def v(self) -> Tensor:
        """The offsets, shape (d,), int32, on the CPU."""
        return self._v[torch.device("cpu")]

    def spec(self) -> dict[str, Any]:
        """Return the parameters and the hash of v."""
        return {
            "lam": self.lam,
            "shape": list(self.shape),
            "q": self.q,
            "seed": self.seed,
            "v_sha256": self.v_sha256,
        }

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless the input has the shape of v."""
        if tuple(shape) != self.shape:
            raise ValueError(f"images must have the shape {self.shape} of v, got {tuple(shape)}")

    def arranged(self, order: Tensor) -> DeterministicSplittingNoise:
        """Return the same law for inputs whose coordinates were permuted by ``order``, shape (d,)."""
        other = copy.copy(self)
        other._v = {torch.device("cpu"): self.v[order.cpu()]}
        return other

    def split(self, x: Tensor, outcomes: Tensor, out: Tensor) -> None:
        """Write outcome ``outcomes[i]`` of ``x``, multiples of 1/q of shape (d,) or (m, d), into ``out[i]``.

        Integer arithmetic up to the last step, so that the representation depends on the grid point alone.
        """
        if x.device not in self._v:
            self._v[x.device] = self.v.to(x.device)
        whole = torch.round(x.float() * self.q).to(torch.int32)
        codes = splitting_codes(whole, self._v[x.device], outcomes, self.levels, self.q)
        if out.dtype == torch.float32:
            out.copy_(codes).div_(4 * self.q)
        else:
            out.copy_(codes.float().div_(4 * self.q))
