"""Bounds that stay valid when sampling stops early: staged Clopper-Pearson, and betting at any time.

Independent Bernoulli trials throughout: ``count`` successes among the first ``n`` trials of an image. All rules see
cumulative counts only, never the order of the trials inside a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betaln

from lightning_rs.checks import FloatArray, IntArray, as_count, check_alpha, check_at_least, check_nonnegative
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, clopper_pearson_upper

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class StagedClopperPearson:
    """Clopper-Pearson after each of a few stages, alpha split over them; sampling may stop after any.

    By the union bound the tail bounds of all stages hold together with probability at least ``1 - sum(alphas)``,
    so the bound of the stage at which an image stops is valid whatever made it stop.

    Args:
        sizes: cumulative sample sizes n_1 < n_2 < ... < n_J.
        alphas: failure probability of each stage; their sum is that of the procedure.

    Raises:
        ValueError: unless the sizes increase from at least 1 and there is one alpha in (0, 1) for each, with a sum
            below 1.
    """

    sizes: tuple[int, ...]
    alphas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] < 1 or any(b <= a for a, b in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(f"sizes must be >= 1 and increasing, got {self.sizes}")
        if len(self.alphas) != len(self.sizes):
            raise ValueError(f"alphas must have one entry a stage ({len(self.sizes)}), got {self.alphas}")
        check_alpha(self.alphas, "alphas")
        check_alpha(math.fsum(self.alphas), "sum of alphas")

    @classmethod
    def split(cls, sizes: Sequence[int], alpha: float, weights: Sequence[float] | None = None) -> StagedClopperPearson:
        """Share ``alpha`` over the stages in proportion to ``weights``; default: the square roots of the sizes.

        On 2,500 published CIFAR-10 radii (n = 100,000, alpha = 0.001), with :meth:`geometric` stages and
        :meth:`stop` at ``tolerance = 0.03 sigma``, a simulation took 3.0 times fewer samples for 0.95% less average
        certified radius at sigma 1, and 1.95 times fewer for 0.6% less at sigma 0.5.
        """
        shares = (
            np.sqrt(np.asarray(sizes, dtype=np.float64)) if weights is None else check_nonnegative("weights", weights)
        )
        alphas = float(check_alpha(alpha)) * (1 - 1e-15) * shares / math.fsum(shares)
        return cls(tuple(int(size) for size in sizes), tuple(alphas.tolist()))

    @classmethod
    def geometric(cls, n: int, alpha: float, first: int = 100, factor: float = math.sqrt(10)) -> StagedClopperPearson:
        """Return stages ``n, n / factor, n / factor^2, ...`` down to ``first``, sharing alpha as :meth:`split`."""
        check_at_least("n", n, 1)
        check_at_least("first", first, 1)
        if not factor > 1:
            raise ValueError(f"factor must be > 1, got {factor!r}")
        # 100000 / sqrt(10)^6 is 100 only up to rounding.
        steps = max(int(math.log(n / first) / math.log(factor) + 1e-9), 0) if n > first else 0
        return cls.split(sorted({round(n / factor**step) for step in range(steps + 1)}), alpha)

    @property
    def alpha(self) -> float:
        """Failure probability of the whole procedure."""
        return math.fsum(self.alphas)

    def tail_upper(self, stage: int, count: ArrayLike) -> FloatArray:
        """Return the upper bound on the tail q = 1 - p after a stage.

        Args:
            stage: index j of the stage, from 0.
            count: successes among the first ``sizes[j]`` trials, any shape.
        """
        return clopper_pearson_tail_upper(count, self.sizes[stage], self.alphas[stage])

    def stop(
        self,
        stage: int,
        count: ArrayLike,
        radius_of_tail: Callable[[FloatArray], FloatArray],
        tolerance: float,
        optimism: float = 0.1,
    ) -> BoolArray:
        """Return for which images no later stage can gain more than ``tolerance`` in radius.

        The gain is that of an image whose probability is the Clopper-Pearson upper bound at level ``optimism``:
        it exceeds the tolerance for the others with probability ``optimism`` at most. Images with no hope of a
        positive radius stop as well. Only the cost depends on this rule, never the validity.

        Args:
            stage: index of the stage just finished.
            count: successes so far, any shape.
            radius_of_tail: maps upper bounds of the tail to radii, in any unit, non-increasing.
            tolerance: radius that is given up, in the same unit, >= 0.
            optimism: level of the projection; smaller goes on longer.
        """
        check_nonnegative("tolerance", tolerance)
        hits = as_count("count", count)
        if stage == len(self.sizes) - 1:
            return np.ones(hits.shape, dtype=np.bool_)
        now = radius_of_tail(self.tail_upper(stage, hits))
        likely = clopper_pearson_upper(hits, self.sizes[stage], optimism)
        best = np.asarray(now)
        for later in range(stage + 1, len(self.sizes)):
            fresh = np.ceil(likely * (self.sizes[later] - self.sizes[stage])).astype(np.int64)
            best = np.maximum(best, radius_of_tail(self.tail_upper(later, hits + fresh)))
        return np.asarray(best - now <= tolerance)


def log_wealth_above(count: ArrayLike, n: ArrayLike, threshold: ArrayLike) -> FloatArray:
    """Return the log wealth of a bet against "the tail 1 - p is at least ``threshold``".

    The wealth is a likelihood ratio, mixed over alternatives: with k successes, f = n - k failures, and t the threshold

        integral over w < t of (w / t)^f ((1 - w) / (1 - t))^k d pi(w) / pi([0, t]),    pi = Beta(1/2, 1/2).

    It starts at 1 and is a non-negative supermartingale for every tail >= t (each factor has mean at most 1 there),
    so it ever reaches 1 / alpha with probability at most alpha (Ville 1939; Voracek 2024; Waudby-Smith and Ramdas
    2024). It depends on (k, n) alone: it may be looked at after every trial or only at the ends of batches.

    Args:
        count: successes, any shape; the others broadcast against it.
        n: trials, >= 0.
        threshold: tail in (0, 1); it keeps its digits near 0, where p is near 1.

    Returns:
        Log wealth, lowered by more than its rounding error (about 1e-14 n log n).

    Raises:
        ValueError: if a count exceeds ``n`` or the threshold lies outside (0, 1).
    """
    hits, fails, t = _bet(count, n, threshold)
    with np.errstate(divide="ignore"):
        prior = np.log(betainc(0.5, 0.5, t)) + betaln(0.5, 0.5)
        mixed = np.log(betainc(fails + 0.5, hits + 0.5, t)) + betaln(fails + 0.5, hits + 0.5)
    return (mixed - prior - fails * np.log(t) - hits * np.log1p(-t) - _error(hits + fails))[()]


def log_wealth_below(count: ArrayLike, n: ArrayLike, threshold: ArrayLike) -> FloatArray:
    """Return the log wealth of a bet against "the tail 1 - p is at most ``threshold``".

    As :func:`log_wealth_above`, with alternatives ``w > threshold``.
    """
    hits, fails, t = _bet(count, n, threshold)
    with np.errstate(divide="ignore"):
        prior = np.log(betaincc(0.5, 0.5, t)) + betaln(0.5, 0.5)
        mixed = np.log(betaincc(fails + 0.5, hits + 0.5, t)) + betaln(fails + 0.5, hits + 0.5)
    return (mixed - prior - fails * np.log(t) - hits * np.log1p(-t) - _error(hits + fails))[()]


class Verdict(IntEnum):
    """What is known about "the tail is below the threshold"."""

    CONTINUE = 0
    CERTIFIED = 1
    REJECTED = 2
    UNDECIDED = 3


@dataclass(frozen=True)
class DecisionRule:
    """Decides "p > 1 - threshold" (radius r certified) or not, stopping as soon as it knows.

    Two bets run on the same trials. CERTIFIED when the one against "tail >= threshold" reaches ``1 / alpha``: if the
    tail is not below the threshold, this ever happens with probability at most ``alpha``, however often and whenever
    one looks. REJECTED when the one against "tail <= threshold" reaches ``1 / alpha_reject``: it costs nothing for
    the soundness of the certificate, and turns away an image that has the radius with probability at most
    ``alpha_reject``. UNDECIDED after ``n_max`` trials. The threshold of a radius is
    :meth:`~lightning_rs.certificates.TopVoteCertificate.threshold`; it must be fixed before sampling.

    Simulated at alpha = 0.001, r = 0.5 sigma (threshold 0.309), a look after every trial, median trials to CERTIFIED
    (400 runs): p = 0.758: 776, 0.841: 132, 0.933: 39, 0.994: 22, 1: 22 (20 are needed if the alternative is known).
    A look after every 32 trials: 800, 160, 64, 32, 32. Of five order-free bets it was the best or within 12% of the
    best everywhere: a uniform mixture needs 691 ... 25, Beta(1, 1/8) 904 ... 20; plug-in bets fixed at the start of
    each batch of 32 need 2496, 288, 64, 32, 32. Elsewhere, with a true radius of r + sigma: r = 0.25 sigma: 33,
    r = sigma: 67, r = 2 sigma: 351.

    Args:
        threshold: tail in (0, 1), rounded down.
        alpha: failure probability of CERTIFIED.
        n_max: trials after which an image is given up.
        alpha_reject: failure probability of REJECTED; None: ``alpha``.

    Raises:
        ValueError: for a probability outside (0, 1) or ``n_max`` < 1.
    """

    threshold: float
    alpha: float
    n_max: int
    alpha_reject: float | None = None

    def __post_init__(self) -> None:
        check_alpha(self.threshold, "threshold")
        check_alpha(self.alpha)
        check_alpha(self.alpha if self.alpha_reject is None else self.alpha_reject, "alpha_reject")
        check_at_least("n_max", self.n_max, 1)

    def decide(self, count: ArrayLike, n: ArrayLike) -> IntArray:
        """Return the :class:`Verdict` of each image still being sampled, as int64.

        The verdict looks at the present counts only: an image that was decided leaves and is not asked again.

        Args:
            count: successes so far, any shape.
            n: trials so far, broadcast.
        """
        certified = log_wealth_above(count, n, self.threshold) >= -math.log(self.alpha)
        reject = self.alpha if self.alpha_reject is None else self.alpha_reject
        rejected = log_wealth_below(count, n, self.threshold) >= -math.log(reject)
        ended = np.broadcast_to(as_count("n", n) >= self.n_max, np.shape(certified))
        cases = [(certified, Verdict.CERTIFIED), (rejected, Verdict.REJECTED), (ended, Verdict.UNDECIDED)]
        verdict = np.select([case for case, _ in cases], [int(v) for _, v in cases], int(Verdict.CONTINUE))
        return verdict.astype(np.int64)[()]


def _bet(count: ArrayLike, n: ArrayLike, threshold: ArrayLike) -> tuple[IntArray, IntArray, FloatArray]:
    hits, size, t = np.broadcast_arrays(as_count("count", count), as_count("n", n), check_alpha(threshold, "threshold"))
    if (hits > size).any():
        raise ValueError(f"count must not exceed n, got {hits[hits > size].flat[0]} > {size[hits > size].flat[0]}")
    return hits, size - hits, t


def _error(n: IntArray) -> FloatArray:
    # The log-gamma functions inside betaln have size n log n; the rest is smaller.
    return 1e-14 * (n + 10) * np.log(n + 10.0) + 1e-11
