"""Standardisation as a layer of the network, so that noise and radii live in pixel space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_rs.checks import as_float64, check_positive


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """Reshape ``(C,)`` to ``(C, 1, ..., 1)`` so that it broadcasts over an ``(N, C, ...)`` batch of ``ndim``."""
    return values.reshape(-1, *(1,) * (ndim - 2))


class Normalize(nn.Module):
    """Standardise each channel: ``(x - mean) / std``.

    Being the network's first layer it comes *after* the noise, which is added in pixel space; a radius is
    therefore in pixel units, whatever the constants (Cohen, Rosenfeld and Kolter, 2019, section 4). ``mean``
    and ``std`` are buffers: a checkpoint holds the function that was trained, normalisation included.

    Args:
        mean: one number, or one a channel (one a feature for vectors), in pixel units.
        std: likewise, each > 0.
        num_channels: length to which a single number is expanded; None keeps the length given.

    Shapes: ``(N, C, ...) -> (N, C, ...)``. A single value applies to all channels.

    Raises:
        ValueError: if a value is not finite, an std is <= 0, or the lengths do not match.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        num_channels: int | None = None,
    ) -> None:
        """Check the constants and register them as float32 buffers."""
        super().__init__()
        check_positive("std", std)
        self.register_buffer("mean", _constants("mean", mean, num_channels))
        self.register_buffer("std", _constants("std", std, num_channels))
        if self.mean.numel() != self.std.numel():
            raise ValueError(f"mean and std must have the same length, got {self.mean.numel()} and {self.std.numel()}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised batch."""
        return (x - per_channel(self.mean, x.ndim)) / per_channel(self.std, x.ndim)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class Center(nn.Module):
    """Subtract a constant from each channel: what is left of `Normalize` once its std is folded away."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        """Register ``mean``, of shape ``(C,)`` or ``(1,)``."""
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x - mean``, channel by channel; ``(N, C, ...) -> (N, C, ...)``."""
        return x - per_channel(self.mean, x.ndim)


def _constants(name: str, value: float | Sequence[float], num_channels: int | None) -> Tensor:
    numbers = torch.from_numpy(as_float64(name, value)).reshape(-1)
    if not torch.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite, got {value!r}")
    if num_channels is not None and numbers.numel() == 1:
        numbers = numbers.repeat(num_channels)
    if num_channels is not None and numbers.numel() != num_channels:
        raise ValueError(f"{name} must hold 1 or {num_channels} numbers (one a channel), got {value!r}")
    return numbers.to(torch.float32, copy=True)
