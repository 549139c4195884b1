"""The l1 projection, the values that certificates assert, and how many successes chance explains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import binom, norm

from lightning_rs import DeterministicSplittingNoise, GaussianNoise, LaplaceNoise, UniformNoise
from lightning_rs import functional as F
from lightning_rs.attacks import Geometry
from lightning_rs.certificates.values import evidence_value_lower, law_value_lower
from lightning_rs.noise.splitting import splitting_codes
from tests.oracles import oracle_cases


def test_projection_oracles() -> None:
    for case in oracle_cases("l1_box_projection"):
        found = F.project_l1_box(case["inputs"]["z"], case["inputs"]["x"], case["inputs"]["eps"])
        np.testing.assert_allclose(found, case["expected"], rtol=case["rtol"], atol=1e-12)


def test_projection_is_the_nearest_point_of_ball_and_box() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        d = int(rng.integers(1, 9))
        x, z, eps = rng.random(d).round(1), rng.normal(0.5, 1.5, d), float(rng.random() * d / 2)
        found = F.project_l1_box(z, x, eps)
        assert np.abs(found - x).sum() <= eps + 1e-12
        assert ((found >= -1e-15) & (found <= 1 + 1e-15)).all()
        # Of a convex set, exactly the nearest point has no feasible direction toward z.
        other = np.clip(x + rng.normal(0, 1, (200, d)), 0, 1)
        length = np.abs(other - x).sum(1, keepdims=True)
        other = x + (other - x) * np.minimum(1, eps / np.maximum(length, 1e-30))
        assert ((other - found) @ (z - found)).max() <= 1e-9


def test_projecting_and_clipping_afterwards_wastes_the_budget() -> None:
    x, z = np.array([0.0, 0.0, 1.0, 0.2]), np.array([-1.0, 0.9, 1.8, 0.3])
    assert np.abs(F.project_l1_box(z, x, 0.5) - x).sum() == pytest.approx(0.5)


@pytest.mark.parametrize("domain", [(0.0, 1.0), None])
def test_the_furthest_point_of_ball_and_box_is_that_of_a_linear_program(domain: tuple[float, float] | None) -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        d, eps = 6, float(rng.random() * 3)
        x, g = rng.random(d).round(1), rng.normal(0, 1, d) * (rng.random(d) < 0.8)
        bounds = [(0, eps if domain is None else 1 - v) for v in x] + [(0, eps if domain is None else v) for v in x]
        program = linprog(np.concatenate([-g, g]), A_ub=np.ones((1, 2 * d)), b_ub=[eps], bounds=bounds)
        row = torch.from_numpy(x)[None]
        found = Geometry("l1", domain).furthest(row, torch.from_numpy(g)[None], torch.tensor([eps]))
        assert float((found - row)[0] @ torch.from_numpy(g)) == pytest.approx(-program.fun, abs=1e-6)
        assert float((found - row).abs().sum()) <= eps + 1e-6
        assert domain is None or ((found >= 0) & (found <= 1)).all()


def test_rows_are_projected_by_themselves() -> None:
    rng = np.random.default_rng(1)
    x, z, eps = rng.random((5, 7)), rng.normal(0, 1, (5, 7)), rng.random(5)
    together = F.project_l1_box(z, x, eps)
    for row in range(5):
        np.testing.assert_array_equal(together[row], F.project_l1_box(z[row], x[row], eps[row]))


def test_value_oracles_and_edges() -> None:
    for case in oracle_cases("gaussian_value_lower"):
        found = F.gaussian_value_lower(case["inputs"]["q"], case["inputs"]["r"])
        assert float(found) == pytest.approx(case["expected"], rel=case["rtol"])
        assert float(found) <= float(case["digits"])  # rounded down
    assert F.gaussian_value_lower(0.0, 3.0) == 1.0
    assert F.gaussian_value_lower([1.0, 0.3], math.inf).tolist() == [0.0, 0.0]
    q = np.array([1e-12, 0.01, 0.4])
    radius = F.gaussian_l2_radius(q_upper=q, sigma=1.0)
    np.testing.assert_allclose(F.gaussian_value_lower(q, radius), 0.5, rtol=1e-12)


def test_allowed_oracles_and_definition() -> None:
    for case in oracle_cases("attack_allowed"):
        assert F.attack_allowed(**case["inputs"], beta=1e-6) == case["expected"]
    assert [int(F.attack_allowed(m, 0.001, 1e-3, 1e-6)) for m in (200, 500, 10_000)] == [3, 4, 21]
    assert F.attack_allowed(1000, 0.0, 1e-6, 0.0) == 0
    allowed = int(F.attack_allowed(300, 0.01, 0.01, 0.0))
    assert binom.sf(allowed, 300, 0.01) <= 0.01 < binom.sf(allowed - 1, 300, 0.01)


def test_values_of_laws_hold_with_equality_for_their_worst_classifiers() -> None:
    delta = np.array([0.3, -0.2, 0.0])
    p = 0.9
    gaussian = law_value_lower(GaussianNoise(0.5), 1 - p, delta)
    assert gaussian == pytest.approx(norm.cdf(norm.ppf(p) - np.linalg.norm(delta) / 0.5), rel=1e-9)
    # The region that the shifted cube leaves has mass 1 - .7 * .8 for lam = 1/2.
    assert law_value_lower(UniformNoise(lam=0.5), 1 - p, delta) == pytest.approx(p - (1 - 0.7 * 0.8), rel=1e-9)
    # f = 1{z < t}: P(z + s < t) for Laplace noise of scale b.
    b, shift = 0.4, 0.2
    t = -b * math.log(2 * (1 - p))
    assert t > shift
    value = law_value_lower(LaplaceNoise(b), 1 - p, np.array([shift]))
    assert value == pytest.approx(1 - 0.5 * math.exp(-(t - shift) / b), rel=1e-9)


def evidence_cases() -> list[tuple[dict[str, float], np.ndarray]]:
    """Return bounds as records have them, and a perturbation at the radius that the certificate makes of them."""
    sigma, tail, d = 0.5, 0.1, 9
    one, ones = np.eye(d)[2], np.ones(d)
    second = {"q_upper": tail, "gradient_upper": 0.1}
    first = {"q_upper": tail, "linf_upper": 0.05, "l2_lower": 0.12}
    corner = {"q_upper": tail, "l1_upper": 0.3, "l2_lower": 0.12}
    inside = {"q_upper": tail, "inside_upper": 0.08, "outside_lower": 0.1}
    pairs = {"symmetric_lower": 0.75, "asymmetric_lower": 0.1}
    slope = {**pairs, "gradient_upper": 0.1}
    return [
        (second, one * F.second_order_l2_radius(q_upper=tail, scaled_gradient_upper=0.1, sigma=sigma)),
        (first, -one * F.first_order_l1_radius(q_upper=tail, linf_upper=0.05, l2_lower=0.12, sigma=sigma)),
        (corner, ones * F.first_order_linf_radius(q_upper=tail, l1_upper=0.3, l2_lower=0.12, dim=d, sigma=sigma)),
        (inside, one * F.first_order_subspace_l2_radius(None, 0.08, 0.1, sigma, q_upper=tail)),
        (pairs, one * F.dipole_l2_radius(0.75, 0.1, sigma)),
        (slope, one * F.dipole_gradient_l2_radius(0.75, 0.1, 0.1, sigma)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(6))
def test_values_of_gradient_evidence_reach_one_half_at_the_certified_radius(case: int) -> None:
    bounds, delta = evidence_cases()[case]
    values = [evidence_value_lower(bounds, 0.5, share * delta) for share in (0.5, 1 - 1e-4, 1 + 1e-4)]
    assert all(value is not None for value in values)
    before, inside, outside = (float(value or 0) for value in values)
    assert before > 0.6
    assert inside > 0.5 > outside
    assert inside - outside < 1e-3
    # More than the law of the noise alone knows, where both know something.
    if "q_upper" in bounds:
        assert before > float(law_value_lower(GaussianNoise(0.5), bounds["q_upper"], 0.5 * delta) or 0)


def test_values_of_gradient_evidence_hold_for_classifiers_with_known_gradients() -> None:
    # Half-spaces: p = Phi(z), sigma grad p = phi(z) w, and p at x + delta is Phi(z + w delta / sigma).
    rng, sigma, d = np.random.default_rng(0), 0.5, 9
    for _ in range(60):
        w = rng.normal(0, 1, d)
        w /= np.linalg.norm(w)
        z = rng.uniform(0.5, 2.0)
        gradient, tail = norm.pdf(z) * w, norm.cdf(-z)
        delta = rng.normal(0, 0.2, d)
        kept = delta.copy()
        kept[4:] = 0
        every = (
            ({"gradient_upper": np.linalg.norm(gradient)}, delta),
            ({"linf_upper": np.abs(gradient).max(), "l2_lower": np.linalg.norm(gradient)}, delta),
            ({"l1_upper": np.abs(gradient).sum(), "l2_lower": np.linalg.norm(gradient)}, delta),
            ({"inside_upper": np.linalg.norm(gradient[:4]), "outside_lower": np.linalg.norm(gradient[4:])}, kept),
        )
        for bounds, move in every:
            value = evidence_value_lower({"q_upper": tail, **bounds}, sigma, move)
            assert value is not None
            assert 0 < value <= norm.cdf(z + w @ move / sigma) + 1e-12


def test_moves_on_the_grid_change_the_outcomes_of_one_arc() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        q, d = int(rng.integers(3, 20)), 4
        noise = DeterministicSplittingNoise(
            lam=float(rng.uniform(0.55, 2.0)), shape=(d,), q=q, seed=int(rng.integers(99))
        )
        levels, v = noise.size, noise.v
        if levels < q + 1:
            continue
        every = torch.arange(levels)
        x = torch.from_numpy(rng.integers(0, q + 1, d)).int()
        i = int(rng.integers(d))
        t = int(rng.integers(-int(x[i]), q - int(x[i]) + 1))
        moved = x.clone()
        moved[i] += t
        change = splitting_codes(moved, v, every, levels, q) - splitting_codes(x, v, every, levels, q)
        steps = range(t) if t > 0 else range(t, 0)
        expected = sorted({(int(x[i]) + j - int(v[i])) % levels for j in steps})
        assert change[:, i].nonzero()[:, 0].tolist() == expected
        assert change.abs().sum() == change[:, i].abs().sum() == 2 * q * len(expected)  # 1/2 in units of 1 / (4 q)


@pytest.mark.parametrize("norm_name", ["l1", "l2", "linf"])
@pytest.mark.parametrize("grid", [None, 255])
def test_limited_points_lie_in_ball_box_grid_and_mask(norm_name: str, grid: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (6, 40), generator=generator).float() / 255
    z = x + torch.randn(x.shape, generator=generator)
    eps = torch.linspace(0.02, 1.0, 6)
    mask = torch.arange(40) < 25
    geometry = Geometry(norm_name, (0.0, 1.0), grid, mask=mask)
    found = geometry.limited(z, x, eps)
    assert (geometry.distance(x, found) <= eps.double().numpy()).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.equal(found[:, 25:], x[:, 25:])
    if grid is not None:
        GaussianNoise(1.0).check_input(found, (0.0, 1.0), grid)
    if norm_name != "linf":  # most of a large radius is used
        assert geometry.distance(x, found)[-1] > 0.8


def test_a_subspace_is_kept() -> None:
    basis = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(0))).Q.T
    geometry = Geometry("l2", (0.0, 1.0), None, basis=basis)
    x = torch.full((2, 12), 0.5)
    found = geometry.limited(x + torch.randn(2, 12), x, torch.tensor([0.3, 5.0]))
    move = found - x
    torch.testing.assert_close(move, (move @ basis.T) @ basis, atol=1e-6, rtol=0)
    assert ((found >= -1e-6) & (found <= 1 + 1e-6)).all()
    with pytest.raises(ValueError, match="grid must be None for a subspace"):
        Geometry("l2", (0.0, 1.0), 255, basis=basis)


def test_norms_without_an_attack_are_named() -> None:
    with pytest.raises(ValueError, match="norm 'l3' has no attack"):
        Geometry.of_certificate("l3", (1, 8, 8), None, None)
    with pytest.raises(
        ValueError, match=r"'l2:subspace-0123abcd' needs the vectors of its subspace: .*Attacker\.basis"
    ):
        Geometry.of_certificate("l2:subspace-0123abcd", (1, 8, 8), None, None)
    with pytest.raises(ValueError, match="'l2:subspace-0123abcd' has no attack on a grid"):
        Geometry.of_certificate("l2:subspace-0123abcd", (1, 8, 8), None, 255, np.eye(64)[:3])
    red = Geometry.of_certificate("l2:red", (3, 2, 2), None, None)
    assert red.mask is not None
    assert red.mask.tolist() == [True] * 4 + [False] * 8
