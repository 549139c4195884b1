"""Units of radii: most are distances in input units; patches and l0 count whole pixels, whatever the noise's scale."""

from __future__ import annotations

_COUNTED = {"patch": "patch side r (pixels)", "l0": "l0 radius r (pixels)"}


def counts_pixels(norm: str) -> bool:
    """Return whether radii of a norm are whole numbers of pixels: no multiple of sigma, and nothing lies between."""
    return norm in _COUNTED


def unit(norm: str) -> str:
    """Return the unit of radii of a norm, for people."""
    return "pixels" if counts_pixels(norm) else "input units"


def axis(norm: str) -> str:
    """Return the name of an axis of radii."""
    return _COUNTED.get(norm, f"{norm} radius r (input units)")


def change(norm: str, less: str, radius: str) -> str:
    """Return the changes within a ball as people say them: its norm, < or <=, and its radius."""
    if norm == "patch":
        return f"change within a square patch of side {less} {radius} pixels"
    if norm == "l0":
        return f"change of {less} {radius} pixels"
    return f"{norm} perturbation of norm {less} {radius}"
