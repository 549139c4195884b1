"""Certified discs of points in the plane, with what a second certificate adds (cf. Levine et al. 2020, Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.plots.text import wrapped
from lightning_rs.records import Certification

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]


class Regions(NamedTuple):
    """The smoothed class on a rectangular grid.

    Attributes:
        x: coordinates of the columns, (w,), increasing.
        y: coordinates of the rows, (h,), increasing.
        classes: class at each point, (h, w), whole numbers.
    """

    x: ArrayLike
    y: ArrayLike
    classes: ArrayLike


def plane_figure(
    points: ArrayLike,
    records: Sequence[Certification],
    discs: Sequence[Certification],
    certificate: str,
    regions: Regions | None = None,
    title: str = "",
) -> Figure:
    """Return certified points of the plane, and certified discs around some of them by two certificates.

    A ring bounds the disc of each record's own certificate; the band between it and the disc of ``certificate`` is
    filled where that one is larger. A point is black if it is wrong or has no radius by ``certificate``.

    Args:
        points: coordinates of all points, (N, 2); a record's ``index`` is its row.
        records: records of the points that are drawn as dots, in l2.
        discs: records of the points that get discs, in l2.
        certificate: name of the certificate that is compared with the records' own; all records must list it.
        regions: decision regions of the smoothed classifier, drawn behind.
        title: heading, none if empty.

    Raises:
        ValueError: if points are not in a plane, or records are not in l2, have no such certificate or no such point.
    """
    from matplotlib.figure import Figure

    places = np.asarray(points, dtype=np.float64)
    _check(places, [*records, *discs], certificate)
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    if regions is not None:
        _draw_regions(axes, regions)
    for record in discs:
        _draw_disc(axes, places[record.index], record, certificate)
    for group in (records, discs):
        _draw_points(axes, places, group, certificate, large=group is discs)
    finish(axes, "x", "y", wrapped(title, 4.3, 11))
    axes.grid(False)
    return figure


def _check(places: FloatArray, records: Sequence[Certification], certificate: str) -> None:
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2), got {places.shape}")
    for record in records:
        if record.norm != "l2" or certificate not in record.radii:
            raise ValueError(
                f"records must hold l2 radii by {certificate!r}, got {record.norm} by {', '.join(record.radii)}"
            )
        if record.index >= len(places):
            raise ValueError(f"points must hold every record's index, got {len(places)} points and {record.index}")


def _colour(kind: int) -> str:
    return COLOURS[kind % len(COLOURS)]


def _draw_regions(axes: Axes, regions: Regions) -> None:
    from matplotlib.colors import to_rgb

    classes = np.asarray(regions.classes)
    x, y = np.asarray(regions.x, dtype=np.float64), np.asarray(regions.y, dtype=np.float64)
    pale = np.array([np.add(0.82, 0.18 * np.array(to_rgb(_colour(kind)))) for kind in range(int(classes.max()) + 1)])
    extent = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    axes.imshow(np.clip(pale[classes], 0, 1), origin="lower", extent=extent, interpolation="nearest")


def _draw_disc(axes: Axes, place: FloatArray, record: Certification, certificate: str) -> None:
    from matplotlib.patches import Annulus, Circle

    if not record.correct:
        return
    old, new, colour = record.radius, record.radii[certificate], _colour(record.prediction)
    middle = (float(place[0]), float(place[1]))
    if new > old:
        axes.add_patch(Annulus(middle, new, new - old, facecolor=colour, alpha=0.55, linewidth=0))
    axes.add_patch(Circle(middle, old, fill=False, edgecolor=colour, linewidth=1.0))


def _draw_points(
    axes: Axes, places: FloatArray, records: Sequence[Certification], certificate: str, large: bool
) -> None:
    for record in records:
        good = record.label == record.top and record.radii[certificate] > 0
        colour = _colour(record.top) if good else "black"
        axes.plot(*places[record.index], "o", color=colour, ms=5 if large else 3, mew=0, alpha=1.0 if large else 0.55)
