"""First-order l2 certificates against perturbations in a subspace: colour channels, half images, any projector."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_rs.certificates._gradient_evidence import GradientMeans, gradient_notes, l2_bounds, top_tail
from lightning_rs.certificates.base import Certificate, Radii, Setting, abstain_at_zero, read
from lightning_rs.certificates.first_order import first_order_subspace_l2_radius
from lightning_rs.checks import FloatArray
from lightning_rs.evidence import Evidence, GradientSums, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.gaussian import profile
from lightning_rs.numerics.regions import check_region, qualified, region_mask
from lightning_rs.statistics.gradient import ALPHA_SHARES, Interval

_HASHED = "sha256:"


class SubspaceCertificate(Certificate):
    """An l2 radius for perturbations in a linear subspace S, from the gradient inside and outside S.

    :func:`~lightning_rs.certificates.first_order.first_order_subspace_l2_radius` at a Clopper-Pearson bound of the
    tail, an upper bound of the gradient's norm in S and a lower bound of its norm in the complement, all from the
    same samples. Never below Cohen's radius at the same tail. Abstains where q_upper >= 1/2.
    """

    noises = (GaussianNoise,)
    evidence = (Votes, GradientSums)

    def __init__(self, with_outside: bool) -> None:
        self.with_outside = with_outside
        self.alpha_split = ALPHA_SHARES["first_order_subspace" if with_outside else "first_order_subspace_without_l2"]

    @abstractmethod
    def split_bounds(
        self, means: GradientMeans, setting: Setting, alpha_inside: float, alpha_outside: float
    ) -> tuple[Interval, Interval]:
        """Return the bounds of the gradient's norm in S and in its complement, each at its own alpha."""

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        shares, sigma = self.alpha_split, setting.noise.sigma
        tail = top_tail(evidence, setting, shares["p_lower"])
        means = GradientMeans(read(evidence, GradientSums), sigma)
        alphas = [setting.alpha * shares.get(key, shares["inside_upper"]) for key in ("inside_upper", "outside_lower")]
        inside, outside = self.split_bounds(means, setting, *alphas)
        lower = outside.lower if self.with_outside else np.zeros(len(tail))
        radius = first_order_subspace_l2_radius(
            q_upper=tail, inside_upper=inside.upper, outside_lower=lower, sigma=sigma
        )
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "inside_upper": inside.upper, "outside_lower": lower}
        notes = gradient_notes(tail, inside.upper, profile(tail), lower)
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds, notes)


class ChannelL2(SubspaceCertificate):
    """An l2 radius for perturbations of one colour channel or one half of the image.

    Args:
        region: "red", "green" or "blue" for three channels; a channel number; or "top", "bottom", "left", "right"
            for a half image, in all channels (for MNIST, which has one).
        with_outside: use the lower bound of the gradient outside; without it, one confidence event less.

    Raises:
        ValueError: for an unknown region; when certifying, if the input shape has no such region.
    """

    def __init__(self, region: str | int = "red", with_outside: bool = True) -> None:
        check_region(region)
        super().__init__(with_outside)
        self.region = region
        self.norm = qualified("l2", region)

    @property
    def name(self) -> str:
        """The class, and the region if there is one: several regions can be listed in one run."""
        return qualified(type(self).__name__, self.region)

    def split_bounds(
        self, means: GradientMeans, setting: Setting, alpha_inside: float, alpha_outside: float
    ) -> tuple[Interval, Interval]:
        """Select the coordinates."""
        mask = region_mask(self.region, setting.shape)
        return means.l2(alpha_inside, mask), means.l2(alpha_outside, ~mask)


class FirstOrderSubspaceL2(SubspaceCertificate):
    """An l2 radius for perturbations in the span of given orthonormal vectors.

    Args:
        basis: path of a ``.npy`` file with the vectors as rows, (k, d), coordinates in C, H, W order. Records name its
            content, not its path, and so does the norm: "l2:subspace-" and the first digits of the hash. Built from
            such a name ("sha256:..."), the certificate can be compared and reported, not applied.
        with_outside: use the lower bound of the gradient outside the span.

    Raises:
        ValueError: if the file holds no orthonormal rows (to 1e-9), or, when certifying, rows of another length.
    """

    rounds = False

    def __init__(self, basis: str, with_outside: bool = True) -> None:
        named = str(basis).startswith(_HASHED)
        self._path = str(basis)
        self._rows = None if named else _orthonormal(self._path)
        self.basis = self._path if self._rows is None else _named(self._rows)
        super().__init__(with_outside)
        self.norm = f"l2:subspace-{self.basis.removeprefix(_HASHED)[:8]}"

    @property
    def name(self) -> str:
        """The class, and the subspace: several can be listed in one run."""
        return qualified(type(self).__name__, self.norm.rpartition("-")[2])

    @property
    def vectors(self) -> FloatArray | None:
        """The orthonormal rows, (k, d); None where only the name of their content is known."""
        return self._rows

    def split_bounds(
        self, means: GradientMeans, setting: Setting, alpha_inside: float, alpha_outside: float
    ) -> tuple[Interval, Interval]:
        """Project onto the span, and subtract the projection."""
        if self._rows is None:
            raise ValueError(f"basis must be a file to certify with, got only the name of its content, {self.basis}")
        if self._rows.shape[1] != setting.dim:
            raise ValueError(f"basis must have rows of length {setting.dim}, got {self._rows.shape[1]} in {self._path}")
        first, second = _each_times(means.first, self._rows.T), _each_times(means.second, self._rows.T)
        inside = l2_bounds(first, second, means.sizes, alpha_inside)
        rest = (means.first - _each_times(first, self._rows), means.second - _each_times(second, self._rows))
        return inside, l2_bounds(*rest, means.sizes, alpha_outside)


def _named(rows: FloatArray) -> str:
    """Return the name of a subspace's basis: the SHA-256 of its shape and numbers."""
    return _HASHED + hashlib.sha256(repr(rows.shape).encode() + rows.tobytes()).hexdigest()


def _each_times(rows: FloatArray, matrix: FloatArray) -> FloatArray:
    # Not rows @ matrix: the bits of that product depend on how many rows there are.
    return np.stack([row @ matrix for row in rows])


def _orthonormal(path: str) -> FloatArray:
    rows: NDArray[np.float64] = np.ascontiguousarray(np.load(path), dtype=np.float64)
    if rows.ndim != 2 or not np.allclose(rows @ rows.T, np.eye(len(rows)), rtol=0, atol=1e-9):
        raise ValueError(f"basis must hold orthonormal rows, got an array of shape {rows.shape} in {path}")
    return rows
