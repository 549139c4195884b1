"""Transfer between classifiers, and order statistics of scores: oracles, coverage, edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

from lightning_rs.functional import clopper_pearson_lower, gaussian_l2_radius, percentile_ranks, transfer_lower
from tests.oracles import oracle_cases

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("case", oracle_cases("transfer_radius"), ids=str)
def test_transfer_oracles(case: dict) -> None:
    i = case["inputs"]
    p = transfer_lower(
        clopper_pearson_lower(i["count"], i["n"], i["alpha_count"]), i["harmful"], i["pairs"], i["alpha_pairs"]
    )
    assert gaussian_l2_radius(p, 1.0) == pytest.approx(case["expected"], rel=case["rtol"])


def test_transfer_covers() -> None:
    """p' = P(f' = A) with f right 80 %, f' wrong on 3 % of those and right on 2 % more: at least the bound."""
    trials, alpha = 4000, 0.05
    count = RNG.binomial(2000, 0.8, trials)
    harmful = RNG.binomial(500, 0.03, trials)
    bound = transfer_lower(clopper_pearson_lower(count, 2000, alpha / 2), harmful, 500, alpha / 2)
    failures = int((bound > 0.8 - 0.03).sum())
    assert binomtest(failures, trials, alpha, alternative="greater").pvalue > 1e-6
    planted = count / 2000 - harmful / 500  # estimates in place of bounds
    assert binomtest(int((planted > 0.77).sum()), trials, alpha, alternative="greater").pvalue < 1e-6


def test_transfer_edges_and_bad_input() -> None:
    assert transfer_lower(0.01, 100, 1000, 0.001) == 0
    assert transfer_lower(q_upper=0.1, harmful=0, pairs=10**6, alpha=0.001) < 0.9
    with pytest.raises(ValueError, match="pairs must be given"):
        transfer_lower(0.9, 1)
    with pytest.raises(ValueError, match="count must not exceed"):
        transfer_lower(0.9, 11, 10, 0.001)


@pytest.mark.parametrize("case", oracle_cases("percentile_ranks"), ids=str)
def test_percentile_oracles(case: dict) -> None:
    assert [int(rank) for rank in percentile_ranks(**case["inputs"])] == case["expected"]


def test_percentile_ranks_are_the_definition() -> None:
    for n, q, r, alpha in [(1, 0.5, 0.0, 0.6), (20, 0.3, 0.4, 0.01), (137, 0.9, 1.0, 0.001), (1000, 0.01, 2.0, 1e-6)]:
        low, high = (ndtr(ndtri(q) + sign * r) for sign in (-1, 1))
        k = np.arange(1, n + 1)
        lower = max([0, *k[binom.cdf(k - 1, n, low) <= alpha]])
        upper = min([n + 1, *k[binom.sf(k - 1, n, high) <= alpha]])
        assert percentile_ranks(n, q, r, alpha) == (lower, upper)


def test_percentiles_cover_at_the_shifted_input() -> None:
    """The score z itself: its q-quantile at distance r is z_q +- r, known exactly."""
    n, q, r, alpha, trials = 200, 0.4, 0.3, 0.05, 3000
    lower, upper = (int(rank) for rank in percentile_ranks(n, q, r, alpha))
    scores = np.sort(RNG.normal(size=(trials, n)), axis=1)
    below = int((scores[:, lower - 1] > ndtri(q) - r).sum())
    above = int((scores[:, upper - 1] < ndtri(q) + r).sum())
    for failures in (below, above):
        assert binomtest(failures, trials, alpha, alternative="greater").pvalue > 1e-6
    worse = int((scores[:, lower] > ndtri(q) - r).sum())  # one rank further in is too far
    assert worse > below
