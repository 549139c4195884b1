"""Certificates against patches and against a number of changed pixels: smoothing by dropping pixels.

Band and block smoothing keep a part of the image at every position and count the votes of all positions: exact.
Randomized ablation keeps k random pixels: sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import ABSTAIN, Radii, Setting, TopVoteCertificate, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.certificates.splitting import EnumeratedCertificate, splitting_votes_distance
from lightning_rs.checks import FloatArray, IntArray, check_at_least, check_choice, check_probability
from lightning_rs.evidence import EnumeratedVotes, Evidence
from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import EnumeratedNoise, Noise

Kind = Literal["band", "block"]


def patch_size(
    votes: ArrayLike, height: int, width: int, kept: int, kind: Kind, *, doubtful: ArrayLike = 0
) -> tuple[IntArray, IntArray]:
    """Prediction and largest certified square patch, from the votes of all positions of a band or block.

    Statement: A = argmax_c n_c, ties to the lowest class, is returned for every x' that differs from x inside one patch
    of m x m pixels, wherever it lies. A patch touches at most Delta = m + b - 1 of the W bands of b columns, or
    (m + b - 1)^2 of the H W blocks of b x b pixels (both wrap around), and every touched position may change its
    votes, so it is certified iff Delta <= D, D the distance of
    :func:`~lightning_rs.certificates.splitting.splitting_votes_distance`. Exact. Levine and Feizi (2020),
    (De)randomized smoothing, Theorem 1.

    Args:
        votes: positions that voted for each class, shape (..., C); a position may vote for no class or for several.
        height: H, pixels.
        width: W, pixels.
        kept: b, the width of the band or the side of the block, pixels.
        kind: "band" (W positions) or "block" (H W positions).
        doubtful: how many positions floating-point error could turn, shape (...).

    Returns:
        The prediction and the side m, int64, shape (...); 0 where no patch is certified.

    Raises:
        ValueError: for negative or fractional votes, more votes for a class than positions, a part too large.

    >>> print(*patch_size([2, 24, 2], 28, 28, 2, "band"))
    1 9
    """
    check_choice("kind", kind, ("band", "block"))
    rows, columns = check_at_least("height", height, 1), check_at_least("width", width, 1)
    room = columns if kind == "band" else min(rows, columns)
    if check_at_least("kept", kept, 1) > room:
        raise ValueError(f"kept must be at most {room} for a {kind} in images of {rows} x {columns} pixels, got {kept}")
    positions = columns if kind == "band" else rows * columns
    top, distance = splitting_votes_distance(votes, doubtful)
    if np.max(votes, initial=0) > positions:
        raise ValueError(f"votes must not exceed the {positions} positions, got {np.max(votes)}")
    return top, _side(np.maximum(distance, 0), kept, room, kind)[()]


def _side(distance: IntArray, kept: int, room: int, kind: Kind) -> IntArray:
    """Return the side of the largest patch that touches at most ``distance`` >= 0 positions."""
    touched = _whole_root(distance) if kind == "block" else distance
    # A patch wider than this touches every position, which no majority survives.
    return np.clip(touched - kept + 1, 0, room - kept + 1)


def ablation_discrepancy(rho: ArrayLike, k: int, dim: int) -> FloatArray:
    """Largest change of a probability when rho of ``dim`` pixels change and k random pixels are kept.

    ``Delta(rho) = 1 - C(dim - rho, k) / C(dim, k)``, the probability that a changed pixel is kept; tight. Levine and
    Feizi (2020), Robustness certificates for sparse adversarial attacks by randomized ablation, Theorem 1.

    Args:
        rho: number of changed pixels, whole numbers >= 0.
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Delta in [0, 1], rounded up, shape of ``rho``.

    Raises:
        ValueError: for k outside 1..dim or rho that is no whole number >= 0.

    >>> print(round(ablation_discrepancy(2, 2, 6), 6))
    0.6
    """
    table = _discrepancies(k, dim)
    changed = np.asarray(rho)
    if changed.dtype.kind not in "iu" or (changed < 0).any():
        raise ValueError(f"rho must hold whole numbers >= 0, got {rho!r}")
    return table[np.minimum(changed, dim)][()]


def ablation_l0_radius(q_upper: ArrayLike, k: int, dim: int) -> IntArray:
    """Certified number of changed pixels of randomized ablation: the largest rho with Delta(rho) < 1/2 - q.

    Statement: if the class has probability at least ``1 - q_upper`` when k random pixels are kept, it stays the most
    probable one for every x' that differs from x in at most rho pixels (closed ball). The same samples serve every
    rho. Levine and Feizi (2020), Corollary 1. See :func:`ablation_discrepancy`.

    Args:
        q_upper: upper bound of one minus the probability of the class, in [0, 1].
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Number of pixels, int64, shape of ``q_upper``; 0 where nothing is certified.

    Raises:
        ValueError: for NaN, a probability outside [0, 1] or k outside 1..dim.

    >>> int(ablation_l0_radius(0.0069, 45, 784))
    11
    """
    spare = np.nextafter(0.5 - check_probability("q_upper", q_upper), -1.0)
    return ablation_variation_radius(np.maximum(spare, 0.0), k, dim)


def ablation_variation_radius(variation: ArrayLike, k: int, dim: int) -> IntArray:
    """Return how many pixels may change before the law of the kept pixels moves by a total variation.

    The largest rho with :func:`ablation_discrepancy` below ``variation``, 0 where there is none. No label, and no set
    of labels, gains or loses more.

    Args:
        variation: in [0, 1], shape (...).
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Number of pixels, int64, shape of ``variation``.

    Raises:
        ValueError: for NaN, a variation outside [0, 1] or k outside 1..dim.
    """
    # Delta increases: the number of rho >= 0 below the bound, of which rho = 0 is one.
    spare = check_probability("variation", variation)
    return np.maximum(np.searchsorted(_discrepancies(k, dim), spare, side="left") - 1, 0)[()]


def _discrepancies(k: int, dim: int) -> FloatArray:
    """Return Delta(0), ..., Delta(dim), rounded up, Delta(0) = 0 exactly."""
    pixels = check_at_least("dim", dim, 1)
    if check_at_least("k", k, 1) > pixels:
        raise ValueError(f"k must be at most dim = {pixels}, got {k}")
    i = np.arange(pixels)
    missed = np.cumprod(np.maximum(pixels - k - i, 0) / (pixels - i))
    missed *= 1 - (2.0 * i + 4) * 2.0**-52  # each factor errs by half an ulp, each product by another
    return np.concatenate([[0.0], 1.0 - missed + 2.0**-53])


def _whole_root(value: IntArray) -> IntArray:
    root = np.floor(np.sqrt(np.asarray(value, dtype=np.float64))).astype(np.int64)
    root = np.where(root * root > value, root - 1, root)
    return np.where((root + 1) ** 2 <= value, root + 1, root)


@usual_for(BandNoise)
class PatchBand(EnumeratedCertificate):
    """Side of the largest patch that cannot change the answer, from a band at every position: exact.

    Statement and reference as :func:`patch_size`; ``radius`` is the side m in pixels, norm "patch", closed: no patch of
    m x m pixels, wherever it lies and whatever it shows, changes the prediction. Nothing is sampled, alpha is not used.
    Bands vote for their most probable class or, if the noise has a threshold, for all that reach it.
    """

    norm = "patch"
    ball = "closed"
    noises: tuple[type[Noise], ...] = (BandNoise,)
    kind: ClassVar[Kind] = "band"

    def needed(self, radius: float, noise: EnumeratedNoise) -> int:
        """Return the number of parts that a patch of the smallest whole side >= radius touches."""
        assert isinstance(noise, (BandNoise, BlockNoise))
        _, height, width = noise.shape
        room = width if self.kind == "band" else min(height, width)
        reach = math.ceil(radius) + noise.kept - 1
        if reach > room:  # as patch_size: nothing larger is stated
            return noise.size
        return reach if self.kind == "band" else reach**2

    def reached(self, distance: IntArray, noise: EnumeratedNoise) -> FloatArray:
        """Return the side of the largest patch that touches at most D positions."""
        assert isinstance(noise, (BandNoise, BlockNoise))
        _, height, width = noise.shape
        room = width if self.kind == "band" else min(height, width)
        return _side(distance, noise.kept, room, self.kind).astype(np.float64)

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        noise, votes = setting.noise, read(evidence, EnumeratedVotes)
        assert isinstance(noise, (BandNoise, BlockNoise))
        _, height, width = noise.shape
        counts, doubtful = votes.counts, votes.doubtful
        self.check_counts(counts, noise)
        top, side = patch_size(counts, height, width, noise.kept, self.kind, doubtful=doubtful)
        distance = splitting_votes_distance(counts, doubtful)[1]
        notes = {int(b): f"{doubtful[b]} votes within the logit margin" for b in np.flatnonzero(doubtful)}
        prediction = np.where(distance >= 0, top, ABSTAIN)
        return Radii(prediction, side.astype(np.float64), {"distance": distance.astype(np.float64)}, notes)


@usual_for(BlockNoise)
class PatchBlock(PatchBand):
    """The same from a square block at every position."""

    noises = (BlockNoise,)
    kind = "block"


@usual_for(AblationNoise)
class AblationL0(TopVoteCertificate):
    """Number of pixels that may change, from votes with k random pixels kept (:func:`ablation_l0_radius`).

    ``radius`` is the number rho of pixels, norm "l0", closed ball; a pixel changes if any of its channels does. q_upper
    is one-sided Clopper-Pearson at the whole alpha. Levine and Feizi (2020), Corollary 1.
    """

    norm = "l0"
    ball = "closed"
    noises = (AblationNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return :func:`ablation_l0_radius`, in pixels."""
        assert isinstance(setting.noise, AblationNoise)
        return ablation_l0_radius(q_upper, setting.noise.k, setting.noise.pixels).astype(np.float64)
