"""First-order radii against oracles, linear programs, closed forms, and brute-force quadrature of the dual."""

from __future__ import annotations

import math
import time

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from lightning_rs.certificates.first_order import (
    first_order_l1_radius,
    first_order_linf_radius,
    first_order_lower_bound,
    first_order_radius,
    first_order_subspace_l2_radius,
)
from lightning_rs.certificates.first_order_norms import FirstOrderLinf
from lightning_rs.certificates.second_order import second_order_l2_radius
from lightning_rs.numerics.dual import Problem, solve, start
from lightning_rs.numerics.quadrature import Multipliers, expectations
from tests.certificates.gaussian_programs import first_order_program
from tests.oracles import oracle_cases

Array = NDArray[np.float64]


def _peak(q: float | Array) -> Array:
    return norm.pdf(norm.isf(q))


@pytest.mark.parametrize("case", oracle_cases("moh_px"))
def test_bound_oracles(case: dict) -> None:
    q, m1, m2, r = (case["inputs"][name] for name in ("q", "m1", "m2", "r"))
    expected = case["expected"]
    bound = first_order_lower_bound(q, m1, m2, r)
    assert bound == pytest.approx(expected["px"], rel=case["rtol"])
    assert bound <= expected["px"]
    problem = Problem(*(np.array([value]) for value in (1 - q, m1, m2, r)))
    a, b, c = solve(problem, start(problem)).at
    assert a / c == pytest.approx(expected["c0"], rel=1e-4)
    assert b / c == pytest.approx(expected["c1"], rel=1e-4)
    assert -math.exp(-r * r / 2) / c == pytest.approx(expected["c2"], rel=1e-4)


@pytest.mark.parametrize("case", oracle_cases("moh_l1_radius"))
def test_l1_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = first_order_l1_radius(given["p"], given["s_linf_up"], given["s_l2_low"], given["sigma"])
    assert radius == pytest.approx(case["expected"]["R"], rel=case["rtol"])
    assert radius <= case["expected"]["R"]


@pytest.mark.parametrize("case", oracle_cases("moh_linf_radius"))
def test_linf_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = first_order_linf_radius(given["p"], given["s_l1_up"], given["s_l2_low"], given["d"], given["sigma"])
    assert radius == pytest.approx(case["expected"]["R_linf"], rel=case["rtol"])
    assert radius <= case["expected"]["R_linf"]


@pytest.mark.parametrize("case", oracle_cases("moh_subspace_l2_radius"))
def test_subspace_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = first_order_subspace_l2_radius(given["p"], given["s_PSl2_up"], given["s_perp_low"], given["sigma"])
    assert radius == pytest.approx(case["expected"]["R"], rel=case["rtol"])
    assert radius <= case["expected"]["R"]


# ------------------------------------------------------------------------------------------ the numerics


@pytest.mark.parametrize("scale", [2e-3, 0.3, 3.0, 40.0])
def test_expectations_stay_inside_their_error_bound(scale: float) -> None:
    """Against the trapezoidal rule on 400,000 points, which is exact to rounding for these analytic integrands."""
    rng = np.random.default_rng(0)
    r = rng.uniform(0.2, 4, 6)
    roots = np.sort(rng.normal(0, 1.5, (2, 6)), axis=0)
    low, high = (np.exp(r * x - r * r / 2) for x in roots)
    b = (high - low) / (roots[1] - roots[0])
    b[0] = 0.0
    at = Multipliers(high - b * roots[1], b, scale * (high + 0.1))
    found = expectations(at, r, np.full(6, 11.0))
    for k in range(6):
        x = np.linspace(-14, 14 + r[k], 400_001)
        law = (28 + r[k]) / 400_000 * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        value = np.exp(r[k] * x - r[k] ** 2 / 2) - at.a[k] - at.b[k] * x
        u = value / at.c[k]
        # fsum: a BLAS product of 400,000 terms errs by more than the bound under test on some processors.
        hinge = math.fsum(law * (value * ndtr(u) + at.c[k] * np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)))
        magnitude = max(1.0, hinge, at.c[k])
        assert abs(found.value[k] - hinge) <= found.error[k] + 2e-15 * magnitude
        assert found.error[k] <= 1e-13 * magnitude
        bump = np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
        moments = [law @ ndtr(u), law @ (x * ndtr(u)), law @ bump]
        assert found.gradient[k] == pytest.approx(moments, abs=1e-12)
        v = np.stack([np.ones_like(x), x, u])
        assert found.curvature[k] == pytest.approx((law * bump / at.c[k] * v) @ v.T, rel=1e-6, abs=1e-9)
        shift = law @ (ndtr(u) * np.exp(r[k] * x - r[k] ** 2 / 2) * (x - r[k]))
        assert found.shift[k] == pytest.approx(shift, abs=1e-12 * magnitude)


@pytest.mark.parametrize("width", [1e-8, 1e-5])
def test_narrow_transitions_in_high_precision(width: float) -> None:
    """c -> 0, where the integrand turns within ``width`` of a root of B."""
    r, low, high = 1.3, -1.1, 1.4
    at_low, at_high = (math.exp(r * x - r * r / 2) for x in (low, high))
    b = (at_high - at_low) / (high - low)
    at = Multipliers(*(np.array([value]) for value in (at_high - b * high, b, width)))
    found = expectations(at, np.array([r]), np.array([11.0]))
    with mpmath.workdps(30):
        a_, b_, c_, r_ = (mpmath.mpf(float(value)) for value in (at.a[0], at.b[0], at.c[0], r))

        def integrand(x: mpmath.mpf) -> mpmath.mpf:
            value = mpmath.exp(r_ * x - r_ * r_ / 2) - a_ - b_ * x
            return mpmath.npdf(x) * (value * mpmath.ncdf(value / c_) + c_ * mpmath.npdf(value / c_))

        cuts = {-16.0, -6.0, 0.0, 6.0, 16.0} | {x + k * width for x in (low, high) for k in (-60, -20, 0, 20, 60)}
        exact = mpmath.quad(integrand, sorted(cuts))
        assert abs(found.value[0] - exact) <= found.error[0] <= 1e-13


def test_any_multipliers_are_sound() -> None:
    """Weak duality: the dual value at arbitrary feasible multipliers never exceeds the best bound."""
    rng = np.random.default_rng(1)
    problem = Problem(*(np.full(50, value) for value in (0.1, -0.05, 0.1, 1.5)))
    best = solve(problem, start(problem)).missing
    at = Multipliers(rng.uniform(0, 5, 50), rng.uniform(0, 5, 50), rng.uniform(0.01, 5, 50))
    arbitrary = solve(problem, at, iterations=0).missing
    assert (arbitrary >= best - 1e-14).all()
    # And from all of them the solver finds the same optimum.
    assert solve(problem, at).missing == pytest.approx(best, abs=1e-12)


def test_residuals_of_the_optimum() -> None:
    """The minimiser's three moments equal the constraints, for p up to 1 - 1e-9."""
    q = np.geomspace(0.45, 1e-9, 40)
    peak = _peak(q)
    problem = Problem(q, -0.2 * peak, 0.5 * peak, norm.isf(q) + 0.2)
    found = solve(problem, start(problem))
    moments = expectations(found.at, problem.r, np.sqrt(norm.isf(q) ** 2 + 100)).gradient
    assert moments[:, 0] == pytest.approx(q, rel=1e-6)
    assert -moments[:, 1] == pytest.approx(problem.m1, rel=1e-5)
    assert moments[:, 2] == pytest.approx(problem.m2, rel=1e-5)
    assert (found.error < 1e-11).all()


# --------------------------------------------------------------------------------- independent references


@pytest.mark.parametrize(
    ("q", "m1", "m2", "r"),
    [
        (0.9, -0.05, 0.1, 1.5),
        (0.6, 0.0, 0.2, 0.4),
        (0.8, -0.25, 0.05, 0.9),
        (0.7, 0.2, 0.15, 1.5),
        (0.95, -0.02, 0.05, 2.0),
        (0.7, -0.3, 0.2, 0.8),
        (0.4, -0.1, 0.2, 0.5),
    ],
)
def test_equals_linear_program(q: float, m1: float, m2: float, r: float) -> None:
    program = first_order_program(q, m1, m2, r)
    bound = first_order_lower_bound(q, m1, m2, r)
    assert bound <= program + 1e-9
    assert bound == pytest.approx(program, abs=2e-3)


class TwoBoxes:
    """The classifier on a plane that is true on two disjoint boxes: p, gradient and shifts in closed form."""

    def __init__(self, rng: np.random.Generator) -> None:
        while True:
            x = np.sort(rng.normal(scale=2.5, size=4)).reshape(2, 2)
            u = np.sort(rng.normal(scale=2.5, size=(2, 2)), axis=1)
            self.x, self.u = x, u
            if self.p() > 0.51:
                return

    def p(self, r: Array | float = 0.0) -> Array:
        low, high = (self.x[:, i, None] - np.atleast_1d(r) for i in (0, 1))
        sides = ndtr(self.u[:, 1]) - ndtr(self.u[:, 0])
        return (sides[:, None] * (ndtr(high) - ndtr(low))).sum(axis=0)

    def moments(self) -> tuple[float, float]:
        mass = [ndtr(ends[:, 1]) - ndtr(ends[:, 0]) for ends in (self.x, self.u)]
        first = [norm.pdf(ends[:, 0]) - norm.pdf(ends[:, 1]) for ends in (self.x, self.u)]
        return float(first[0] @ mass[1]), abs(float(mass[0] @ first[1]))


def test_sound_on_random_two_region_classifiers() -> None:
    rng = np.random.default_rng(2)
    boxes = [TwoBoxes(rng) for _ in range(60)]
    m1, m2 = np.array([f.moments() for f in boxes]).T
    radius = first_order_radius(np.array([f.p()[0] for f in boxes]), m1, m2, 1.0)
    for f, reached in zip(boxes, radius, strict=True):
        assert (f.p(np.linspace(0, reached * (1 - 1e-9), 2000)) > 0.5).all()
    assert (radius > norm.ppf([f.p()[0] for f in boxes]) + 0.01).mean() > 0.5


def test_tight_on_its_worst_classifiers() -> None:
    """{-u <= c(x)}: from c, compute p, m1, m2 and the true distance by quadrature; the radius is that distance."""
    nodes = np.linspace(-12, 12, 4001)
    weights = 0.006 * norm.pdf(nodes)
    for c0, c1, c2, r in ((2.5, 1.0, -0.33, 1.5), (6.0, 2.5, -1.35, 1.4), (1.0, 0.3, -1.5, 0.5)):

        def boundary(x: Array, c0: float = c0, c1: float = c1, c2: float = c2, r: float = r) -> Array:
            return c0 + c1 * x + c2 * np.exp(r * x)

        # Of this family only the member whose own distance is r is a worst case: shift c0 until it is.
        low, high = -20.0, 20.0
        for _ in range(80):
            move = 0.5 * (low + high)
            low, high = (low, move) if weights @ ndtr(boundary(nodes + r) + move) > 0.5 else (move, high)
        c = boundary(nodes) + high
        p, m1, m2 = weights @ ndtr(c), weights @ (nodes * ndtr(c)), weights @ norm.pdf(c)
        assert p > 0.5
        radius = first_order_radius(p, m1, m2, 1.0)
        assert r - 1e-6 <= radius <= r + 1e-9


@pytest.mark.parametrize("p", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("cosine", [1.0, -0.2])
def test_linear_classifiers(p: float, cosine: float) -> None:
    """Along its own gradient the distance is Cohen's; away from it a linear classifier never changes."""
    z = float(norm.ppf(p))
    m1, m2 = -cosine * norm.pdf(z), math.sqrt(1 - cosine**2) * norm.pdf(z)
    radius = first_order_radius(p, m1, m2 * (1 - 1e-6), 1.0)
    if cosine == 1.0:
        assert z - 1e-6 <= radius <= z
    else:
        # Almost determined by its gradient: far beyond the two-point radii, and finite.
        assert second_order_l2_radius(p, 0.0, 1.0) < radius <= 30.0


def test_random_linear_classifiers_are_never_exceeded() -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(size=(200, 8))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    p = rng.uniform(0.51, 0.999, 200)
    z = norm.ppf(p)
    gradient = norm.pdf(z)[:, None] * np.abs(w)
    linf, l1, l2 = gradient.max(1), gradient.sum(1), norm.pdf(z)
    assert (first_order_l1_radius(p, linf, l2 * (1 - 1e-13), 1.0) <= z / np.abs(w).max(1) + 1e-12).all()
    assert (first_order_linf_radius(p, l1, l2 * (1 - 1e-13), 8, 1.0) <= z / np.abs(w).sum(1) + 1e-12).all()
    inside, outside = np.linalg.norm(gradient[:, :3], axis=1), np.linalg.norm(gradient[:, 3:], axis=1)
    subspace = first_order_subspace_l2_radius(p, inside, outside, 1.0)
    assert (subspace <= z / np.linalg.norm(w[:, :3], axis=1) + 1e-12).all()
    assert (subspace >= z).all()


# -------------------------------------------------------------------------------------- laws and limits


def _random_problems(n: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    q = 10 ** rng.uniform(-8, -0.31, n)
    length, angle = _peak(q) * (1 - 10 ** rng.uniform(-4, 0, n)), rng.uniform(0, math.pi, n)
    return q, -length * np.cos(angle), length * np.sin(angle)


def test_monotone_in_all_arguments() -> None:
    q, m1, m2 = _random_problems(150, 4)
    radius = first_order_radius(q_upper=q, m1=m1, m2=m2, sigma=1.0)
    peak = _peak(q)
    assert (first_order_radius(q_upper=q, m1=m1, m2=0.9 * m2, sigma=1.0) <= radius + 1e-9).all()
    assert (first_order_radius(q_upper=q, m1=m1 - 0.1 * peak, m2=m2, sigma=1.0) <= radius + 1e-9).all()
    wider = np.minimum(1.1 * q, 0.5)
    assert (first_order_radius(q_upper=wider, m1=m1, m2=m2, sigma=1.0) <= radius + 1e-9).all()
    assert (radius >= second_order_l2_radius(q_upper=q, scaled_gradient_upper=np.maximum(-m1, 0), sigma=1.0)).all()


def test_every_smaller_distance_is_certified() -> None:
    q, m1, m2 = _random_problems(20, 5)
    radius = first_order_radius(q_upper=q, m1=m1, m2=m2, sigma=1.0)
    for share in (0.2, 0.6, 0.95, 1 - 1e-9):
        assert (first_order_lower_bound(q_upper=q, m1=m1, m2=m2, r=share * radius) > 0.5 - 1e-12).all()
    beyond = first_order_lower_bound(q_upper=q, m1=m1, m2=m2, r=radius * (1 + 1e-6) + 1e-9)
    assert (beyond[radius < 30] < 0.5).all()


def test_without_m2_it_is_the_second_order_radius() -> None:
    for q in (0.4, 0.1, 1e-6):
        for share in (0.0, 0.3, 1.0, 2.0):
            gs = share * _peak(q)
            cohen = second_order_l2_radius(q_upper=q, scaled_gradient_upper=gs, sigma=1.0)
            assert first_order_radius(q_upper=q, m1=-gs, m2=0.0, sigma=1.0) == pytest.approx(cohen, rel=1e-13)
            tiny = first_order_radius(q_upper=q, m1=-gs, m2=1e-5 * _peak(q), sigma=1.0)
            assert cohen * (1 - 1e-13) <= tiny <= cohen + 1e-4


def test_impossible_gradients_fall_back() -> None:
    """A lower bound above the maximum for this p means that an event failed: the radius without it, no infinity."""
    peak = _peak(0.1)
    without = first_order_radius(0.9, -0.05, 0.0, 1.0)
    assert first_order_radius(0.9, -0.05, 1.01 * peak, 1.0) == without
    assert first_order_radius(0.9, -0.05, math.inf, 1.0) == without
    assert first_order_l1_radius(0.9, 0.05, 1.01 * peak, 1.0) == without
    assert first_order_l1_radius(0.9, math.inf, 0.0, 1.0) == pytest.approx(norm.ppf(0.9))
    assert first_order_linf_radius(0.9, math.inf, math.inf, 4, 1.0) == pytest.approx(norm.ppf(0.9) / 2)
    assert first_order_subspace_l2_radius(0.9, 0.05, 1.01 * peak, 1.0) == without
    # An uninformative bound inside, an informative one outside: possible, and worth something.
    assert first_order_subspace_l2_radius(0.9, math.inf, 0.9 * peak, 1.0) > norm.ppf(0.9) + 0.05


def test_edges() -> None:
    assert first_order_radius(0.5, 0.0, 0.1, 1.0) == 0.0
    assert first_order_radius(0.3, 0.0, 0.1, 1.0) == 0.0
    q, m1, m2 = np.meshgrid([1e-300, 1e-120, 1e-30, 1e-12, 0.5 - 1e-9], [-0.5, 0.0, 0.3], [0.0, 0.5, 1.0])
    peak = _peak(q)
    radius = first_order_radius(q_upper=q, m1=m1 * peak, m2=m2 * peak, sigma=1.0)
    base = second_order_l2_radius(q_upper=q, scaled_gradient_upper=np.maximum(-m1, 0) * peak, sigma=1.0)
    assert ((radius >= base * (1 - 1e-13)) & (radius <= 37.1)).all()
    assert first_order_lower_bound(0.8, -0.1, 0.1, 0.0) == pytest.approx(0.8, abs=1e-12)
    assert first_order_lower_bound(0.8, -0.1, 0.1, 100.0) >= 0.0
    assert isinstance(first_order_radius(0.9, -0.1, 0.1, 1.0), np.float64)
    assert first_order_radius(np.full((3, 1), 0.9), np.array([-0.1, 0.0]), 0.05, 1.0).shape == (3, 2)
    assert first_order_lower_bound(np.full((3, 1), 0.9), np.array([-0.1, 0.0]), 0.05, 1.0).shape == (3, 2)


def test_scales_with_sigma_and_dimension() -> None:
    one = first_order_radius(0.9, -0.05, 0.1, 1.0)
    assert first_order_radius(0.9, -0.05, 0.1, [0.25, 1e3]) == pytest.approx([0.25 * one, 1e3 * one])
    # Corollary 3.4 prints no factor 1/sqrt(d) for l-infinity: with it, the corner R (1, ..., 1) has l2 length r.
    linf = first_order_linf_radius(0.9, 0.05 * 10, math.hypot(0.05, 0.1), 100, 1.0)
    assert 10 * linf == pytest.approx(one)


def test_the_sign_of_the_gradient_equation() -> None:
    """Printed (7b) would give 1.959 for p = .8, gradient .2; the same theorem as second order gives 0.929."""
    assert first_order_radius(0.8, -0.2, 0.0, 1.0) == pytest.approx(0.929, abs=1e-3)


def test_linf_in_an_oblique_subspace_is_refused() -> None:
    """Corollary 3.4 is printed for any subspace: along (1, ..., 1) it would claim sqrt(d) times the true distance."""
    dim, z = 9, float(norm.ppf(0.8))
    slope = float(norm.pdf(z)) / math.sqrt(dim) * np.ones(dim)  # the half space across (1, ..., 1)
    truth = z / math.sqrt(dim)
    printed = first_order_linf_radius(0.8, slope.sum(), 0.0, 1, 1.0)  # the span of (1, ..., 1) has one dimension
    assert printed > 2.9 * truth
    assert truth - 1e-6 <= first_order_linf_radius(0.8, slope.sum(), 0.0, dim, 1.0) <= truth
    with pytest.raises(ValueError, match="region must be one of"):
        FirstOrderLinf(region="basis.npy")


def test_the_value_of_dropping_m2() -> None:
    """p = .9, s_inf = .02, s_2 = .15: Cohen 1.282, l2 1.317, l1 without the l2 norm 1.587, with it 1.958."""
    assert second_order_l2_radius(0.9, 0.15, 1.0) == pytest.approx(1.317, abs=5e-4)
    assert first_order_l1_radius(0.9, 0.02, 0.0, 1.0) == pytest.approx(1.587, abs=5e-4)
    assert first_order_l1_radius(0.9, 0.02, 0.15, 1.0) == pytest.approx(1.958, abs=5e-4)


def test_a_hundred_radii_a_second() -> None:
    """The stated speed on one core, solved as one batch, with bounds that are not at their extremes."""
    rng = np.random.default_rng(6)
    q = 10 ** rng.uniform(-6, -0.35, 200)
    length, angle = _peak(q) * rng.uniform(0, 1, 200), rng.uniform(0, math.pi / 2, 200)
    begin = time.process_time()
    first_order_radius(q_upper=q, m1=-length * np.cos(angle), m2=length * np.sin(angle), sigma=1.0)
    assert time.process_time() - begin < 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_lower": 0.9, "m1": -0.1, "m2": -0.1, "sigma": 1.0}, "m2 must be >= 0"),
        ({"p_lower": 0.9, "m1": math.nan, "m2": 0.1, "sigma": 1.0}, "m1 must not be NaN"),
        ({"p_lower": 0.9, "m1": -0.1, "m2": 0.1, "sigma": 0.0}, "sigma must be finite and > 0"),
        ({"p_lower": 0.9, "m1": -0.1, "sigma": 1.0}, "m2 must be given"),
        ({"m1": -0.1, "m2": 0.1, "sigma": 1.0}, "exactly one of"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_order_radius(**arguments)


def test_refuses_a_dimension_below_one() -> None:
    with pytest.raises(ValueError, match="dim must be >= 1"):
        first_order_linf_radius(0.9, 0.1, 0.1, 0.5, 1.0)
    with pytest.raises(ValueError, match="l2_lower must be >= 0"):
        first_order_l1_radius(0.9, 0.1, -0.1, 1.0)
