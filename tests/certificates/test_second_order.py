"""The second-order radius against oracles, high precision, linear programs and classifiers in closed form."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import norm

from lightning_rs.certificates.second_order import (
    second_order_l2_radius,
    second_order_lower_bound,
    second_order_two_class_l2_radius,
)
from tests.certificates.gaussian_programs import Intervals, random_intervals, second_order_program
from tests.oracles import oracle_cases


def second_order_upper_bound(p: Any, gs: Any, r: Any) -> Any:
    """The mirror image: one minus the bound for the complement, whose tail is p."""
    return 1 - second_order_lower_bound(q_upper=p, scaled_gradient_upper=gs, r=r)


def _peak(q: float) -> float:
    return float(norm.pdf(norm.isf(q)))


@pytest.mark.parametrize("case", oracle_cases("sos_radius"))
def test_radius_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = second_order_l2_radius(q_upper=given["q"], scaled_gradient_upper=given["gs"], sigma=given["sigma"])
    assert radius == pytest.approx(case["expected"]["R"], rel=case["rtol"])
    assert radius <= case["expected"]["R"]


@pytest.mark.parametrize("case", oracle_cases("sos_bounds"))
def test_bound_oracles(case: dict) -> None:
    p, gs, r = (case["inputs"][name] for name in ("p", "gs", "r"))
    assert second_order_lower_bound(p, gs, r) == pytest.approx(case["expected"]["lower"], rel=case["rtol"])
    assert second_order_upper_bound(p, gs, r) == pytest.approx(case["expected"]["upper"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("sos_two_class_radius"))
def test_two_class_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = second_order_two_class_l2_radius(*(given[name] for name in ("pA", "gsA", "pB", "gsB", "sigma")))
    assert radius == pytest.approx(case["expected"]["R"], rel=case["rtol"])
    assert radius <= case["expected"]["R"]


def _high_precision_radius(q: float, gs: float) -> mpmath.mpf:
    """Theorem 1 by bisection in 40 digits, in the tails."""
    with mpmath.workdps(40):
        q, gs, root = mpmath.mpf(q), mpmath.mpf(gs), mpmath.sqrt(2)

        def inverse(x: mpmath.mpf) -> mpmath.mpf:
            """Phi^-1 by Newton's method from the float64 value, which doubles its digits twice."""
            z = mpmath.mpf(float(ndtri(float(x))))
            for _ in range(2):
                z -= (mpmath.erfc(-z / root) / 2 - x) / mpmath.npdf(z)
            return z

        low, high = mpmath.mpf(0), q / 2
        for _ in range(70):
            a = (low + high) / 2
            slope = mpmath.npdf(inverse(q - a)) - mpmath.npdf(inverse(a))
            low, high = (a, high) if slope > gs else (low, a)
        z_lo, z_hi = inverse(low), -inverse(q - low)
        low, high = mpmath.mpf(0), z_hi
        for _ in range(70):
            r = (low + high) / 2
            missing = (mpmath.erfc((z_hi - r) / root) + mpmath.erfc((r - z_lo) / root)) / 2
            low, high = (r, high) if missing < mpmath.mpf(1) / 2 else (low, r)
        return low


@pytest.mark.parametrize(("q", "share"), [(0.45, 0.3), (0.2, 0.7), (1e-3, 0.5), (1e-12, 0.9), (1e-100, 0.4)])
def test_high_precision_and_never_above(q: float, share: float) -> None:
    gs = share * _peak(q)
    exact = _high_precision_radius(q, gs)
    got = float(second_order_l2_radius(q_upper=q, scaled_gradient_upper=gs, sigma=1.0))
    assert got <= exact
    assert got == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(
    ("p", "share", "r"), [(0.6, 0.5, 0.4), (0.8, 0.2, 1.0), (0.95, 0.7, 1.7), (0.3, 0.4, 0.5), (0.9, 0, 2)]
)
def test_equals_linear_program(p: float, share: float, r: float) -> None:
    gs = share * _peak(1 - p)
    assert second_order_lower_bound(p, gs, r) == pytest.approx(second_order_program(p, gs, r), abs=2e-5)
    complement = 1 - second_order_program(1 - p, gs, r)
    assert second_order_upper_bound(p, gs, r) == pytest.approx(complement, abs=2e-5)


def test_the_sign_of_the_gradient_equation() -> None:
    """Mohapatra's (7b) as printed returns 1.959 for p = .8, gradient .2; the sound radius is 0.929."""
    assert second_order_l2_radius(0.8, 0.2, 1.0) == pytest.approx(0.9290, abs=1e-3)
    # The slab that the printed equation overlooks: its probability really falls to 1/2 at 0.929.
    slab = _slab(0.8, 0.2)
    assert slab.distance() < 0.93


def test_the_gradient_must_be_bounded_from_above() -> None:
    """Levine's section 3.1 says "lower bound": the radius decreases with the gradient."""
    gradients = np.linspace(0, _peak(0.2), 40)
    assert (np.diff(second_order_l2_radius(0.8, gradients, 1.0)) < 0).all()


def _slab(p: float, gs: float) -> Intervals:
    """The interval of probability p and scaled gradient gs, by bisection on its lower end's probability."""
    low, high = 0.0, 0.5 * (1 - p)
    for _ in range(200):
        a = 0.5 * (low + high)
        slope = norm.pdf(norm.ppf(a + p)) - norm.pdf(norm.ppf(a))
        low, high = (a, high) if slope > gs else (low, a)
    return Intervals((float(norm.ppf(low)), float(norm.ppf(low + p))))


@pytest.mark.parametrize("p", [0.51, 0.7, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.9])
def test_tight_on_slabs(p: float, share: float) -> None:
    slab = _slab(p, share * _peak(1 - p))
    radius = second_order_l2_radius(slab.p(), slab.gradient(), 1.0)
    assert slab.distance() - 1e-6 <= radius <= slab.distance() + 1e-12


@pytest.mark.parametrize("p", [0.5001, 0.8, 0.999])
def test_tight_on_half_lines(p: float) -> None:
    """A linear classifier has the largest gradient, and its distance is Cohen's radius."""
    z = float(norm.ppf(p))
    radius = second_order_l2_radius(p, float(norm.pdf(z)), 0.5)
    assert 0.5 * z - 1e-6 <= radius <= 0.5 * z


def test_sound_on_random_two_region_classifiers() -> None:
    rng = np.random.default_rng(0)
    regions = [random_intervals(rng) for _ in range(100)]
    radius = second_order_l2_radius([f.p() for f in regions], [f.gradient() for f in regions], 1.0)
    distance = np.array([f.distance() for f in regions])
    assert (radius <= distance + 1e-12).all()
    cohen = norm.ppf([f.p() for f in regions])
    assert (radius >= cohen - 1e-12).all()
    assert (radius > cohen + 0.01).mean() > 0.5


def test_scales_with_sigma() -> None:
    """The published equations lose a factor 1/sigma in print: with it the radius is sigma times that at 1."""
    sigma = np.array([1e-3, 0.25, 1.0, 1e3])
    assert second_order_l2_radius(0.8, 0.1, sigma) == pytest.approx(sigma * second_order_l2_radius(0.8, 0.1, 1.0))


def test_monotone_in_p() -> None:
    p = 1 - np.geomspace(0.499, 1e-9, 300)
    for gs in (0.0, 1e-6, 0.1, 0.39):
        assert (np.diff(second_order_l2_radius(p, gs, 1.0)) > 0).all()


def test_an_uninformative_gradient_gives_cohen() -> None:
    q = np.geomspace(0.49, 1e-300, 50)
    for gs in (np.inf, 0.3990, norm.pdf(norm.isf(q))):
        assert second_order_l2_radius(q_upper=q, scaled_gradient_upper=gs, sigma=1.0) == pytest.approx(norm.isf(q))


def test_no_gradient_is_just_below_the_symmetric_slab() -> None:
    assert second_order_l2_radius([0.6, 0.9], 0.0, 1.0) == pytest.approx([0.6805, 1.6436], abs=5e-5)


def test_edges() -> None:
    assert second_order_l2_radius(0.5, 0.0, 1.0) == 0.0
    assert second_order_l2_radius(0.2, 0.0, 1.0) == 0.0
    assert second_order_l2_radius(0.0, 0.0, 1.0) == 0.0
    for gs in (0.0, 1e-301, 0.1, np.inf):
        for q in (0.0, 5e-324, 1e-300):
            assert 37.0 < second_order_l2_radius(q_upper=q, scaled_gradient_upper=gs, sigma=1.0) < 37.1
        assert 0 < second_order_l2_radius(q_upper=0.5 - 1e-12, scaled_gradient_upper=gs, sigma=1.0) < 1e-5
    assert isinstance(second_order_l2_radius(0.9, 0.1, 1.0), np.float64)
    assert second_order_l2_radius(np.full((3, 1), 0.9), np.array([0.1, 0.0]), 1.0).shape == (3, 2)


def test_two_class_reduces_to_its_limits() -> None:
    pa, pb = np.array([0.6, 0.45, 0.9]), np.array([0.3, 0.4, 0.05])
    cohen = 0.5 * (norm.ppf(pa) - norm.ppf(pb))
    assert second_order_two_class_l2_radius(pa, np.inf, pb, np.inf, 1.0) == pytest.approx(cohen)
    one_class = second_order_l2_radius(0.8, 0.1, 1.0)
    assert second_order_two_class_l2_radius(0.8, 0.1, 0.2, 0.1, 1.0) == pytest.approx(one_class)
    assert second_order_two_class_l2_radius(0.8, 0.1, 0.9, 0.1, 1.0) == pytest.approx(one_class)
    assert second_order_two_class_l2_radius([0.3, 0.4, 0.0], 0.0, [0.3, 0.5, 0.0], 0.0, 1.0) == pytest.approx(0.0)
    assert np.isfinite(
        second_order_two_class_l2_radius(
            q_upper=1e-300, scaled_gradient_upper=0.0, p_upper=0.0, scaled_gradient_upper_other=0.0, sigma=1.0
        )
    )


def test_two_class_sound_when_a_smaller_class_binds() -> None:
    """With three classes the one with the smaller probability but larger gradient can be the nearer one."""
    steep = second_order_two_class_l2_radius(0.5, 0.1, 0.20, 0.27, 1.0)
    flat = second_order_two_class_l2_radius(0.5, 0.1, 0.25, 0.0, 1.0)
    assert steep < flat


def test_two_class_bounds_cross_at_the_radius() -> None:
    rng = np.random.default_rng(1)
    pa = rng.uniform(0.3, 0.9, 200)
    pb = rng.uniform(0, 1, 200) * np.minimum(pa, 1 - pa)
    ga, gb = rng.uniform(0, 0.4, 200), rng.uniform(0, 0.4, 200)
    r = second_order_two_class_l2_radius(pa, ga, pb, gb, 1.0)
    assert second_order_lower_bound(pa, ga, r) == pytest.approx(second_order_upper_bound(pb, gb, r), abs=1e-12)
    inside = 0.9 * r
    assert (second_order_lower_bound(pa, ga, inside) > second_order_upper_bound(pb, gb, inside)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_lower": 1.2, "scaled_gradient_upper": 0.1, "sigma": 1.0}, "p_lower must lie in"),
        ({"p_lower": math.nan, "scaled_gradient_upper": 0.1, "sigma": 1.0}, "p_lower must not be NaN"),
        ({"p_lower": 0.9, "scaled_gradient_upper": -0.1, "sigma": 1.0}, "scaled_gradient_upper must be >= 0"),
        ({"p_lower": 0.9, "scaled_gradient_upper": math.nan, "sigma": 1.0}, "scaled_gradient_upper must not be NaN"),
        ({"p_lower": 0.9, "scaled_gradient_upper": 0.1, "sigma": 0.0}, "sigma must be finite and > 0"),
        ({"p_lower": 0.9, "scaled_gradient_upper": 0.1}, "sigma must be given"),
        ({"p_lower": 0.9, "sigma": 1.0}, "scaled_gradient_upper must be given"),
        ({"p_lower": 0.9, "q_upper": 0.1, "scaled_gradient_upper": 0.1, "sigma": 1.0}, "exactly one of"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        second_order_l2_radius(**arguments)
