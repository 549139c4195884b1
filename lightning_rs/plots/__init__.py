"""Figures from records and certificates: certified-accuracy curves, histograms of radii, grids of noisy images."""

from __future__ import annotations

from lightning_rs.plots.curves import ENVELOPE, accuracy_steps, certified_accuracy_figure, radius_histogram
from lightning_rs.plots.images import image_grid
from lightning_rs.plots.style import COLOURS, save_figure

__all__ = [
    "COLOURS",
    "ENVELOPE",
    "accuracy_steps",
    "certified_accuracy_figure",
    "image_grid",
    "radius_histogram",
    "save_figure",
]
