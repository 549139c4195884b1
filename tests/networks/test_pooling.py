"""Proposition 6 of Cohen et al. (2019): pooled noise, equal distributions, k times the radius."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lightning_rs.networks import LowResolution, build_network


def _linear(low: tuple[int, ...], seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(low)), 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(net[1].weight.shape, generator=generator))
        net[1].bias.copy_(torch.randn(2, generator=generator))
    return net


def _p_of_linear(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, sigma: float) -> float:
    """P(class 0) of a two-class linear classifier under N(0, sigma^2 I): Cohen et al., appendix B."""
    w = (weight[0] - weight[1]).double().flatten()
    margin = w @ x.double().flatten() + (bias[0] - bias[1]).double()
    return float(stats.norm.cdf(margin.item() / (sigma * w.norm().item())))


@pytest.mark.parametrize("k", [2, 4])
def test_pooled_noise_is_white_with_sigma_over_k(k):
    generator = torch.Generator().manual_seed(k)
    sigma, n, side = 0.7, 4000, 4
    noise = sigma * torch.randn(n, 2, side * k, side * k, generator=generator)
    pooled = LowResolution(nn.Identity(), k)(noise).double()
    assert pooled.shape == (n, 2, side, side)
    # The sum of squares over (sigma / k)^2 is chi-squared: a test at level 1e-6, two-sided.
    total = pooled.square().sum().item() / (sigma / k) ** 2
    low, high = stats.chi2.interval(1 - 1e-6, df=pooled.numel())
    assert low < total < high
    assert stats.kstest(pooled.flatten().numpy() * k / sigma, "norm").pvalue > 1e-4
    # No correlation between neighbours: each has standard deviation 1 / sqrt(n).
    correlation = np.corrcoef(pooled.flatten(1).numpy().T) - np.eye(2 * side * side)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(n)


@pytest.mark.parametrize("k", [2, 3])
def test_linear_classifiers_agree_exactly(k):
    low, sigma_low = (1, 3, 5), 0.4
    net = _linear(low, seed=k)
    x = torch.rand(1, 1, 3 * k, 5 * k, generator=torch.Generator().manual_seed(1))
    high = LowResolution(net, k)
    # The composition is linear too: read its weights off and compute both probabilities in closed form.
    basis = torch.eye(15 * k * k).reshape(-1, 1, 3 * k, 5 * k)
    bias = net[1].bias.detach()
    weight_high = (high(basis).detach() - bias).T
    x_low = nn.functional.avg_pool2d(x, k)
    p_low = _p_of_linear(net[1].weight.detach(), bias, x_low, sigma_low)
    p_high = _p_of_linear(weight_high, bias, x, k * sigma_low)
    assert p_high == pytest.approx(p_low, rel=1e-5)
    assert 0.01 < p_low < 0.99
    assert _p_of_linear(weight_high, bias, x, sigma_low) != pytest.approx(p_low, rel=1e-2)  # sigma must scale
    # Radius of Theorem 1, and the true distance to the hyperplane, which it equals for linear classifiers.
    radius_low = sigma_low * stats.norm.ppf(max(p_low, 1 - p_low))
    radius_high = k * sigma_low * stats.norm.ppf(max(p_high, 1 - p_high))
    assert radius_high == pytest.approx(k * radius_low, rel=1e-4)
    w = weight_high[0] - weight_high[1]
    margin = w @ x.flatten() + bias[0] - bias[1]
    assert radius_high == pytest.approx(abs(margin.item()) / w.norm().item(), rel=1e-4)


def test_votes_of_a_nonlinear_network_follow_the_same_law():
    torch.manual_seed(0)
    net = build_network("digits_cnn", 3, (1, 6, 6)).eval()
    high = LowResolution(net, 2).eval()
    x, sigma, n = torch.rand(1, 1, 12, 12), 0.5, 20_000
    with torch.no_grad():
        votes_high = high(x + 2 * sigma * torch.randn(n, 1, 12, 12)).argmax(1).bincount(minlength=3)
        votes_low = (
            net(nn.functional.avg_pool2d(x, 2) + sigma * torch.randn(n, 1, 6, 6)).argmax(1).bincount(minlength=3)
        )
        votes_wrong = high(x + sigma * torch.randn(n, 1, 12, 12)).argmax(1).bincount(minlength=3)
    assert stats.chi2_contingency(torch.stack([votes_high, votes_low]).numpy() + 1).pvalue > 1e-4
    assert stats.chi2_contingency(torch.stack([votes_wrong, votes_low]).numpy() + 1).pvalue < 1e-6


def test_by_name_it_equals_pooling_then_the_base_network():
    torch.manual_seed(0)
    network = build_network(
        "low_resolution", 10, (3, 16, 16), mean=[0.1, 0.2, 0.3], std=0.5, base="cifar_resnet20"
    ).eval()
    base = build_network("cifar_resnet20", 10, (3, 8, 8), mean=[0.1, 0.2, 0.3], std=0.5).eval()
    base.get_submodule("net").load_state_dict(network.get_submodule("net").net.state_dict())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), base(nn.functional.avg_pool2d(x, 2)), rtol=1e-4, atol=1e-5)
