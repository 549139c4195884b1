"""The Laplace law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_rs.noise.base import noise_from_dict, noise_to_dict
from lightning_rs.noise.laplace import LaplaceNoise


def test_draws_follow_the_laplace_law() -> None:
    out = torch.empty(40_000, 2)
    LaplaceNoise(scale=0.3).draw_(out, torch.Generator().manual_seed(1))
    for column in out.double().numpy().T:
        assert stats.kstest(column, "laplace", args=(0.0, 0.3)).pvalue > 1e-4


def test_sigma_is_the_standard_deviation() -> None:
    out = torch.empty(200_000, 1)
    noise = LaplaceNoise(scale=2.0)
    noise.draw_(out, torch.Generator().manual_seed(2))
    assert noise.sigma == pytest.approx(2 * math.sqrt(2), rel=1e-15)
    assert float(out.std()) == pytest.approx(noise.sigma, rel=0.02)


def test_draws_are_finite_where_the_generator_returns_its_extremes() -> None:
    # 2^26 draws hit the lowest of 2^24 float32 uniforms about four times.
    out = torch.empty(1 << 22, 1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(16):
        LaplaceNoise(scale=1.0).draw_(out, generator)
        assert torch.isfinite(out).all()


def test_round_trip_through_plain_values() -> None:
    noise = LaplaceNoise(scale=0.15)
    assert noise_from_dict(noise_to_dict(noise)) == noise


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_makes_no_law_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must"):
        LaplaceNoise(scale=scale)
