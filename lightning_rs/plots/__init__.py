"""Figures from records and certificates: accuracy curves, radii and their changes, discs in a plane, noisy images."""

from __future__ import annotations

from lightning_rs.plots.changes import change_figure
from lightning_rs.plots.curves import (
    ENVELOPE,
    accuracy_polyline,
    accuracy_steps,
    certified_accuracy_figure,
    radius_histogram,
)
from lightning_rs.plots.images import image_grid
from lightning_rs.plots.panels import certified_accuracy_panels
from lightning_rs.plots.plane import Regions, plane_figure
from lightning_rs.plots.style import COLOURS, save_figure
from lightning_rs.plots.votes import vote_bound_figure, vote_bound_polyline, vote_bound_ticks

__all__ = [
    "COLOURS",
    "ENVELOPE",
    "Regions",
    "accuracy_polyline",
    "accuracy_steps",
    "certified_accuracy_figure",
    "certified_accuracy_panels",
    "change_figure",
    "image_grid",
    "plane_figure",
    "radius_histogram",
    "save_figure",
    "vote_bound_figure",
    "vote_bound_polyline",
    "vote_bound_ticks",
]
