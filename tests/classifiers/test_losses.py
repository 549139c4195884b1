"""The losses as pure functions: oracles, identities, closed-form gradients, edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rs.classifiers.catrs import catrs_low, divergence
from lightning_rs.classifiers.consistency import consistency_loss
from lightning_rs.classifiers.macer import macer_loss, robustness_loss, soft_cross_entropy
from lightning_rs.classifiers.smoothadv import smoothadv_objective
from lightning_rs.classifiers.smoothmix import smoothmix_loss
from lightning_rs.classifiers.soft_radius import soft_radius
from lightning_rs.classifiers.stability import stability_loss, stability_pair_loss
from lightning_rs.noise import GaussianNoise, LaplaceNoise, Noise, NormPowerNoise, SplittingNoise, UniformNoise
from tests.oracles import oracle_cases

LOSSES = {"macer_loss": macer_loss, "consistency_loss": consistency_loss, "smoothadv_objective": smoothadv_objective}


def logits(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def labels(images: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", [case for group in LOSSES for case in oracle_cases(group)], ids=lambda c: c["group"])
def test_oracles(case: dict[str, Any]) -> None:
    inputs = dict(case["inputs"])
    z, y = torch.tensor(inputs.pop("logits"), dtype=torch.float64), torch.tensor(inputs.pop("labels"))
    assert float(LOSSES[case["group"]](z, y, **inputs)) == pytest.approx(case["expected"], rel=case["rtol"])


def test_consistency_is_a_soft_cross_entropy_when_both_weights_are_equal() -> None:
    z, y = logits(4, 7, 5), labels(7, 5)
    mean = z.softmax(-1).mean(0)
    soft = -(mean * z.log_softmax(-1)).sum(-1).mean()
    plain = torch.nn.functional.cross_entropy(z.flatten(0, 1), y.repeat(4))
    assert float(consistency_loss(z, y, 3.0, 3.0) - plain) == pytest.approx(3.0 * float(soft), rel=1e-13)
    jensen_shannon = (z.softmax(-1) * (z.log_softmax(-1) - mean.log())).sum(-1).mean()
    assert float(consistency_loss(z, y, 1.0, 0.0) - plain) > 1.5 * float(jensen_shannon)


def test_the_mean_of_consistency_is_not_detached() -> None:
    # Closed form: dL/dz_i = [ CE part + lam (F_i - Fbar) + F_i o (a - <F_i, a>) ] / m, K5 with this a.
    z, y, lam, eta = logits(3, 6, 4).requires_grad_(True), labels(6, 4), 2.0, 0.5
    (found,) = torch.autograd.grad(consistency_loss(z, y, lam, eta), z)
    with torch.no_grad():
        f = z.softmax(-1)
        mean, onehot = f.mean(0), torch.nn.functional.one_hot(y, 4)
        a = lam * (mean.log() - f.log().mean(0)) - eta * mean.log()
        through_mean = f * (a - (f * a).sum(-1, keepdim=True))
        expected = (f - onehot + lam * (f - mean) + through_mean) / 3 / 6
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_macer_has_its_closed_form_gradient(dtype: torch.dtype) -> None:
    z, y = logits(8, 40, 5, scale=0.1, dtype=dtype), labels(40, 5)
    sigma, gamma, beta = 0.5, 8.0, 16.0
    z.requires_grad_(True)
    law = soft_radius(GaussianNoise(sigma), (4,))
    (found,) = torch.autograd.grad(robustness_loss(z, y, law, gamma, beta).sum(), z)
    with torch.no_grad():
        each = (beta * z.double()).softmax(-1)
        top, where = each.mean(0).topk(2)
        quantile = torch.special.ndtri(top)
        counts = (where[:, 0] == y) & (quantile.diff().abs()[:, 0] <= gamma)
        density = torch.exp(-0.5 * quantile.square()) / math.sqrt(2 * math.pi)
        slope = torch.zeros(40, 5, dtype=torch.float64).scatter_(
            1, where, torch.tensor([-1.0, 1.0]) * sigma / 2 / density
        )
        expected = beta / 8 * each * (slope - (each * slope).sum(-1, keepdim=True)) * counts[:, None]
    assert 3 < int(counts.sum()) < 40
    scale = expected.abs().max()
    assert torch.allclose(found.double() / scale, expected / scale, rtol=0, atol=1e-6)


def test_macer_leaves_out_images_without_finite_radius() -> None:
    sure = torch.zeros(4, 3, 3)
    sure[:, :, 0] = 500.0  # G is exactly (1, 0, 0) in float32
    z, y = sure.requires_grad_(True), torch.tensor([0, 1, 0])
    loss = macer_loss(z, y, sigma=0.5, lam=16.0, gamma=8.0, beta=16.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()
    z.grad = None
    mixed = torch.cat([sure.detach(), logits(4, 2, 3, scale=0.05, dtype=torch.float32)], 1).requires_grad_(True)
    many = torch.tensor([0, 0, 0, *mixed.detach().softmax(-1).mean(0).argmax(-1)[3:].tolist()])
    macer_loss(mixed, many, sigma=0.5, lam=16.0, gamma=8.0, beta=16.0).backward()
    assert torch.isfinite(mixed.grad).all()
    assert mixed.grad[:, 3:].abs().sum() > 0


def test_macer_without_robustness_is_the_soft_smoothed_cross_entropy() -> None:
    z, y = logits(4, 6, 3), labels(6, 3)
    soft = -(z.softmax(-1).mean(0)[torch.arange(6), y] + 1e-10).log().mean()
    assert float(macer_loss(z, y, 0.5, 0.0, 8.0, 16.0)) == pytest.approx(float(soft), rel=1e-12)
    assert float(soft) < float(torch.nn.functional.cross_entropy(z.flatten(0, 1), y.repeat(4)))
    assert float(soft_cross_entropy(z[:1], y).mean()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(z[0], y)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("noise", "radius"),
    [
        (GaussianNoise(0.5), lambda p, q: 0.25 * (torch.special.ndtri(p) - torch.special.ndtri(q))),
        (UniformNoise(0.7), lambda p, q: 0.7 * (p - q)),
        (SplittingNoise(0.7), lambda p, q: 0.7 * (p - q)),
        (LaplaceNoise(0.3), lambda p, q: 0.15 * (-torch.log(2 * (1 - p)) - torch.log(2 * q))),
    ],
    ids=["gaussian", "uniform", "splitting", "laplace"],
)
def test_a_law_has_its_own_soft_radius(noise: Noise, radius: Any) -> None:
    law = soft_radius(noise, (4,))
    p, q = torch.tensor([0.6, 0.8, 0.97], dtype=torch.float64), torch.tensor([0.3, 0.15, 0.02], dtype=torch.float64)
    assert torch.allclose(law.unit * (law.score(p) - law.score(q)), radius(p, q), rtol=1e-12)


def test_a_tabulated_soft_radius_is_the_certificates() -> None:
    from lightning_rs.functional import norm_power_l2_radius

    law = soft_radius(NormPowerNoise(0.5, k=4.0, dim=24, match="none"), (24,))
    p = torch.tensor([0.55, 0.7, 0.9, 0.99, 0.9999], dtype=torch.float64, requires_grad=True)
    score = law.score(p)
    exact = norm_power_l2_radius(p.detach().numpy(), 0.5, 4.0, 24)
    assert (2 * law.unit * score).tolist() == pytest.approx(exact.tolist(), rel=2e-2)
    assert torch.allclose(law.score(1 - p), -score, rtol=1e-9)
    (slope,) = torch.autograd.grad(score.sum(), p)
    assert (slope > 0).all()


def test_the_plug_in_objective_weighs_copies_by_their_share() -> None:
    z, y = logits(5, 3, 4).requires_grad_(True), labels(3, 4)
    (found,) = torch.autograd.grad(smoothadv_objective(z, y) * 3, z)
    each = torch.nn.functional.cross_entropy(z.flatten(0, 1), y.repeat(5), reduction="none").view(5, 3)
    (plain,) = torch.autograd.grad(each.sum(), z)
    share = torch.exp(-each.detach())
    assert torch.allclose(found, share[..., None] / share.sum(0)[:, None] * plain, rtol=1e-11)
    assert float(smoothadv_objective(z.detach(), y)) <= float(each.detach().mean())


def test_the_plug_in_objective_has_a_gradient_where_all_copies_are_lost() -> None:
    z = torch.tensor([[[200.0, 0.0]], [[180.0, 0.0]]]).requires_grad_(True)
    (found,) = torch.autograd.grad(smoothadv_objective(z, torch.tensor([1])), z)
    assert float(found.abs().sum()) > 1


def test_stability_asks_labels_of_the_clean_image_only_and_detaches_nothing() -> None:
    clean, noisy, y = logits(6, 4).requires_grad_(True), logits(6, 4, seed=5).requires_grad_(True), labels(6, 4)
    assert float(stability_loss(clean, noisy, y, 0.0).detach()) == float(
        torch.nn.functional.cross_entropy(clean.detach(), y)
    )
    (by_clean, by_noisy) = torch.autograd.grad(stability_loss(clean, noisy, y, 2.0), (clean, noisy))
    with torch.no_grad():
        target = clean.softmax(-1)
        assert torch.allclose(by_noisy, 2.0 * (noisy.softmax(-1) - target) / 6, rtol=1e-11)
        a = -noisy.log_softmax(-1)
        through = target * (a - (target * a).sum(-1, keepdim=True))
        assert torch.allclose(by_clean, (target - torch.nn.functional.one_hot(y, 4) + 2.0 * through) / 6, rtol=1e-11)


def test_the_l1_form_of_stability() -> None:
    z, y = logits(2, 6, 4), labels(6, 4)
    one, other = z.log_softmax(-1)
    expected = sum(torch.nn.functional.cross_entropy(copy, y) for copy in z) + 12 * torch.nn.functional.kl_div(
        other, one, reduction="batchmean", log_target=True
    )
    assert float(stability_pair_loss(z, y, 12.0)) == pytest.approx(float(expected), rel=1e-12)


def test_smoothmix_masks_images_that_are_wrong_and_keeps_the_batch_size() -> None:
    clean, mixed, lam = logits(3, 5, 4), logits(3, 5, 4, seed=7), torch.linspace(0, 0.5, 5, dtype=torch.float64)
    mean = clean.softmax(-1).mean(0)
    y = mean.argmax(-1)
    y[0] = (y[0] + 1) % 4
    plain = smoothmix_loss(clean, mixed, y, lam, 0.0)
    assert float(plain) == pytest.approx(float(torch.nn.functional.cross_entropy(clean.flatten(0, 1), y.repeat(3))))
    target = (1 - lam[:, None]) * mean + lam[:, None] / 4
    kl = (target * (target.log() - mixed.log_softmax(-1))).sum(-1)[:, 1:].sum() / 15
    assert float(smoothmix_loss(clean, mixed, y, lam, 5.0) - plain) == pytest.approx(5 * float(kl), rel=1e-12)


def test_catrs_divides_by_all_copies_and_compares_with_the_reference() -> None:
    each = torch.tensor([[3.0, 1.0], [1.0, 2.0], [2.0, 6.0]])
    assert catrs_low(each, torch.tensor([1, 3])).tolist() == [pytest.approx(1 / 3), pytest.approx(3.0)]
    p = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    z = logits(2, 2, 3, dtype=torch.float32)
    expected = torch.stack([torch.nn.functional.kl_div(c.log_softmax(-1), p, reduction="none").sum(-1) for c in z])
    assert torch.allclose(divergence(p, z), expected, rtol=1e-5)
