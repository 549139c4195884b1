"""Sets of input coordinates by name: colour channels and half images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_rs.checks import check_choice

_COLOURS = {"red": 0, "green": 1, "blue": 2}
_HALVES = ("top", "bottom", "left", "right")


def check_region(region: str | int | None) -> None:
    """Raise ``ValueError`` unless ``region`` is a colour, a half, a channel number or None (all coordinates)."""
    if region is None or (isinstance(region, int) and not isinstance(region, bool) and region >= 0):
        return
    check_choice("region", region, (*_COLOURS, *_HALVES, "a channel number >= 0"))


def region_mask(region: str | int | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which of the d coordinates, in C, H, W order, belong to the region.

    Args:
        region: "red", "green", "blue" (three channels needed), a channel number, "top", "bottom", "left",
            "right" (the first or last half of rows or columns in every channel; of an odd number the first half
            is the smaller one), or None for all coordinates.
        shape: shape of one input, channels first.

    Raises:
        ValueError: if the shape has no such region, or the region would be everything.
    """
    mask = np.zeros(shape, dtype=bool)
    if region is None:
        mask[...] = True
    elif isinstance(region, int) or region in _COLOURS:
        channel = region if isinstance(region, int) else _COLOURS[region]
        if shape[0] <= channel or shape[0] == 1 or (isinstance(region, str) and shape[0] != 3):
            raise ValueError(f"region {region!r} does not exist in inputs of shape {shape}")
        mask[channel] = True
    else:
        axis = -2 if region in ("top", "bottom") else -1
        if len(shape) < 2 or shape[axis] < 2:
            raise ValueError(f"region {region!r} does not exist in inputs of shape {shape}")
        middle = shape[axis] // 2
        half = slice(None, middle) if region in ("top", "left") else slice(middle, None)
        mask[(..., half, slice(None)) if axis == -2 else (..., half)] = True
    return mask.ravel()


def qualified(norm: str, region: str | int | None) -> str:
    """Return the name of the norm restricted to the region: "l2:red"."""
    return norm if region is None else f"{norm}:{region}"
