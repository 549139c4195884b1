"""Layers that do on channels-last memory, in one pass, what a network does in several; :mod:`fuse` puts them in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class FusedConv2d(nn.Module):
    """A convolution with weights in oneDNN's own layout, then perhaps a sum and a ReLU, in one pass.

    Args:
        conv: a convolution with zero padding.
        example: an input of the shape that will be seen, in channels-last memory.
        relu: rectify the result.
        overwrite: a second input, to which the result is added, is not needed afterwards.
    """

    def __init__(self, conv: nn.Conv2d, example: Tensor, relu: bool = False, overwrite: bool = False) -> None:
        super().__init__()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.weight = reorder(conv.weight.detach().to_mkldnn(), *self.geometry, list(example.shape))
        self.bias = conv.bias
        self.relu = relu
        self.overwrite = overwrite

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the convolution of ``x``, plus ``other`` if it is given, rectified if asked for."""
        ops, conv = torch.ops.mkldnn, (self.weight, self.bias, *self.geometry)
        if other is None:
            return ops._convolution_pointwise(x, *conv, "relu" if self.relu else "none", (), "")
        post = ("add", 1.0, "relu" if self.relu else None, (), "")
        if self.overwrite:
            return ops._convolution_pointwise_.binary(other, x, *conv, *post)
        return ops._convolution_pointwise.binary(x, other, *conv, *post)


class PairedConv2d(nn.Module):
    """A convolution of one-channel images that computes two neighbouring columns at once, as twice the channels.

    In channels-last memory two columns of one channel are one column of two channels, and two columns of m outputs
    are one of 2 m: the same numbers, shapes that the kernel is made for. The weights are padded with zeros.

    Args:
        conv: a convolution that :func:`pairs_columns` accepts.
        example: an input of the shape that will be seen.
        relu: rectify the result.
    """

    def __init__(self, conv: nn.Conv2d, example: Tensor, relu: bool = False) -> None:
        super().__init__()
        outputs, _, height, width = conv.weight.shape
        spread = conv.weight.new_zeros(2, outputs, height, width // 2 + 1, 2)  # column in the pair comes first
        for column in range(2):
            spread[column].view(outputs, height, -1)[:, :, column : column + width] = conv.weight.detach()[:, 0]
        paired = nn.Conv2d(2, 2 * outputs, (height, width // 2 + 1), device="meta")
        weight = spread.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        paired.weight = nn.Parameter(weight, requires_grad=False)
        bias = weight.new_zeros(outputs) if conv.bias is None else conv.bias.detach()
        paired.bias = nn.Parameter(bias.repeat(2), requires_grad=False)
        self.conv: nn.Module = FusedConv2d(paired, _in_pairs(example), relu)

    def around(self, conv: nn.Module) -> PairedConv2d:
        """Return this layer with another convolution of pairs inside."""
        other = copy.copy(self)
        other._modules = {"conv": conv}
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x``, rectified if asked for; ``(N, 1, H, W) -> (N, C, H', W')``."""
        y = self.conv(_in_pairs(x)).permute(0, 2, 3, 1)
        return y.reshape(*y.shape[:2], 2 * y.shape[2], y.shape[3] // 2).permute(0, 3, 1, 2)


def _in_pairs(x: Tensor) -> Tensor:
    """View ``(N, 1, H, W)`` as ``(N, 2, H, W / 2)``."""
    return x.reshape(len(x), x.shape[2], -1, 2).permute(0, 3, 1, 2)


def pairs_columns(conv: nn.Conv2d, width: int) -> bool:
    """Say whether :class:`PairedConv2d` can stand for a convolution of images so wide."""
    plain = conv.in_channels == 1 and conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0)
    return plain and width % 2 == 0 and conv.kernel_size[1] % 2 == 1


def max_of_squares(x: Tensor, size: int) -> Tensor:
    """Max-pool disjoint ``size x size`` squares of ``(N, C, H, W)``; pixels beyond the last whole square drop out.

    The same values as ``torch.nn.functional.max_pool2d``, which is five times slower on channels-last memory.
    """
    height, width = (side // size * size for side in x.shape[2:])
    x = _largest([x[:, :, i:height:size] for i in range(size)])
    return _largest([x[..., i:width:size] for i in range(size)])


def _largest(parts: list[Tensor]) -> Tensor:
    largest = parts[0]
    for part in parts[1:]:
        largest = torch.maximum(largest, part)
    return largest


def flatten_as_stored(x: Tensor) -> Tensor:
    """Return ``(N, H * W * C)`` from channels-last ``(N, C, H, W)`` without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)
