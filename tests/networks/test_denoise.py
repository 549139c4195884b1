"""Denoisers before a classifier: schedules by oracle, adapters that agree, gradients, checkpoints, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_rs.classifiers import DenoiserTraining
from lightning_rs.functional import denoising_timestep
from lightning_rs.networks import alphas_cumprod
from lightning_rs.networks.denoise import (
    DenoisedNetwork,
    Denoiser,
    EpsilonDenoiser,
    NoiseMapDenoiser,
    PlainDenoiser,
    SigmaDenoiser,
)
from lightning_rs.networks.denoisers import DnCNN, SigmaUNet
from lightning_rs.noise import GaussianNoise, SplittingNoise
from tests.oracles import oracle_cases
from tests.training import trainer

SIGMA = 0.25
LINEAR = alphas_cumprod("linear", 1000)


CASES = oracle_cases("dds_sigma")


@pytest.mark.parametrize("case", CASES, ids=[f"{c['inputs']['schedule']}-{c['inputs']['t']}" for c in CASES])
def test_schedules_and_timesteps(case: dict[str, Any]) -> None:
    i = case["inputs"]
    alphas = alphas_cumprod(i["schedule"], i["T"])
    alpha, sigma = case["expected"]
    assert alphas[i["t"]] == pytest.approx(alpha, rel=1e-9)
    assert denoising_timestep(sigma, alphas) == i["t"]


def test_timesteps_of_the_usual_noise() -> None:
    # The nearest in log sigma; the published code takes the next larger, 145, 259 and 396.
    assert denoising_timestep([0.25, 0.5, 1.0], LINEAR).tolist() == [144, 258, 396]
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        denoising_timestep(0.0, LINEAR)


class Perfect(nn.Module):
    """Knows the clean pixels x; answers in the convention asked for."""

    def __init__(self, x: Tensor, kind: str) -> None:
        super().__init__()
        self.u, self.kind = 2 * x - 1, kind

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        alpha = torch.from_numpy(np.asarray(LINEAR))[t].view(-1, 1, 1, 1).float()
        epsilon = (noisy - alpha.sqrt() * self.u) / (1 - alpha).sqrt()
        if self.kind == "sample":
            return self.u.expand_as(noisy)
        return epsilon if self.kind == "epsilon" else alpha.sqrt() * epsilon - (1 - alpha).sqrt() * self.u


def clean(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_convention_recovers_the_image(kind: Any) -> None:
    x = clean()
    z = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = EpsilonDenoiser(Perfect(x, kind), LINEAR, prediction_type=kind)(z, SIGMA)
    assert torch.allclose(found, x, atol=2e-6)


def test_edm_units_and_noise_maps() -> None:
    x = clean()
    z = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    class Edm(nn.Module):
        def forward(self, u: Tensor, s: Tensor) -> Tensor:
            assert torch.equal(s, torch.full((3,), 2 * SIGMA))
            assert torch.allclose(u, 2 * z - 1)
            return 2 * x - 1

    assert torch.allclose(SigmaDenoiser(Edm())(z, SIGMA), x, atol=1e-6)

    class Ffdnet(nn.Module):
        def forward(self, both: Tensor) -> Tensor:
            assert torch.allclose(both[:, 1:], torch.full_like(both[:, 1:], 0.125))  # scaled down to what it knows
            return both[:, :1] * 0.5

    found = NoiseMapDenoiser(Ffdnet(), as_channel=True, predicts="noise", max_sigma=0.125)(z, SIGMA)
    assert torch.allclose(found, z * 0.5, atol=1e-6)


def test_dncnn_starts_as_the_identity_and_the_unet_keeps_shapes() -> None:
    z = clean()
    assert torch.equal(DnCNN(1, depth=3, width=4).eval()(z), z)
    assert SigmaUNet(1)(2 * z - 1, torch.full((3,), 0.5)).shape == z.shape


def denoised(sigma: float = SIGMA) -> DenoisedNetwork:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return DenoisedNetwork(DnCNN(1, depth=3, width=4), classifier, sigma, to_classifier=(2.0, -1.0))


def test_gradients_reach_the_pixels() -> None:
    z = clean().requires_grad_(True)
    (gradient,) = torch.autograd.grad(denoised().eval()(z).sum(), z)
    assert gradient.abs().sum() > 0


def test_sigma_binds_the_checkpoint() -> None:
    state = denoised(0.25).state_dict()
    other = denoised(0.5)
    other.load_state_dict(state)
    assert other.sigma == 0.25
    foreign = DenoisedNetwork(DnCNN(1, depth=3, width=4), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 0.25)
    with pytest.raises(ValueError, match="other constants"):
        foreign.load_state_dict(state)


def test_bad_parts_are_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod must be the schedule .* got None"):
        EpsilonDenoiser(nn.Identity())
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        DenoisedNetwork(nn.Identity(), nn.Flatten(), 0.0)
    with pytest.raises(ValueError, match=r"must keep the shape \(3, 1, 8, 8\), got \(3, 1, 7, 7\)"):
        DenoisedNetwork(nn.Conv2d(1, 1, 2), nn.Flatten(), SIGMA)(clean())

    class Bytes(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 255 * z

    with pytest.raises(ValueError, match=r"must return pixels in \[0, 1\] units"):
        DenoisedNetwork(Bytes(), nn.Flatten(), SIGMA)(clean())
    with pytest.raises(ValueError, match="must return 2 channels with learned_variance=True"):
        EpsilonDenoiser(Perfect(clean(), "epsilon"), LINEAR, learned_variance=True)(clean(), SIGMA)
    assert issubclass(PlainDenoiser, Denoiser)


PARTS: dict[str, Any] = {
    "denoiser": {"class_path": "lightning_rs.networks.denoisers.DnCNN", "init_args": {"depth": 3, "width": 4}},
    "classifier": {"network": "digits_cnn", "num_classes": 10, "shape": [1, 8, 8]},
}


@pytest.mark.filterwarnings("ignore:Found .* module")  # the frozen part stays in evaluation mode
@pytest.mark.parametrize("objective", ["mse", "stability", "classification"])
def test_a_training_moves_the_denoiser_and_leaves_the_classifier(tmp_path: Path, objective: Any) -> None:
    from lightning_rs.data import Digits

    torch.manual_seed(0)
    model = DenoiserTraining(
        objective, network="denoised", network_args=PARTS, noise=GaussianNoise(SIGMA), grid=16, scheduler=None
    )
    before = {name: value.clone() for name, value in model.network.state_dict().items() if value.is_floating_point()}
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=3, limit_val_batches=1)
    run.fit(model, datamodule=Digits(batch_size=32))
    after = model.network.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("denoiser" in name and "weight" in name for name in moved)
    assert not any("classifier" in name for name in moved)
    assert model.hparams["objective"] == objective


def test_bad_denoiser_trainings_are_refused() -> None:
    with pytest.raises(ValueError, match="network must be 'denoised' with a denoiser to train, got 'digits_cnn'"):
        DenoiserTraining("mse", network="digits_cnn", noise=GaussianNoise(SIGMA))
    usual: dict[str, Any] = {"network": "denoised", "network_args": PARTS}
    with pytest.raises(ValueError, match="objective must be one of"):
        DenoiserTraining("l1", noise=GaussianNoise(SIGMA), **usual)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma_range must be"):
        DenoiserTraining("mse", sigma_range=(0.5, 0.1), noise=GaussianNoise(SIGMA), **usual)
    with pytest.raises(ValueError, match="sigma_range needs a noise that is added"):
        DenoiserTraining("mse", sigma_range=(0.1, 0.5), noise=SplittingNoise(0.6), **usual)
