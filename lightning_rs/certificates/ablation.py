"""Certificates against patches and against a number of changed pixels: smoothing by dropping pixels.

Band and block smoothing keep a part of the image at every position and count the votes of all positions: exact.
Randomized ablation keeps k random pixels: sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import ABSTAIN, Radii, Setting, TopVoteCertificate, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.certificates.splitting import EnumeratedCertificate, splitting_votes_distance
from lightning_rs.checks import FloatArray, IntArray, check_at_least, check_choice
from lightning_rs.evidence import EnumeratedVotes, Evidence
from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import EnumeratedNoise, Noise
from lightning_rs.numerics.kept_pixels import Kind, ablation_l0_radius, patch_side


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
    return top, patch_side(distance, kept, room, kind)


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
