"""l1 certificates of splitting noise: randomised (SSN) and deterministic (DSSN)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import ABSTAIN, Certificate, Radii, Setting, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.certificates.uniform import UniformL1
from lightning_rs.checks import FloatArray, IntArray, as_count, check_at_least
from lightning_rs.evidence import EnumeratedVotes, Evidence
from lightning_rs.noise.base import EnumeratedNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise


def splitting_votes_distance(votes: ArrayLike, doubtful: ArrayLike = 0) -> tuple[IntArray, IntArray]:
    r"""Exact certified distance, in grid steps, from the votes over all K outcomes of a fixed v.

    Statement: A = argmax_c n_c, ties to the lowest class, is returned for every x' on the grid
    {0, 1/q, ..., 1}^d with ``q ||x - x'||_1 <= D``,

        D = min_{c != A} floor((n_A - n_c - 1{c < A}) / 2).

    Levine and Feizi (2021), Corollary 1 (general case), which states lam (p_A - p_B) = (n_A - n_B) / (2 q).
    D counts ties, and looks at all classes: with ties a class of lower index and fewer votes can bind.

    Reason: moving coordinate i by one grid step crosses exactly one of the K equally spaced splits, so at
    most one of the K representations changes, and one changed vote moves n_A - n_c by at most 2.

    Args:
        votes: number of outcomes for each class, whole numbers, shape (..., C), C >= 2, all K counted.
        doubtful: how many of these votes, shape (...), floating-point error could turn; D drops by one for
            each, because it may be counted for the wrong class both here and at x'.

    Returns:
        The prediction A and the distance D, int64, shape (...). D < 0, which only doubt can cause, means
        that not even the prediction at x is certain.

    Raises:
        ValueError: for negative or fractional votes, or fewer than two classes.
    """
    counts = as_count("votes", votes)
    if counts.ndim == 0 or counts.shape[-1] < 2:
        raise ValueError(f"votes must have at least 2 classes on the last axis, got shape {counts.shape}")
    top, gap = _gap(counts)
    return top, gap // 2 - as_count("doubtful", doubtful)


def splitting_votes_l1_radius(
    votes: ArrayLike, q: int = 255, *, doubtful: ArrayLike = 0
) -> tuple[IntArray, FloatArray]:
    """Prediction and exact l1 radius D / q of deterministic splitting noise, from the votes of all outcomes.

    Statement: the prediction is returned for every x' in {0, 1/q, ..., 1}^d with ``||x - x'||_1 <= D / q``
    (closed ball). Distances on the grid are multiples of 1/q, so a threshold rho is certified iff
    floor(q rho) <= D: with q = 255, rho = 0.5 needs D >= 127. See :func:`splitting_votes_distance`.

    Args:
        votes: number of outcomes for each class, whole numbers, shape (..., C), C >= 2, all K counted.
        q: number of grid steps in [0, 1].
        doubtful: how many of these votes floating-point error could turn, shape (...).

    Returns:
        The prediction, int64, and the radius in input units, float64 (the number nearest to D / q, from
        which ``round(q * radius)`` gives D back), shape (...).

    Raises:
        ValueError: for negative or fractional votes, fewer than two classes or ``q`` < 1.

    Example:
        >>> prediction, radius = splitting_votes_l1_radius([28, 100], q=255)
        >>> int(prediction), round(255 * radius)
        (1, 35)
    """
    prediction, distance = splitting_votes_distance(votes, doubtful)
    return prediction, (np.maximum(distance, 0) / check_at_least("q", q, 1))[()]


def splitting_target_status(
    votes: ArrayLike, remaining: ArrayLike, target: ArrayLike, *, doubtful: ArrayLike = 0
) -> IntArray:
    """Tell from the votes so far whether the distance reaches a target, whatever the other outcomes vote.

    With g = min_{c != A} (n_A - n_c - 1{c < A}) over the votes so far, A their argmax and m the number of
    outcomes still to come, the final D lies between floor((g - m) / 2) (all m for the strongest rival) and
    floor((g + m) / 2) (all m for A; no other class can end higher). Both are attained, so the answer 0
    means that the remaining outcomes do matter.

    Args:
        votes: votes so far, whole numbers, shape (..., C), C >= 2.
        remaining: number m of outcomes not yet evaluated, shape (...).
        target: wanted distance in grid steps, floor(q rho), >= 0, shape (...).
        doubtful: how many of the votes floating-point error could turn, shape (...).

    Returns:
        1: the prediction is argmax of ``votes`` and D >= target, for certain; -1: D < target, for certain;
        0: open. int64, broadcast shape.

    Raises:
        ValueError: for negative or fractional arguments, or fewer than two classes.
    """
    lacking, spare = _to_decide(votes, remaining, target, doubtful)
    return np.asarray((lacking <= 0).astype(np.int64) - (spare < 0).astype(np.int64))[()]


def votes_until_decided(
    votes: ArrayLike, remaining: ArrayLike, target: ArrayLike, *, doubtful: ArrayLike = 0
) -> IntArray:
    """Return after how many more votes :func:`splitting_target_status` can first be decided; 0 if it is already.

    A vote for A raises g - m by 2, one for the strongest rival lowers g + m by 2, and no vote without doubt does
    more. Evaluating so many outcomes before looking again therefore wastes none. Arguments and errors as there.

    Returns:
        Whole numbers, int64, broadcast shape, at most ``remaining``.
    """
    lacking, spare = _to_decide(votes, remaining, target, doubtful)
    return np.asarray(np.maximum(np.minimum((lacking + 1) // 2, spare // 2 + 1), 0))[()]


def _to_decide(
    votes: ArrayLike, remaining: ArrayLike, target: ArrayLike, doubtful: ArrayLike
) -> tuple[IntArray, IntArray]:
    """Return how much g - m lacks for a certain yes, and how much g + m exceeds what a certain no allows."""
    counts, left, goal = as_count("votes", votes), as_count("remaining", remaining), as_count("target", target)
    if counts.ndim == 0 or counts.shape[-1] < 2:
        raise ValueError(f"votes must have at least 2 classes on the last axis, got shape {counts.shape}")
    gap, wanted = _gap(counts)[1], goal + as_count("doubtful", doubtful)
    return 2 * wanted - (gap - left), (gap + left) - 2 * wanted


def _gap(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return A and min_{c != A} (n_A - n_c - 1{c < A}); it is >= 0 because A is the first maximum."""
    classes = np.arange(counts.shape[-1])
    top = counts.argmax(axis=-1)[..., None]
    margin = np.take_along_axis(counts, top, axis=-1) - counts - (classes < top)
    rivals = np.where(classes == top, np.iinfo(np.int64).max, margin)
    return top[..., 0], rivals.min(axis=-1)


class EnumeratedCertificate(Certificate):
    """An exact certificate that holds as far as D outcomes may change: all vote, nothing is sampled, nothing can fail.

    D is that of :func:`splitting_votes_distance`, which does not ask how many votes an outcome casts: at most one for a
    class, so that a changed outcome moves n_A - n_c by at most 2. A subclass says which D a radius needs.
    """

    evidence: tuple[type[Evidence], ...] = (EnumeratedVotes,)
    alpha_split: Mapping[str, float] = MappingProxyType({})
    exact: ClassVar[bool] = True

    @abstractmethod
    def needed(self, radius: float, noise: EnumeratedNoise) -> int:
        """Return the distance D that certifies a radius >= 0; where nothing does, the number of all outcomes."""

    @staticmethod
    def check_counts(counts: IntArray, noise: EnumeratedNoise) -> None:
        """Raise ``ValueError`` unless counts, (B, C), can be votes of all outcomes."""
        whole = counts.sum(axis=1) == noise.size if noise.threshold is None else counts.max(axis=1) <= noise.size
        if not whole.all():
            raise ValueError(f"votes must count all {noise.size} outcomes of {noise!r}, got {counts.sum(axis=1)}")


@usual_for(SplittingNoise)
class SplittingL1(UniformL1):
    """Open l1 ball of :func:`lightning_rs.certificates.uniform.uniform_l1_radius` for splitting noise (SSN).

    With probability at least 1 - alpha over the sampling, the smoothed class is constant on the inputs in
    [0, 1]^d of the ball. Levine and Feizi (2021), Theorem 2. Radius in input units, at most lam.
    """

    noises = (SplittingNoise,)


@usual_for(DeterministicSplittingNoise)
class DeterministicSplittingL1(EnumeratedCertificate):
    """Closed l1 ball on the grid of :func:`splitting_votes_l1_radius`, exact (DSSN; Levine and Feizi 2021).

    All K outcomes of :class:`~lightning_rs.noise.splitting.DeterministicSplittingNoise` vote, ties go to the
    lowest class, nothing is sampled and nothing can fail: alpha is not used. The statement covers x' in
    {0, 1/q, ..., 1}^d and the classifier with this very v. It never abstains, unless floating-point doubt
    about votes (evidence.doubtful) exceeds the majority; each doubtful vote costs one grid step.

    The box [0, 1]^d does not enlarge it, unlike :class:`~lightning_rs.certificates.uniform.UniformBoxL1`.
    That gain comes from independence: losses of several coordinates multiply there, so that spreading a
    perturbation over pixels, as the box enforces, is less effective. With a shared v they add up. Moving
    coordinate i from X_i to X'_i changes exactly the outcomes b of one arc of the circle of K outcomes, of
    length |X_i - X'_i|, that starts at X_i - v_i; a perturbation that moves coordinates with disjoint arcs
    changes q ||delta||_1 outcomes. So if the box has room for disjoint arcs of total length D + 1, as it has at
    every image for a random v and d well above K / q, no larger D follows from the votes. Only for overlapping
    arcs (all v_i equal, say) and K > 2 q would the box help.
    """

    norm = "l1"
    ball = "closed"
    noises = (DeterministicSplittingNoise,)

    def needed(self, radius: float, noise: EnumeratedNoise) -> int:
        """Return floor(q radius), rounded before flooring, as records do: q r may be a hair below a whole number."""
        assert isinstance(noise, DeterministicSplittingNoise)
        return math.floor(round(noise.q * radius, 9))

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        noise, votes = setting.noise, read(evidence, EnumeratedVotes)
        assert isinstance(noise, DeterministicSplittingNoise)
        counts, doubtful = votes.counts, votes.doubtful
        self.check_counts(counts, noise)
        top, distance = splitting_votes_distance(counts, doubtful)
        _, radius = splitting_votes_l1_radius(counts, noise.q, doubtful=doubtful)
        prediction = np.where(distance >= 0, top, ABSTAIN)
        notes = {int(b): f"{doubtful[b]} votes within the logit margin" for b in np.flatnonzero(doubtful)}
        return Radii(prediction, radius, {"distance": distance.astype(np.float64)}, notes)
