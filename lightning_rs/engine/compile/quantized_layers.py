"""Layers on 8-bit integers (oneDNN; AVX-512 VNNI or AMX are fast); :mod:`quantize` puts them in.

Processors without VNNI add products of codes and weights in pairs on 16 bits, which saturate: 2 x 255 x 127 > 32767.
There weights get 7 bits (2 x 255 x 64 < 32767), so that integer sums are exact on every processor; :func:`weight_limit`
tries the layers to find out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rs.engine.compile.fused_layers import FusedConv2d


@dataclass(frozen=True)
class Grid:
    """The 256 values that 8 bits stand for: ``scale * (code - zero)``, code = 0, ..., 255."""

    scale: float
    zero: int = 0

    @classmethod
    def covering(cls, low: float, high: float) -> Grid:
        """Return a grid that holds 0 and reaches from ``low`` to ``high``; values beyond are clipped to its ends.

        Scales keep 8 bits, so that rounding errors of the calibration, which differ between machines, drop out.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        span = torch.tensor((high - low) / 255 or 1.0, dtype=torch.float64)
        mantissa, exponent = torch.frexp(span)
        scale = float(torch.ldexp(torch.ceil(mantissa * 256) / 256, exponent))
        return cls(scale, round(-low / scale))

    def codes(self, x: Tensor) -> Tensor:
        """Return the nearest codes of ``x``, uint8."""
        return (x * (1 / self.scale)).add_(self.zero).round_().clamp_(0, 255).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """Return the numbers that codes stand for, float32."""
        return (codes.float() - self.zero) * self.scale


# Largest weight of 7 and of 8 bits.
_NARROW, _WIDE = 64, 127


def integer_weights(weight: Tensor, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Round weights (outputs, ...) to int8, each output on a symmetric grid of its own: codes and scales.

    Args:
        weight: float32 weights.
        limit: largest code; None: what :func:`weight_limit` finds.
    """
    limit = weight_limit() if limit is None else limit
    scales = weight.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny * 128) / limit
    codes = (weight / scales.view(-1, *(1,) * (weight.ndim - 1))).round().clamp(-limit, limit)
    return codes.to(torch.int8), scales


@functools.cache
@torch.inference_mode()
def weight_limit() -> int:
    """Return the largest integer weight for which this processor's sums are exact: 127, or 64 without VNNI.

    Found by running convolutions and linear layers on the largest codes and weights, not from what the processor says
    of itself: what counts is what oneDNN does with it.
    """
    return _WIDE if _sums_are_exact(_WIDE) else _NARROW


def _sums_are_exact(limit: int) -> bool:
    """Say whether layers whose codes are all 255 and whose weights are all ``limit`` give the sums of integers."""
    unit, rows = Grid(1.0), 4
    exact = []
    for features in (16, 64, 100):
        linear = _all_ones(nn.Linear(features, 16))
        codes = torch.full((rows, features), 255, dtype=torch.uint8)
        found = QuantizedLinear(linear, rows, unit, limit)(codes)
        exact.append(torch.allclose(found, torch.full_like(found, 255.0 * features), rtol=1e-4))
    for channels, kernel in ((2, 3), (16, 3), (64, 1)):
        conv = _all_ones(nn.Conv2d(channels, 16, kernel))
        images = torch.full((rows, channels, 8, 8), 255.0).contiguous(memory_format=torch.channels_last)
        total = 255 * channels * kernel**2
        layer = QuantizedConv2d(FusedConv2d(conv, images), tuple(images.shape), unit, Grid(total / 200), limit=limit)
        exact.append(bool((layer(images.to(torch.uint8)) == 200).all()))
    return all(exact)


def _all_ones(layer: nn.Conv2d | nn.Linear) -> Any:
    assert layer.bias is not None
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer.requires_grad_(False)


class Quantize(nn.Module):
    """Numbers to the codes of a grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return uint8 codes."""
        return self.grid.codes(x)


class Dequantize(nn.Module):
    """Codes of a grid to numbers."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, codes: Tensor) -> Tensor:
        """Return float32 numbers."""
        return self.grid.values(codes)


class QuantizedConv2d(nn.Module):
    """``FusedConv2d`` on codes: sums of integers, rounded once at the end.

    Args:
        conv: the fused convolution in float32.
        shape: shape of the inputs.
        source: grid of the input.
        target: grid of the output.
        other: grid of the second input, if there is one.
        limit: largest integer weight; None: what this processor sums exactly.
    """

    def __init__(
        self,
        conv: FusedConv2d,
        shape: tuple[int, ...],
        source: Grid,
        target: Grid,
        other: Grid | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        padding, stride, dilation, groups = conv.geometry
        self.geometry = (stride, padding, dilation, groups)
        self.source, self.target, self.other = source, target, other
        self.relu, self.overwrite = conv.relu, conv.overwrite
        codes, self.scales = integer_weights(conv.weight.to_dense().float(), limit)
        grid = (source.scale, source.zero)
        prepack: Any = torch.ops.onednn.qconv_prepack
        self.weight = prepack(codes, self.scales, *grid, *self.geometry, list(shape))
        self.zeros = torch.zeros(len(self.scales), dtype=torch.int64)
        self.bias = None if conv.bias is None else conv.bias.float()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return codes of the convolution of ``x``, plus ``other`` if it is given, rectified if asked for."""
        ops: Any = torch.ops.onednn.qconv2d_pointwise
        source = (x, self.source.scale, self.source.zero, self.weight, self.scales, self.zeros)
        target = (self.target.scale, self.target.zero, torch.uint8)
        rectify = "relu" if self.relu else "none"
        if other is None or self.other is None:
            return ops(*source, self.bias, *self.geometry, *target, rectify, [], "")
        summand = other if self.overwrite else other.clone(memory_format=torch.channels_last)
        post: tuple[Any, ...] = (self.other.scale, self.other.zero, "sum", 1.0, rectify, [], "")
        return ops.binary(*source, summand, self.bias, *self.geometry, *target, *post)


class QuantizedLinear(nn.Module):
    """A linear layer on codes, with outputs in float32.

    Args:
        linear: the layer in float32.
        rows: number of rows of the inputs.
        source: grid of the input.
        limit: largest integer weight; None: what this processor sums exactly.
    """

    def __init__(self, linear: nn.Linear, rows: int, source: Grid, limit: int | None = None) -> None:
        super().__init__()
        self.source = source
        codes, self.scales = integer_weights(linear.weight.detach().float(), limit)
        prepack: Any = torch.ops.onednn.qlinear_prepack
        self.weight = prepack(codes, [rows, linear.in_features])
        self.zeros = torch.zeros(len(self.scales), dtype=torch.int64)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of the numbers that the codes ``x`` stand for."""
        ops: Any = torch.ops.onednn.qlinear_pointwise
        weights = (self.weight, self.scales, self.zeros, self.bias)
        return ops(x, self.source.scale, self.source.zero, *weights, 1.0, 0, torch.float32, "none", [], "")
