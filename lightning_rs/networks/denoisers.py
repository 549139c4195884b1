"""Denoisers: DnCNN, and a small U-Net that serves every noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_rs.checks import check_at_least, check_positive


class DnCNN(nn.Module):
    """The residual denoiser of Zhang et al. (2017), as Salman et al. (2020) put it before a classifier.

    ``depth`` convolutions 3x3, ReLU and BatchNorm between them, estimate the noise, which is subtracted. The last
    convolution starts at zero, so that the untrained denoiser is the identity. One network serves one sigma.

    Args:
        channels: of the image.
        depth: number of convolutions, at least 2.
        width: channels between them.

    Shapes: pixels ``(N, C, H, W) -> (N, C, H, W)``, the image without its noise.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(self, channels: int = 1, depth: int = 17, width: int = 64) -> None:
        """Build the network, orthogonal but for the last convolution."""
        super().__init__()
        check_at_least("channels", channels, 1)
        check_at_least("width", width, 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(check_at_least("depth", depth, 2) - 2):
            # Momentum .95 as in the published code: the statistics are nearly those of the last batch.
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width, eps=1e-4, momentum=0.95), nn.ReLU()]
        layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        """Return the noisy image less the estimated noise."""
        return z - self.layers(z)


class SigmaUNet(nn.Module):
    r"""A small U-Net conditioned on the noise level, with the preconditioning of Karras et al. (2022, EDM).

    .. math:: D(u; s) = c_\mathrm{skip} u + c_\mathrm{out} F(c_\mathrm{in} u, \ln(s)/4), \quad
        c_\mathrm{skip} = \frac{d^2}{s^2 + d^2},\ c_\mathrm{out} = \frac{s d}{\sqrt{s^2 + d^2}},\
        c_\mathrm{in} = \frac{1}{\sqrt{s^2 + d^2}}

    with ``d = data_std``: F sees inputs and targets of unit variance at every level, and D is the identity where there
    is no noise. F works on 2x2 squares of pixels as channels (as FFDNet does) and on a second level at half that
    resolution: 0.36 million parameters by default, made for 28x28 images on a CPU. It is called as EDM and k-diffusion
    call theirs, and goes behind `SigmaDenoiser`.

    Args:
        channels: of the image.
        widths: channels of the two levels, multiples of 8.
        data_std: standard deviation of the data in model units [-1, 1]; MNIST .62.

    Shapes: ``u`` (N, C, H, W) in model units ``2x - 1`` with noise of standard deviation ``s`` (N,) there; returns the
    estimate of the clean image, (N, C, H, W). Sides that are no multiple of 4 are padded inside.

    Raises:
        ValueError: if a size or ``data_std`` is out of range.
    """

    def __init__(self, channels: int = 1, widths: Sequence[int] = (40, 80), data_std: float = 0.62) -> None:
        """Build the network; the last convolution starts at zero, so that D starts as ``c_skip u``."""
        super().__init__()
        if len(widths) != 2 or any(width % 8 or width < 8 for width in widths):
            raise ValueError(f"widths must be two multiples of 8, got {list(widths)!r}")
        self.data_std = float(check_positive("data_std", data_std))
        fine, coarse = widths
        squares = 4 * check_at_least("channels", channels, 1)
        levels = 4 * 16
        self.embed = nn.Sequential(nn.Linear(16, levels), nn.SiLU(), nn.Linear(levels, levels), nn.SiLU())
        self.stem = nn.Conv2d(squares, fine, 3, padding=1)
        self.encode = _Block(fine, levels)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.middle = nn.ModuleList([_Block(coarse, levels), _Block(coarse, levels)])
        self.up = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.decode = _Block(fine, levels)
        self.norm = nn.GroupNorm(8, fine)
        self.head = nn.Conv2d(fine, squares, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        # Frequencies of the level's Fourier features: ln(s)/4 lies within one unit for every level in use.
        self._frequencies = [math.pi * 2.0**k / 2 for k in range(-2, 6)]

    def forward(self, u: Tensor, s: Tensor) -> Tensor:
        """Return the estimate of the clean image in model units."""
        level = s.to(u.dtype).reshape(-1, 1, 1, 1)
        total = level.square() + self.data_std**2
        estimate = self._network(u * total.rsqrt(), level.log().flatten() / 4)
        return u * (self.data_std**2 / total) + level * self.data_std * total.rsqrt() * estimate

    def _network(self, u: Tensor, level: Tensor) -> Tensor:
        angles = level[:, None] * torch.tensor(self._frequencies, dtype=level.dtype, device=level.device)
        code = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        height, width = u.shape[-2:]
        u = nn.functional.pad(u, (0, -width % 4, 0, -height % 4), mode="replicate")
        fine = self.encode(self.stem(nn.functional.pixel_unshuffle(u, 2)), code)
        coarse = self.down(fine)
        for block in self.middle:
            coarse = block(coarse, code)
        fine = self.decode(fine + self.up(coarse), code)
        estimate = self.head(nn.functional.silu(self.norm(fine)))
        return nn.functional.pixel_shuffle(estimate, 2)[..., :height, :width]


class _Block(nn.Module):
    """Two convolutions with GroupNorm around a residual, scaled and shifted by the code of the noise level."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.level = nn.Linear(levels, 2 * width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.level(code)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(nn.functional.silu(self.norm1(x)))
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return x + self.conv2(nn.functional.silu(hidden))
