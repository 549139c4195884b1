"""Denoisers before classifiers: schedules by oracle, every convention against an exact model, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_rs.networks import (
    DenoisedNetwork,
    Denoiser,
    DnCNN,
    EpsilonDenoiser,
    NoiseMapDenoiser,
    PlainDenoiser,
    SigmaDenoiser,
    SigmaUNet,
    alphas_cumprod,
    build_network,
    denoising_timestep,
    state_dict_sha256,
)
from tests.oracles import oracle_cases

LINEAR = {"schedule": "linear", "steps": 1000}


@pytest.mark.parametrize("case", oracle_cases("dds_sigma"), ids=lambda case: str(case["inputs"]))
def test_schedules_and_timesteps(case: dict) -> None:
    steps, step = case["inputs"]["T"], case["inputs"]["t"]
    alphas = alphas_cumprod(case["inputs"]["schedule"], steps)
    # The oracle is exact; a running product of T factors in float64 is off by at most T ulps.
    np.testing.assert_allclose(alphas[step], case["expected"][0], rtol=1e-12)
    np.testing.assert_allclose(0.5 * np.sqrt((1 - alphas[step]) / alphas[step]), case["expected"][1], rtol=1e-12)
    assert int(denoising_timestep(case["expected"][1], alphas)) == step


def test_timesteps_are_the_nearest_levels() -> None:
    # Published code takes the first step that is noisy enough (Carlini et al., 2023): ours, or the one after it.
    published = {
        ("linear", 1000): [145, 259, 396],
        ("scaled_linear", 1000): [170, 354, 563],
        ("cosine", 4000): [1158, 1984, 2809],
    }
    sigmas = np.array([0.25, 0.5, 1.0])
    for (schedule, steps), first in published.items():
        alphas = alphas_cumprod(schedule, steps)
        found, levels = denoising_timestep(sigmas, alphas), 0.5 * np.sqrt(1 / alphas - 1)
        assert [int((levels >= sigma).argmax()) for sigma in sigmas] == first
        assert set(np.subtract(first, found)) <= {0, 1}
        for step, sigma in zip(found, sigmas, strict=True):
            off = np.abs(np.log(levels[step - 1 : step + 2] / sigma))
            assert off[1] == off.min()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alphas_cumprod("quadratic"), "schedule must be one of 'linear', 'scaled_linear', 'cosine'"),
        (lambda: alphas_cumprod("cosine", 10, beta_end=0.1), "'cosine' has no beta_start and beta_end"),
        (lambda: alphas_cumprod("linear", 0), "steps must be a whole number >= 1, got 0"),
        (lambda: denoising_timestep(0.0, [0.5]), "sigma must be finite and > 0"),
        (lambda: denoising_timestep(0.5, [1e-4, 0.02]), r"decrease within .0, 1., got 0.0001 ... 0.02: .* not beta"),
        (lambda: denoising_timestep(0.5, 0.5), "one number a timestep"),
        (lambda: EpsilonDenoiser(nn.Identity()), "alphas_cumprod must be the schedule .* got None"),
        (lambda: EpsilonDenoiser(nn.Identity(), LINEAR, prediction_type="noise"), "prediction_type must be one of"),
        (lambda: NoiseMapDenoiser(nn.Identity(), max_sigma=0.0), "max_sigma must be finite and > 0"),
        (lambda: DenoisedNetwork(nn.Identity(), nn.Flatten(), 0.0), "sigma must be finite and > 0"),
        (lambda: DenoisedNetwork(nn.Identity(), nn.Flatten(), 0.5, (2.0,)), r"to_classifier must be .scale, shift."),
        (lambda: DenoisedNetwork(nn.Identity(), nn.Flatten(), 0.5, freeze="both"), "freeze must be one of"),
        (lambda: SigmaUNet(widths=(12, 80)), "widths must be two multiples of 8"),
        (lambda: DnCNN(depth=1), "depth must be a whole number >= 2, got 1"),
    ],
)
def test_arguments_out_of_range(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class Exact(nn.Module):
    """A diffusion model that knows the clean image: what every convention must turn into that image."""

    def __init__(self, clean: Tensor, alphas: np.ndarray, kind: str, twice: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.clean, self.alphas, self.kind, self.twice, self.scale = clean, alphas, kind, twice, scale

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        alpha = torch.from_numpy(self.alphas)[(time / self.scale).round().long()].view(-1, 1, 1, 1)
        u = 2 * self.clean - 1
        eps = (noisy - alpha.sqrt() * u) / (1 - alpha).sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * u
        found = {"epsilon": eps, "sample": u, "v_prediction": v}[self.kind]
        return torch.cat([found, torch.full_like(found, 7.0)], dim=1) if self.twice else found


@pytest.mark.parametrize("sigma", [0.25, 1.0, torch.tensor([0.1, 0.25, 1.0], dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_recovers_the_image(kind: str, sigma: float | Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 2, 5, 4, dtype=torch.float64, generator=generator)
    noise = torch.randn(3, 2, 5, 4, dtype=torch.float64, generator=generator)
    z = clean + torch.as_tensor(sigma).view(-1, 1, 1, 1) * noise
    for twice, scale in ((False, 1.0), (True, 0.25)):
        model = Exact(clean, alphas_cumprod("linear"), kind, twice, scale)
        denoiser = EpsilonDenoiser(model, LINEAR, twice, scale, kind)
        torch.testing.assert_close(denoiser(z, sigma), clean, rtol=0, atol=1e-6)


def test_the_schedule_may_be_that_of_a_scheduler() -> None:
    class Scheduler:
        alphas_cumprod = torch.from_numpy(alphas_cumprod("linear"))

    one = EpsilonDenoiser(nn.Identity(), Scheduler())
    other = EpsilonDenoiser(nn.Identity(), alphas_cumprod("linear").tolist())
    assert one.constants() == other.constants() == EpsilonDenoiser(nn.Identity(), LINEAR).constants()


def test_learned_variance_must_be_said() -> None:
    clean = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    model = Exact(clean, alphas_cumprod("linear"), "epsilon", twice=True)
    with pytest.raises(ValueError, match=r"must return 1 channels with learned_variance=False, got shape .2, 2, 4, 4."):
        EpsilonDenoiser(model, LINEAR)(clean, 0.5)


class Level(nn.Module):
    """Subtracts a share of the level that it is told, to see which level arrives."""

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return z - level.view(-1, 1, 1, 1)


def test_sigma_and_noise_maps_arrive_in_the_right_units() -> None:
    z = torch.full((2, 1, 4, 4), 0.75)
    # Model units: u = 2z - 1 = .5, s = 2 sigma = .4; (.1 + 1) / 2.
    torch.testing.assert_close(SigmaDenoiser(Level())(z, 0.2), torch.full_like(z, 0.55))
    torch.testing.assert_close(NoiseMapDenoiser(Level())(z, 0.2), torch.full_like(z, 0.55))
    torch.testing.assert_close(NoiseMapDenoiser(Level(), predicts="noise")(z, 0.2), torch.full_like(z, 0.2))
    # Beyond the largest level both shrink: (z / 2 - .2) * 2.
    torch.testing.assert_close(NoiseMapDenoiser(Level(), max_sigma=0.2)(z, 0.4), torch.full_like(z, 0.35))
    last = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(NoiseMapDenoiser(last, as_channel=True)(z, 0.2), torch.full_like(z, 0.55))


def test_a_fresh_dncnn_is_the_identity_and_a_fresh_unet_shrinks_to_the_mean() -> None:
    z = torch.randn(2, 1, 7, 6)
    assert torch.equal(DnCNN(depth=3, width=4).eval()(z), z)
    s = torch.tensor([0.5, 2.0])
    scale = (0.62**2 / (0.62**2 + s**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(SigmaUNet(widths=(8, 8))(z, s), z * scale)


def test_the_unet_is_of_the_size_that_is_said() -> None:
    assert 300_000 < sum(p.numel() for p in SigmaUNet().parameters()) < 400_000


class Affine(Denoiser):
    """A denoiser of known output."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def estimate(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        return z * self.scale


def denoised(**kwargs) -> DenoisedNetwork:
    return DenoisedNetwork(Affine(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0.5, **kwargs)


def test_the_classifier_gets_its_own_units_and_size() -> None:
    z = torch.rand(2, 3, 4, 4)
    network = DenoisedNetwork(Affine(), nn.Flatten(), 0.5, to_classifier=(2.0, [-1.0, 0.0, 1.0]))
    shift = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(network(z), (2 * z + shift).flatten(1))
    resized = DenoisedNetwork(Affine(), nn.Flatten(), 0.5, resize=(6, 8))
    wanted = nn.functional.interpolate(z, (6, 8), mode="bicubic", antialias=True)
    assert torch.equal(resized(z), wanted.flatten(1))


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (nn.AvgPool2d(2), r"must keep the shape \(2, 1, 4, 4\), got \(2, 1, 2, 2\)"),
        (Affine(255.0), r"must return pixels in \[0, 1\] units as it gets them, got values up to 2"),
        (Affine(float("nan")), "got values up to nan"),
        (nn.Module(), "forward"),
    ],
)
def test_a_denoiser_of_other_shape_or_range_is_refused(denoiser: nn.Module, message: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=message):
        DenoisedNetwork(denoiser, nn.Flatten(), 0.5)(torch.rand(2, 1, 4, 4))


def test_zeros_do_not_hide_a_denoiser_of_other_units() -> None:
    network = DenoisedNetwork(Affine(255.0), nn.Flatten(), 0.5)
    network(torch.zeros(1, 1, 4, 4))  # as a network is tried when it is built
    with pytest.raises(ValueError, match=r"must return pixels in \[0, 1\] units"):
        network(torch.rand(2, 1, 4, 4))


def test_the_checkpoint_binds_sigma_and_the_constants() -> None:
    one, other = denoised(), denoised()
    other.load_state_dict(one.state_dict())
    assert state_dict_sha256(one) == state_dict_sha256(other)
    other.sigma = 0.25
    assert state_dict_sha256(one) != state_dict_sha256(other)
    other.load_state_dict(one.state_dict())
    assert other.sigma == 0.5
    moved = denoised(to_classifier=(2.0, -1.0))
    assert state_dict_sha256(moved) != state_dict_sha256(one)
    with pytest.raises(ValueError, match="other constants"):
        moved.load_state_dict(one.state_dict())
    assert denoised().to(torch.bfloat16).state_dict()["_extra_state"].dtype == torch.float64


@pytest.mark.parametrize("part", ["denoiser", "classifier"])
def test_a_frozen_part_stays_in_evaluation_mode(part: str) -> None:
    network = denoised(freeze=part).train()
    for name in ("denoiser", "classifier"):
        module = network.get_submodule(name)
        assert module.training == (name != part)
        assert all(p.requires_grad == (name != part) for p in module.parameters())
    network(torch.rand(2, 1, 4, 4)).sum().backward()
    assert all(p.grad is None for p in network.get_submodule(part).parameters())


def test_gradients_reach_the_pixels_through_every_adapter() -> None:
    unet = SigmaUNet(widths=(8, 8))
    torch.nn.init.normal_(unet.head.weight, std=0.1)

    class Timed(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return unet(x, t.float() / 1000 + 0.1)

    adapters = [
        PlainDenoiser(DnCNN(depth=3, width=4)),
        SigmaDenoiser(unet),
        EpsilonDenoiser(Timed(), LINEAR),
        NoiseMapDenoiser(Level()),
    ]
    for adapter in adapters:
        z = torch.full((2, 1, 8, 8), 0.5) + 0.05 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        z.requires_grad_()
        network = DenoisedNetwork(adapter, build_network("digits_cnn", 3, (1, 8, 8)), 0.05).eval()
        network(z)[:, 0].sum().backward()
        assert z.grad is not None
        assert z.grad.abs().flatten(1).amax(1).gt(0).all(), type(adapter).__name__


@pytest.mark.parametrize("missing", ["denoiser", "classifier", "sigma"])
def test_what_is_missing_is_named(missing: str) -> None:
    spec = {"class_path": "lightning_rs.networks.DnCNN", "init_args": {"depth": 2, "width": 4}}
    given = {"denoiser": spec, "classifier": "digits_cnn", "sigma": 0.5}
    with pytest.raises(ValueError, match=f"network denoised needs the argument '{missing}'"):
        build_network("denoised", 10, (1, 8, 8), **{k: v for k, v in given.items() if k != missing})


def test_normalisation_belongs_to_the_classifier() -> None:
    spec = {"class_path": "lightning_rs.networks.DnCNN", "init_args": {"depth": 2, "width": 4}}
    for name in ("denoised", "lightning_rs.networks.DenoisedNetwork"):
        network = build_network(name, 10, (1, 8, 8), 0.3, 0.4, denoiser=spec, classifier="digits_cnn", sigma=0.5)
        assert isinstance(network.get_submodule("normalize"), nn.Identity)
        assert network.get_submodule("net.classifier.normalize").extra_repr().startswith("mean=[0.3")
    bare = {"class_path": "lightning_rs.networks.EpsilonDenoiser", "init_args": {"net": spec}}
    with pytest.raises(ValueError, match="alphas_cumprod must be the schedule"):
        build_network("denoised", 10, (1, 8, 8), denoiser=bare, classifier="digits_cnn", sigma=0.5)
