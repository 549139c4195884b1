"""Images that nobody divided by 255: sigma would mean something 255 times smaller."""

from __future__ import annotations

import pytest
import torch

from lightning_rs import Certifier, GaussianNoise, SplittingNoise
from lightning_rs.noise import Noise
from tests.helpers import HalfSpace

SHAPE = (1, 4, 4)
PIXELS = torch.arange(32.0).view(2, *SHAPE) * 8
CERTIFIER = Certifier(n=100, n0=10)


def certify(images: torch.Tensor, domain: tuple[float, float] | None = None, sigma: float = 0.25) -> list[str]:
    network = HalfSpace(torch.ones(images[0].numel()))
    found = CERTIFIER.certify(network, GaussianNoise(sigma), images, [1] * len(images), domain=domain)
    return [record.status for record in found]


@pytest.mark.parametrize("images", [PIXELS, PIXELS[:1], PIXELS + 0.3, PIXELS.repeat(1, 3, 1, 1)])
def test_pixels_up_to_255_need_a_domain_that_says_so(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"images look like pixels in 0\.\.255 \(from .*divide by 255, or declare"):
        certify(images)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        certify(images, domain=(0, 1))
    assert len(certify(images, domain=(0, 255), sigma=64.0)) == len(images)


@pytest.mark.parametrize("images", [PIXELS / 255, PIXELS / 255 * 2 - 1, PIXELS - 100, PIXELS.flatten(1)])
def test_other_images_pass(images: torch.Tensor) -> None:
    assert len(certify(images)) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("noise", [GaussianNoise(0.25), SplittingNoise(0.5)])
def test_integers_are_refused_whatever_the_domain(
    dtype: torch.dtype, domain: tuple[float, float] | None, noise: Noise
) -> None:
    network = HalfSpace(torch.ones(16))
    with pytest.raises(ValueError, match=rf"must be floats .*, got {dtype}: divide 8-bit pixels by 255") as caught:
        CERTIFIER.certify(network, noise, (PIXELS > 100).to(dtype), [1, 1], domain=domain)
    assert "\n" not in str(caught.value)
