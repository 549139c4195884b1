"""Gradient estimators against oracles, their derivations, and coverage on classifiers with known gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import binomtest, chi2, norm

from lightning_rs.statistics.gradient import (
    ALPHA_SHARES,
    MOHAPATRA_CONSTANT,
    kappa_local,
    levine_scaled_gradient_upper,
    scaled_gradient_l1_deviation,
    scaled_gradient_l2_interval,
    scaled_gradient_linf_deviation,
)
from tests.oracles import oracle_cases
from tests.statistics.mohapatra import mohapatra_l2_interval

Array = NDArray[np.float64]


@pytest.mark.parametrize("case", oracle_cases("kappa_local"))
def test_kappa_oracles(case: dict) -> None:
    kappa = kappa_local(case["inputs"]["Lam"])
    assert kappa == pytest.approx(case["expected"]["kappa"], rel=case["rtol"])
    assert kappa >= case["expected"]["kappa"]


@pytest.mark.parametrize("case", oracle_cases("levine_gradient_upper"))
def test_levine_oracles(case: dict) -> None:
    given = case["inputs"]
    upper = levine_scaled_gradient_upper(*(given[name] for name in ("Vhat", "n_pairs", "d", "sigma", "eta")))
    assert upper / given["sigma"] == pytest.approx(case["expected"]["grad_upper"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("moh_l2_estimator"))
@pytest.mark.parametrize(("form", "suffix"), [("printed", "paper"), ("sound", "sound")])
def test_mohapatra_l2_oracles(case: dict, form: str, suffix: str) -> None:
    given, expected = case["inputs"], case["expected"]
    found = mohapatra_l2_interval(*(given[name] for name in ("XY", "n1", "n2", "d", "alpha")), form=form)
    assert found.upper == pytest.approx(expected[f"up_{suffix}"], rel=case["rtol"])
    assert found.lower == pytest.approx(expected[f"lo_{suffix}"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("moh_l1_linf_t"))
def test_deviation_oracles(case: dict) -> None:
    given = [case["inputs"][name] for name in ("n", "d", "alpha")]
    linf = scaled_gradient_linf_deviation(*given, constant="mohapatra")
    l1 = scaled_gradient_l1_deviation(*given, constant="mohapatra")
    assert linf == pytest.approx(case["expected"]["t_linf"], rel=case["rtol"])
    assert l1 == pytest.approx(case["expected"]["t_l1"], rel=case["rtol"])
    # The local constant is 1.5 times tighter where n is large; never looser.
    assert scaled_gradient_linf_deviation(*given) < linf / 1.5
    assert scaled_gradient_l1_deviation(*given) < l1


@pytest.mark.parametrize("case", oracle_cases("optionA_l2_estimator"))
def test_local_l2_oracles(case: dict) -> None:
    given, expected = case["inputs"], case["expected"]
    assert given["La"] == given["Lb"]
    alpha = 2 * math.exp(-given["La"])
    found = scaled_gradient_l2_interval(given["XY"], given["Ynorm"], given["n1"], given["n2"], alpha)
    assert found.upper == pytest.approx(expected["up"], rel=case["rtol"])
    assert found.lower == pytest.approx(expected["lo"], rel=case["rtol"])


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)


def _log_moment(f: Callable[[Array], Array], lam: float, cuts: list[float]) -> float:
    """log E exp(lam (z - E z)) for z = x (f(x) - 1/2), x standard normal; f is smooth between the cuts."""
    ends = np.array(sorted({-14.0, *cuts, 14.0}))
    half = 0.5 * np.diff(ends)[:, None]
    x = 0.5 * (ends[1:] + ends[:-1])[:, None] + half * _NODES
    law = half * _WEIGHTS * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    z = x * (f(x) - 0.5)
    return math.log((law * np.exp(lam * (z - (law * z).sum()))).sum())


@pytest.mark.parametrize("lam", [0.1, 1.0, 3.0])
def test_kappa_bounds_every_classifier_and_is_attained(lam: float) -> None:
    def ratio(t: float) -> float:
        worst = _log_moment(lambda x: ((x > t) | ((-t < x) & (x < 0))).astype(float), lam, [-t, 0.0, t])
        return 2 * worst / lam**2

    # The worst threshold, found again, from the definition.
    attained = max(ratio(t) for t in np.linspace(0.5, 3.5, 300))
    assert attained <= kappa_local(lam) <= attained + 1e-5
    for t in (-1.0, 0.0, 0.3, 2.0):
        assert 2 * _log_moment(lambda x, t=t: (x > t).astype(float), lam, [t]) / lam**2 <= kappa_local(lam)
        assert 2 * _log_moment(lambda x, t=t: (np.abs(x) < abs(t)).astype(float), lam, [-t, t]) / lam**2 <= kappa_local(
            lam
        )
    soft = 2 * _log_moment(lambda x: 0.5 * (1 + np.tanh(x)), lam, [-2.0, 0.0, 2.0]) / lam**2
    assert soft <= kappa_local(lam)


def test_kappa_is_monotone_between_its_limits() -> None:
    lam = np.concatenate([[0.0], np.geomspace(0.0021, 30, 2000)])
    kappa = kappa_local(lam)
    assert kappa[0] == 0.25
    assert (np.diff(kappa) >= -1e-9).all()
    assert (kappa <= 0.25 + 0.0506 * lam + 2e-9).all()
    assert kappa.max() == 0.40219 < MOHAPATRA_CONSTANT
    # The series below 0.002 lies above the formula.
    assert kappa_local(0.0019999) >= kappa_local(0.002) - 1e-12


def test_levine_is_an_upper_bound_and_continuous_at_the_switch() -> None:
    """Section 3.1 asks for a lower bound; Theorem 2 gives, and the radius needs, an upper one."""
    assert levine_scaled_gradient_upper(0.01, 10_000, 49, 0.25, 0.001) > math.sqrt(0.01) / 0.25
    dim, alpha = 3, 0.001
    switch = 2 * math.log(1 / alpha) / dim
    below, above = (levine_scaled_gradient_upper(0.0, switch * s, dim, 1.0, alpha) for s in (1 - 1e-9, 1 + 1e-9))
    assert below == pytest.approx(above, rel=1e-8)
    assert levine_scaled_gradient_upper(-100.0, 10_000, 49, 0.25, 0.001) == 0.0


def test_the_epsilon_stands_outside_the_root() -> None:
    """Table 1 in print: the denominator is sqrt(1 + e^2) -+ e, equivalently +-s + sqrt(s^2 + XY +- t)."""
    xy, n, dim, alpha = 0.02, 10_000, 3072, 0.001
    level = math.log(2 / alpha)
    s = math.sqrt(MOHAPATRA_CONSTANT * 2 * n * level / (2 * n * n))
    t = MOHAPATRA_CONSTANT / n * (math.sqrt(2 * dim * level) + level)
    for sign, got in zip((-1, 1), mohapatra_l2_interval(xy, n, n, dim, alpha), strict=True):
        e = s / math.sqrt(xy + sign * t)
        assert got == pytest.approx(math.sqrt(xy + sign * t) / (math.sqrt(1 + e * e) - sign * e), rel=1e-12)
        inside_root = math.sqrt(xy + sign * t) / math.sqrt(1 + e * e - sign * e)
        assert got != pytest.approx(inside_root, rel=1e-3)


def test_the_printed_deviation_is_false_for_gaussians_and_the_sound_one_is_not() -> None:
    """xi1 . xi2 of two N(0, I_d) exceeds sqrt(sqrt2 d L) with probability 3.0e-6 > alpha / 2 = 5e-7."""
    dim, alpha = 3072, 1e-6
    level = math.log(2 / alpha)

    def exceed(t: float) -> float:
        # xi1 . xi2 = (A - B) / 2 with A, B independent chi-square.
        spread = 12 * math.sqrt(2 * dim)
        low, high = dim - spread, dim + spread
        return float(quad(lambda b: chi2.sf(b + 2 * t, dim) * chi2.pdf(b, dim), low, high, limit=200, epsabs=0)[0])

    assert exceed(math.sqrt(math.sqrt(2) * dim * level)) == pytest.approx(3.0e-6, rel=0.02)
    assert exceed(math.sqrt(2 * dim * level) + level) <= alpha / 2


def test_no_condition_on_alpha_and_dimension() -> None:
    """alpha >= 2 exp(-d/16), 0.0935 for 7x7 images, is not needed; few dimensions give finite bounds that cover."""
    found = mohapatra_l2_interval(0.0, 500_000, 500_000, 49, 0.0005)
    assert found.upper == pytest.approx(0.0106, abs=5e-5)
    assert scaled_gradient_l2_interval(0.0, 0.5 * math.sqrt(49 / 500_000), 5e5, 5e5, 0.0005).upper < 0.006


# ---------------------------------------------------------------------------------------------- coverage

_DIM, _N, _REPETITIONS, _ALPHA = 6, 200, 6000, 0.05


def _linear(w: Array) -> Array:
    """f = 1{x_1 + x_2 < 0.7}."""
    return (w[..., 0] + w[..., 1] < 0.7).astype(float)


def _linear_gradient() -> Array:
    beta = np.zeros(_DIM)
    beta[:2] = -norm.pdf(0.7 / math.sqrt(2)) / math.sqrt(2)
    return beta


def _flat(w: Array) -> Array:
    """f = 1{|x| > 2}: no gradient, by symmetry."""
    return ((w * w).sum(-1) > 4).astype(float)


CLASSIFIERS = {"linear": (_linear, _linear_gradient()), "flat": (_flat, np.zeros(_DIM))}


def _half_means(f: Callable[[Array], Array], antithetic: bool, seed: int) -> tuple[Array, Array]:
    """X and Y of many repetitions, from _N / 2 samples each (or pairs, if antithetic)."""
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(2):
        parts = []
        for _ in range(6):
            w = rng.standard_normal((_REPETITIONS // 6, _N // 2, _DIM))
            weight = 0.5 * (f(w) - f(-w)) if antithetic else f(w) - 0.5
            parts.append(np.einsum("rnd,rn->rd", w, weight) / (_N // 2))
        halves.append(np.concatenate(parts))
    return halves[0], halves[1]


def _covers(misses: NDArray[np.bool_]) -> bool:
    """Whether the number of misses is consistent with alpha; wrong with probability below 1e-6."""
    return binomtest(int(misses.sum()), len(misses), _ALPHA, alternative="greater").pvalue > 1e-6


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_l2_intervals_cover(name: str, antithetic: bool) -> None:
    f, beta = CLASSIFIERS[name]
    x, y = _half_means(f, antithetic, seed=0)
    product, length, truth = (x * y).sum(1), np.linalg.norm(y, axis=1), np.linalg.norm(beta)
    local = scaled_gradient_l2_interval(product, length, _N // 2, _N // 2, _ALPHA)
    theirs = mohapatra_l2_interval(product, _N // 2, _N // 2, _DIM, _ALPHA)
    for found in (local, theirs):
        assert _covers(found.upper < truth)
        assert _covers(found.lower > truth)
    assert local.upper.mean() < theirs.upper.mean()
    # Projections of the means bound the projected gradient: one coordinate, and all others.
    for own in (slice(0, 1), slice(1, None)):
        product, length, inside = (x * y)[:, own].sum(1), np.linalg.norm(y[:, own], axis=1), np.linalg.norm(beta[own])
        part = scaled_gradient_l2_interval(product, length, _N // 2, _N // 2, _ALPHA)
        assert _covers(part.upper < inside)
        assert _covers(part.lower > inside)
    # Planted mistakes: the lower bound used as an upper one; a deviation left out.
    if name == "linear":
        assert not _covers(local.lower < truth)
        forgotten = scaled_gradient_l2_interval((x * y).sum(1), 0 * length, _N // 2, 10**9, _ALPHA)
        assert not _covers(forgotten.lower > truth)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_l1_and_linf_deviations_cover(name: str) -> None:
    f, beta = CLASSIFIERS[name]
    x, y = _half_means(f, False, seed=1)
    mean = 0.5 * (x + y)
    off_inf = np.abs(np.abs(mean).max(1) - np.abs(beta).max())
    off_one = np.abs(np.abs(mean).sum(1) - np.abs(beta).sum())
    linf = scaled_gradient_linf_deviation(_N, _DIM, _ALPHA)
    l1 = scaled_gradient_l1_deviation(_N, _DIM, _ALPHA)
    assert _covers(off_inf > linf)
    assert _covers(off_one > l1)
    # The estimate itself is no bound.
    assert not _covers(off_inf > 0.3 * linf)
    assert not _covers(off_one > 0.15 * l1)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_levine_covers(name: str) -> None:
    f, beta = CLASSIFIERS[name]
    rng = np.random.default_rng(2)
    pairs = 20
    w, v = rng.standard_normal((2, 6000, pairs, _DIM))
    mean = np.einsum("rpd,rpd,rp,rp->r", w, v, f(w), f(v)) / pairs
    upper = levine_scaled_gradient_upper(mean, pairs, _DIM, 1.0, _ALPHA)
    assert _covers(upper < np.linalg.norm(beta))
    if name == "linear":
        assert not _covers(np.sqrt(np.maximum(mean, 0)) < np.linalg.norm(beta))


def test_the_local_bound_is_worth_it() -> None:
    """Upper bounds at no gradient, failure 5e-4, d = 49, n = 10^6: .330 Levine, .0106 Mohapatra, .0055 local."""
    n, dim, alpha = 10**6, 49, 5e-4
    assert levine_scaled_gradient_upper(0.0, n // 2, dim, 1.0, alpha) == pytest.approx(0.330, abs=5e-4)
    length = 0.5 * math.sqrt(dim / (n / 2))
    assert scaled_gradient_l2_interval(0.0, length, n // 2, n // 2, alpha).upper == pytest.approx(0.0055, abs=1e-4)


# ------------------------------------------------------------------------------------------ shares, edges


@pytest.mark.parametrize("theorem", ALPHA_SHARES)
def test_shares_of_alpha_add_up_to_one(theorem: str) -> None:
    shares = ALPHA_SHARES[theorem]
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-15)
    assert all(share > 0 for share in shares.values())


def test_edges_and_shapes() -> None:
    empty = scaled_gradient_l2_interval(0.0, 0.0, 10**8, 10**8, 0.001)
    assert empty.lower == 0.0 < empty.upper < 1e-3
    hopeless = scaled_gradient_l2_interval(-5.0, 0.1, 100, 100, 0.001)
    assert hopeless.lower == 0.0 <= hopeless.upper < 1
    assert np.isfinite(scaled_gradient_l2_interval(0.3, 1.0, 1, 1, 1e-12)).all()
    assert scaled_gradient_l2_interval(np.zeros(3), np.ones((2, 1)), 10, 10, 0.05).upper.shape == (2, 3)
    assert isinstance(kappa_local(0.5), np.float64)
    assert isinstance(scaled_gradient_linf_deviation(100, 3, 0.05), np.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kappa_local(-1.0), "lam must be >= 0"),
        (lambda: scaled_gradient_l2_interval(0.1, -1.0, 10, 10, 0.05), "second_norm must be >= 0"),
        (lambda: scaled_gradient_l2_interval(0.1, 1.0, 0, 10, 0.05), "n_first must be finite and > 0"),
        (lambda: scaled_gradient_l2_interval(math.nan, 1.0, 10, 10, 0.05), "product must not be NaN"),
        (lambda: scaled_gradient_l2_interval(0.1, 1.0, 10, 10, 1.0), r"alpha must lie in \(0, 1\)"),
        (lambda: scaled_gradient_linf_deviation(10, 3, 0.05, constant="x"), "constant must be one of"),
        (lambda: scaled_gradient_l1_deviation(10, 0, 0.05), "dim must be finite and > 0"),
        (lambda: levine_scaled_gradient_upper(0.1, 10, 3, 0.0, 0.05), "sigma must be finite and > 0"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
