"""The bilateral radius of the l2 family: its table against a solver and brute force."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy.special import ndtr

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import (
    norm_power_l2_radius,
)
from lightning_rs.noise.norm_power import matched_sigma
from lightning_rs.numerics import norm_power_quadrature, norm_power_two_class
from tests.certificates.brute_force import polar_grid, worst_case
from tests.certificates.norm_power import exact_two_class_radius


def two_class_pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random bounds of a class and its strongest rival, with mean scores from 0.003 to 5 and the class from 1 % up."""
    rng = np.random.default_rng(seed)
    u = np.exp(rng.uniform(math.log(0.003), math.log(5.0), count))
    v = rng.uniform(0.0, 1.0, count) * np.minimum(2.8, 5.4 - u)
    return ndtr(-(u - v)), ndtr(-(u + v))


def test_two_class_radius_agrees_with_one_class_and_with_the_gaussian():
    p = np.array([0.55, 0.8, 0.99])
    one_class = norm_power_l2_radius(p, 1.0, 500, 3072)
    np.testing.assert_allclose(norm_power_l2_radius(p, 1.0, 500, 3072, p_upper=1 - p), one_class, rtol=1e-8)
    assert (norm_power_l2_radius(p, 1.0, 500, 3072, p_upper=0.4 * (1 - p)) > one_class).all()
    sigma = matched_sigma(1.0, 500, 3072)
    ours = norm_power_l2_radius(0.45, sigma, 500, 3072, p_upper=0.2)
    assert ours == pytest.approx(gaussian_l2_radius(0.45, 1.0, 0.2), rel=1e-4)
    assert norm_power_l2_radius(0.3, 1.0, 500, 3072, p_upper=0.3) == 0.0
    assert norm_power_l2_radius(1.0, 1.0, 500, 3072, p_upper=0.0) == np.inf


@pytest.mark.parametrize(
    ("dim", "k", "loss"),
    [
        (60, 30.0, 1e-3),
        (784, 128.0, 3e-5),
        (3072, 500.0, 2e-5),
        (150528, 50000.0, 3e-6),
        pytest.param(2, 1.0, 1.0, marks=pytest.mark.slow),
        pytest.param(5, 3.0, 0.05, marks=pytest.mark.slow),
        pytest.param(39, 20.0, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_two_class_table_is_below_the_exact_radius_and_close(dim, k, loss):
    """Against the solver, which shares the quadrature and nothing else. In the plane a corner is not covered."""
    tail, other = two_class_pairs(0, 12)
    exact = exact_two_class_radius(tail, other, dim, k)
    got = norm_power_l2_radius(q_upper=tail, sigma=1.0, k=k, dim=dim, p_upper=other)
    assert (got < exact * (1 + 1e-9)).all()  # the solver's result is itself stepped down by 1e-9
    assert (got >= exact * (1 - loss)).all()
    assert np.median(1 - got / exact) < min(0.1 * loss, 0.01)


def test_two_class_table_at_its_ends_and_beyond():
    """Lowering a score is safe: outside the table the radius is that of the nearest scores inside."""
    tail, other = np.array([0.5, 0.4995, 1e-9, 1e-3, 0.99]), np.array([0.4999, 0.4995, 1e-12, 1e-200, 1e-4])
    exact = exact_two_class_radius(tail, other, 60, 30.0)
    got = norm_power_l2_radius(q_upper=tail, sigma=1.0, k=30.0, dim=60, p_upper=other)
    assert (got < exact * (1 + 1.1e-9)).all()
    assert got[0] == 0.0 < exact[0]  # a mean score below 0.002
    assert got[1] == norm_power_l2_radius(q_upper=0.4995, sigma=1.0, k=30.0, dim=60)
    assert got[2] == norm_power_l2_radius(q_upper=1e-9, sigma=1.0, k=30.0, dim=60)
    assert got[3] > norm_power_l2_radius(q_upper=1e-3, sigma=1.0, k=30.0, dim=60, p_upper=1e-7)
    assert 0.0 < got[4] < exact[4]
    assert norm_power_l2_radius(q_upper=1.0, sigma=1.0, k=30.0, dim=60, p_upper=0.0) == 0.0


def test_two_class_radius_is_monotone():
    q = np.linspace(0.999, 1e-4, 400)
    for rival in (1e-6, 0.01, 0.2):
        radius = norm_power_l2_radius(q_upper=np.maximum(q, rival), sigma=1.0, k=500, dim=3072, p_upper=rival)
        assert (np.diff(radius) >= -1e-5 * radius[1:]).all()


def test_two_class_look_up_solves_nothing(monkeypatch):
    """A thousand images of a thousand distinct pairs: one table, and no solver runs."""
    tail, other = two_class_pairs(1, 1000)
    table = functools.partial(norm_power_l2_radius, None, 1.0, 500, 3072, q_upper=tail, p_upper=other)
    radius = table()
    built = norm_power_two_class.two_class_table.cache_info().misses

    def solver(*args, **kwargs):
        raise AssertionError("a root was searched for")

    monkeypatch.setattr(norm_power_quadrature, "increasing_root", solver)
    assert (table() == radius).all()
    assert norm_power_two_class.two_class_table.cache_info().misses == built


def test_two_class_radius_by_brute_force():
    """In the plane, k = 1: at the returned radius the least of A meets the greatest of B."""

    def log_density(z):
        square = (z**2).sum(-1)
        return -0.5 * square - 0.5 * np.log(square)

    r = exact_two_class_radius(np.array([0.5]), np.array([0.25]), 2, 1.0)[0]
    smallest = worst_case(log_density, np.array([r, 0.0]), polar_grid())
    assert smallest(0.5) == pytest.approx(1 - smallest(0.75), abs=1e-3)
