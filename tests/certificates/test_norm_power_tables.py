"""l-infinity tables: sound against brute force and the l2 family, kept in a cache, and what they are worth."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import (
    norm_power_l2_radius,
)
from lightning_rs.certificates.norm_power_linf import (
    mixed_norm_linf_radius,
    pure_linf_radius,
)
from lightning_rs.noise.norm_power import PureLinfNoise, matched_sigma
from lightning_rs.numerics import linf_table as tables
from lightning_rs.numerics.linf_statistics import (
    MixedCorner,
    sign_patterns,
)
from lightning_rs.numerics.linf_table import (
    LinfTable,
    build_table,
    cache_path,
    linf_table,
    read_table,
)
from lightning_rs.numerics.norm_power_quadrature import LogRatioLaw
from lightning_rs.numerics.tail_bounds import one_step_tail_lower
from tests.certificates.brute_force import cube_grid, polar_grid, score_needed
from tests.certificates.norm_power import corner_score, scores, small


@pytest.mark.parametrize(
    "settings",
    [
        small("mixed", 2, 1.0, draws=20_000),
        small("mixed", 2, 0.5, 0.8, draws=20_000),
        small("pure", 2, 1.0, draws=20_000),
    ],
    ids=lambda settings: f"{settings.family}-{settings.k_2}",
)
def test_table_against_brute_force_in_the_plane(settings):
    """The table asks for at least the exact probability, and for little more."""

    def log_density(z):
        largest, square = np.abs(z).max(-1), (z**2).sum(-1)
        exponent = square if settings.family == "mixed" else largest**2
        return -0.5 * exponent - settings.k_inf * np.log(largest) - 0.5 * settings.k_2 * np.log(square)

    table, grid = build_table(settings), polar_grid(700, 480)
    for r in (0.1, 0.5, 1.5):
        exact = score_needed(log_density, np.array([r, r]), grid)
        asked = scores(table, np.array([r]))[0]
        assert exact - 2e-3 < asked < exact + 0.06


def test_table_against_brute_force_in_space():
    def log_density(z):
        return -0.5 * (z**2).sum(-1) - 1.5 * np.log(np.abs(z).max(-1))

    table, grid = build_table(small("mixed", 3, 1.5, draws=20_000)), cube_grid(50)
    for r in (0.2, 0.8):
        exact = score_needed(log_density, np.full(3, r), grid)
        assert exact - 5e-3 < scores(table, np.array([r]))[0] < exact + 0.06


@pytest.mark.parametrize(("dim", "k_2"), [(50, 20.0), (50, 0.0), (784, 300.0)])
def test_table_without_maximum_power_is_the_l2_family_over_sqrt_d(dim, k_2):
    """The l2 family's exact quadrature is an independent answer at k_inf = 0, the corner having l2 norm r sqrt(d)."""
    table = build_table(small("mixed", dim, 0.0, k_2))
    q = np.array([0.3, 0.1, 0.01, 1e-4])
    exact = norm_power_l2_radius(q_upper=q, sigma=1.0, k=k_2, dim=dim) / math.sqrt(dim)
    got = table.radius(q)
    assert (got < exact).all()
    # 4,000 draws: a few hundredths of a score, so more of a small radius.
    assert (got > exact * [0.85, 0.93, 0.96, 0.97]).all()


def test_tables_fail_no_more_often_than_beta_and_a_planted_mistake_is_caught(monkeypatch):
    """25 tables at beta = 0.1: sound ones are rarely wrong anywhere, those without a confidence bound nearly always.

    P(Bin(25, 0.1) > 13) < 1e-6, so a failure here is a mistake.
    """
    exact_r = np.geomspace(0.005, 2.0, 60)
    exact = np.log(LogRatioLaw(4, 2.0).tail_needed(2.0 * exact_r))
    planted, wrong = [], np.zeros(2, dtype=np.int64)

    def spy(mean, variance, n, beta, m):
        planted.append(np.exp(m) * np.maximum(mean - 0.5, 0.0))
        return one_step_tail_lower(mean, variance, n, beta, m)

    monkeypatch.setattr(tables, "one_step_tail_lower", spy)
    for seed in range(25):
        table = build_table(small("mixed", 4, 0.0, 2.0, beta=0.1, draws=1000, patterns=2, seed=seed))
        inside = (table.radii > 0.005) & (table.radii < 2.0)
        truth = np.exp(np.interp(np.log(table.radii), np.log(exact_r), exact)) * (1 + 1e-3)
        wrong += [bool((tails > truth)[inside].any()) for tails in (table.tails, planted[-1])]
    assert wrong[0] <= 13
    assert wrong[1] > 13


def test_table_hands_the_right_numbers_to_the_bound(monkeypatch):
    """Fresh draws after the pilot, medians from the pilot alone, one event of beta / J a radius."""
    settings, seen = small("mixed", 10, 3.0, 1.0, draws=2500, beta=1e-3), {}

    def spy(mean, variance, n, beta, m):
        seen.update(mean=mean, variance=variance, n=n, beta=beta, m=m)
        return one_step_tail_lower(mean, variance, n, beta, m)

    monkeypatch.setattr(tables, "one_step_tail_lower", spy)
    table = build_table(settings)
    assert seen["n"] == 2500
    assert seen["beta"] * len(table.radii) == pytest.approx(1e-3)
    law, generator = MixedCorner(10, 3.0, 1.0), torch.Generator().manual_seed(0)
    signs = sign_patterns(10, 8, generator)
    pilot = law.draw(1000, signs, generator)
    chunks = [law.draw(rows, signs, generator) for rows in (2000, 500)]
    for j in (0, 100, 250, -1):
        r = table.radii[j] / (1 - 1e-9)
        m = float(law.log_ratio(pilot, r).median())
        assert seen["m"][j] == pytest.approx(m, rel=1e-9)
        weight = np.concatenate([np.minimum(1, np.exp(law.log_ratio(c, r).numpy() - m)).mean(1) for c in chunks])
        assert seen["mean"][j] == pytest.approx(weight.mean() - tables.LAW_ERROR, rel=1e-9)
        assert seen["variance"][j] == pytest.approx(weight.var(ddof=1), rel=1e-9)


def test_draws_in_parts_are_draws(monkeypatch):
    """The pilot of a table at d = 150,528 would otherwise take 5 GB."""
    law, generator = MixedCorner(10, 3.0, 0.0), torch.Generator().manual_seed(0)
    signs = sign_patterns(10, 4, generator)
    sizes = []
    monkeypatch.setattr(
        MixedCorner, "draw", lambda self, rows, *a, _draw=MixedCorner.draw: sizes.append(rows) or _draw(self, rows, *a)
    )
    whole = law.draw_in_parts(25, signs, generator, 100)
    assert sizes == [10, 10, 5]
    assert whole.high.shape == whole.total.shape == (25, 4)
    assert whole.largest.shape == (25, 1)
    assert (whole.high.abs().amax(1) <= whole.largest[:, 0]).all()
    assert law.draw_in_parts(3, signs, generator, 1).low.shape == (3, 4)
    assert sizes[3:] == [1, 1, 1]


def test_table_lookup():
    table = LinfTable(np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.25, 0.0]))
    tails = np.array([0.5, 0.4, 0.3, 0.25, 0.2, 1e-300, 0.0])
    assert table.radius(tails).tolist() == [0.0, 0.1, 0.1, 0.2, 0.2, 0.2, np.inf]


def test_tables_are_monotone_and_repeat():
    settings = small("mixed", 20, 5.0, draws=1000)
    first, second = build_table(settings), build_table(settings)
    assert np.array_equal(first.tails, second.tails)
    assert (np.diff(first.tails) <= 0).all()
    assert (np.diff(first.radii) > 0).all()
    assert not np.array_equal(first.tails, build_table(small("mixed", 20, 5.0, draws=1000, seed=1)).tails)


def test_cache_round_trip_and_every_kind_of_damage(monkeypatch, caplog):
    settings = small("pure", 6, 2.0, draws=1000, seed=11)
    built = []
    original = build_table
    monkeypatch.setattr(tables, "build_table", lambda s: built.append(s) or original(s))
    fresh = linf_table.__wrapped__(settings)
    path = cache_path(settings)
    again = linf_table.__wrapped__(settings)
    assert len(built) == 1
    assert np.array_equal(fresh.tails, again.tails)
    assert np.array_equal(fresh.radii, again.radii)
    good = path.read_text()
    stored = json.loads(good)
    assert stored["settings"]["beta"] == 1e-4
    bigger = {**stored, "tails": [2 * q for q in stored["tails"]]}
    unsigned = {key: value for key, value in stored.items() if key != "sha256"}
    for damage in (good[:-20], json.dumps(bigger), json.dumps(unsigned), "[]", ""):
        path.write_text(damage)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(linf_table.__wrapped__(settings).tails, fresh.tails)
        assert "is built again" in caplog.text
        caplog.clear()
        assert path.read_text() == good
    assert len(built) == 6
    # A faithful file of another noise under this name is foreign.
    other = small("pure", 6, 2.0, draws=1000, seed=12)
    linf_table.__wrapped__(other)
    path.write_text(cache_path(other).read_text())
    assert read_table(path, settings) is None


def test_unwritable_cache_only_costs_time(monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(tables.CACHE, str(blocked))
    with caplog.at_level(logging.WARNING):
        assert (linf_table.__wrapped__(small("pure", 5, 1.0, draws=1000)).tails > 0).any()
    assert "could not be stored" in caplog.text


def test_mixed_norm_at_the_papers_k_shrinks_the_radius():
    """d = 3072, k = 250: the probability that Gaussian noise of equal norm needs is not enough, by far."""
    sigma = matched_sigma(1.0, 250, 3072)
    fractions = np.array([0.25, 0.5, 1.0, 2.0, 3.0])  # of sigma_0 / sqrt(d): what Gaussian noise needs as scores
    asked = scores(linf_table(small("mixed", 3072, 250.0)), fractions / math.sqrt(3072) / sigma)
    np.testing.assert_allclose(asked, [0.507, 0.937, 1.674, 2.924, 4.045], atol=0.06)
    assert (asked > [0.507, 0.937, 1.674, 2.924, 4.045]).all()
    # Certified radius at equal p over the Gaussian's: minus a quarter to a half.
    p = ndtr(np.array([0.5, 1.67, 4.0]))
    ratio = mixed_norm_linf_radius(p, sigma, 250, 3072, draws=4000) / (gaussian_l2_radius(p, 1.0) / math.sqrt(3072))
    assert (ratio > [0.40, 0.5, 0.68]).all()
    assert (ratio < [0.51, 0.61, 0.76]).all()


def test_small_powers_change_nothing():
    z, error = corner_score(MixedCorner(3072, 5.0, 0.0), 1 / math.sqrt(3072) / matched_sigma(1.0, 5, 3072), 800, 32)
    assert abs(z - 1.0) < 5 * error + 0.003


def test_pure_family_is_hopeless_in_high_dimension():
    """d = 3072, equal RMS norm: a quarter of the Gaussian radius asks for p > 0.999 instead of 0.6."""
    noise = PureLinfNoise(1.0, 500.0, 3072)
    r = 0.25 / math.sqrt(3072) / noise.scale
    assert scores(linf_table(small("pure", 3072, 500.0, draws=20_000)), np.array([r]))[0] > 3.2
    assert pure_linf_radius(0.9, noise.scale, 500.0, 3072, draws=20_000) < 0.1 * gaussian_l2_radius(
        0.9, 1.0
    ) / math.sqrt(3072)


def test_linf_radius_functions_scale_and_refuse():
    radius = mixed_norm_linf_radius([0.4, 0.5, 0.9, 0.99, 1.0], 2.0, 5.0, 20, draws=1000)
    assert radius[:2].tolist() == [0.0, 0.0]
    assert (np.diff(radius[1:]) > 0).all()
    assert radius[-1] == np.inf
    np.testing.assert_allclose(mixed_norm_linf_radius(0.9, 0.5, 5.0, 20, draws=1000) * 4, radius[2], rtol=1e-14)
    assert mixed_norm_linf_radius(q_upper=0.1, sigma=2.0, k_inf=5.0, dim=20, draws=1000) == radius[2]
    assert isinstance(pure_linf_radius(0.9, 1.0, 2.0, 6, draws=1000), np.float64)
    with pytest.raises(ValueError, match=r"k_inf \+ k_2 must be at most dim - 0.25"):
        mixed_norm_linf_radius(0.9, 1.0, 5.0, 5)
    with pytest.raises(ValueError, match="beta must lie in"):
        mixed_norm_linf_radius(0.9, 1.0, 1.0, 5, beta=0.0)
    with pytest.raises(ValueError, match="draws must be a whole number >= 1000, got 10"):
        pure_linf_radius(0.9, 1.0, 1.0, 5, draws=10)
