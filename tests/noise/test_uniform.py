"""The uniform law, its parameters, and why it takes no shared v (Proposition 1 of Levine and Feizi 2021)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_rs.certificates.uniform import uniform_l1_radius
from lightning_rs.noise.base import noise_from_dict, noise_to_dict
from lightning_rs.noise.splitting import splitting_noise
from lightning_rs.noise.uniform import UniformNoise


def test_draws_follow_the_uniform_law_in_every_coordinate() -> None:
    out = torch.empty(20_000, 3)
    UniformNoise(lam=0.7).draw_(out, torch.Generator().manual_seed(1))
    for column in out.double().numpy().T:
        assert stats.kstest(column, "uniform", args=(-0.7, 1.4)).pvalue > 1e-4
    assert abs(np.corrcoef(out.T.numpy())[0, 1]) < 5 / math.sqrt(20_000)


def test_sigma_is_the_standard_deviation() -> None:
    out = torch.empty(100_000, 1)
    noise = UniformNoise(sigma=0.5)
    noise.draw_(out, torch.Generator().manual_seed(2))
    assert noise.sigma == pytest.approx(0.5, rel=1e-15)
    assert noise.lam == pytest.approx(0.5 * math.sqrt(3), rel=1e-15)
    assert float(out.std()) == pytest.approx(0.5, rel=0.01)


def test_it_is_added() -> None:
    x = torch.rand(5, 1, 2, 2)
    noisy = UniformNoise(lam=0.25)(x, torch.Generator().manual_seed(3))
    difference = (noisy - x).abs()
    assert noisy.shape == x.shape
    assert float(difference.max()) <= 0.25 + 1e-6
    assert float(difference.max()) > 0.15


def test_round_trip_through_plain_values() -> None:
    noise = UniformNoise(sigma=0.15)
    assert noise_from_dict(noise_to_dict(noise)) == noise


@pytest.mark.parametrize(
    "arguments", [{}, {"lam": 1.0, "sigma": 1.0}, {"lam": 0.0}, {"sigma": -1.0}, {"lam": math.inf}]
)
def test_parameters_that_make_no_law_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lam|sigma"):
        UniformNoise(**arguments)


@pytest.mark.parametrize("shared", [{"seed": 0}, {"v": [0, 1]}, {"shape": [2]}])
def test_a_shared_v_is_refused(shared: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="does not take the parameters"):
        noise_from_dict({"class": "UniformNoise", "lam": 0.5, **shared})
    assert "Proposition 1" in (UniformNoise.__doc__ or "")


class TestProposition1:
    """f(z) = 1{z_1 > 0.4 + z_2}, x = (.8, .2), x' = (.6, .4), lam = 1/2."""

    near, far = np.array([0.8, 0.2]), np.array([0.6, 0.4])
    noise = (np.arange(1000) + 0.5) / 1000 - 0.5  # quantiles of U[-1/2, 1/2]

    def _probability(self, x: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean(x[0] + first > 0.4 + x[1] + second))

    def test_correlated_additive_noise_breaks_its_certificate(self) -> None:
        p, p_far = (self._probability(x, self.noise, self.noise) for x in (self.near, self.far))
        assert (p, p_far) == (1.0, 0.0)
        # The "certificate" of the correlated law would cover the counterexample:
        assert uniform_l1_radius(p, 0.5) > np.abs(self.near - self.far).sum()

    def test_independent_additive_noise_keeps_its_certificate(self) -> None:
        first, second = np.meshgrid(self.noise, self.noise)
        p, p_far = (self._probability(x, first, second) for x in (self.near, self.far))
        assert abs(p - p_far) <= np.abs(self.near - self.far).sum() / (2 * 0.5)
        assert p_far < 0.5  # so the certificate may not reach it, and does not:
        assert uniform_l1_radius(p, 0.5) <= np.abs(self.near - self.far).sum()

    def test_correlated_splitting_noise_keeps_its_certificate(self) -> None:
        splits = np.stack([self.noise, self.noise], axis=1) + 0.5
        copies = [2 * splitting_noise(x, splits, 0.5) - 0.5 for x in (self.near, self.far)]
        changed = np.mean(np.any(copies[0] != copies[1], axis=1))
        assert changed <= np.abs(self.near - self.far).sum() + 1e-9
