"""Figures of radii: certified-accuracy curves and histograms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_rs.plots.many import Curve, Frame, curves_figure
from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.plots.text import wrapped
from lightning_rs.records import Certification
from lightning_rs.records.units import axis, counts_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FloatArray = NDArray[np.float64]
ENVELOPE = "upper envelope (descriptive, not a guarantee)"


def accuracy_steps(records: Sequence[Certification]) -> tuple[FloatArray, FloatArray]:
    """Return the certified-accuracy curve exactly, as a step function.

    Args:
        records: m >= 1 labelled records.

    Returns:
        Edges, shape (k + 1,), starting at 0, and accuracies, shape (k,): the share certified at radius r is
        ``accuracies[i]`` for r in (edges[i], edges[i + 1]], and 0 beyond; where radii count grid steps, for r in
        [edges[i], edges[i + 1]). The curve of decision mode ends at the target: nothing is known beyond it.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records must hold at least one image, got none")
    reach = np.sort([_reach(record) for record in records if record.correct])
    edges = np.unique(np.concatenate([[0.0], reach]))
    if len(edges) == 1:
        edges = np.array([0.0, max((record.target or 0.0 for record in records), default=0.0)])
    above = len(reach) - np.searchsorted(reach, edges[1:], side="left")
    return edges, above / len(records)


def certified_accuracy_figure(
    runs: Mapping[str, Sequence[Certification]],
    norm: str = "l2",
    envelope: bool = True,
    title: str = "",
    max_radius: float | None = None,
    units: Mapping[str, float] | None = None,
) -> Figure:
    """Return certified accuracy against radius, one step curve a run; small multiples for more than twelve runs.

    Args:
        runs: records by the name that the legend shows; all of one norm.
        norm: norm of the radii, for the axis.
        envelope: draw the best run at each radius if there are several. It picks the run after seeing the
            result, so it describes the runs and guarantees nothing; the legend says so.
        title: heading, none if empty.
        max_radius: right end of the axis; None: where the last curve ends.
        units: what radii are divided by, for each run: its sigma, so that noise levels are compared. None: input units.

    Raises:
        ValueError: if there are no runs, or one has no records or another norm.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    for name, records in runs.items():
        others = {record.norm for record in records} - {norm}
        if others:
            raise ValueError(f"norms are not mixed in one figure: run {name!r} has {others.pop()!r}, expected {norm!r}")
    steps = {name: _in_units(accuracy_steps(records), (units or {}).get(name, 1.0)) for name, records in runs.items()}
    curves = {}
    for name, (edges, heights) in steps.items():
        decision = not all(record.has_radius for record in runs[name])
        # The last drop to zero is part of the curve, except in decision mode, which knows nothing beyond.
        ends = edges if decision else np.append(edges, edges[-1])
        curves[name] = Curve(ends, closed_steps(heights, decision), decision)
    right = max_radius if max_radius is not None else max(float(edges[-1]) for edges, _ in steps.values())
    name = axis(norm) if units is None else f"{norm} radius r (units of sigma)"
    limits = (0, right * 1.02 if right > 0 else 1.0)
    frame = Frame(name, "certified accuracy at r", limits, title=title, furnish=_whole if counts_pixels(norm) else None)
    shown = envelope and len(runs) > 1
    return curves_figure(curves, frame, {ENVELOPE: _pale(accuracy_envelope(list(steps.values())))} if shown else None)


def accuracy_polyline(records: Sequence[Certification], most: int) -> tuple[FloatArray, FloatArray]:
    """Return the corners of the certified-accuracy curve, for a renderer of lines.

    Args:
        records: m >= 1 labelled records of one norm.
        most: number of steps that are kept; further ones are joined to the lower step on their right, so that the line
            is nowhere above the curve.
    """
    edges, heights = accuracy_steps(records)
    if len(heights) > most:
        kept = np.unique(np.linspace(0, len(heights) - 1, most).round().astype(int))
        edges, heights = np.append(edges[0], edges[1:][kept]), heights[kept]
    decision = not all(record.has_radius for record in records)
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)
    return (x, y) if decision else (np.append(x, x[-1]), np.append(y, 0.0))


def _pale(steps: tuple[FloatArray, FloatArray]) -> Callable[[Axes], Line2D]:
    edges, heights = steps

    def draw(axes: Axes) -> Line2D:
        x, y = np.append(edges, edges[-1]), closed_steps(heights)
        [line] = axes.step(x, y, where="pre", label=ENVELOPE, color="black", lw=4.5, alpha=0.22)
        return line

    return draw


def _in_units(steps: tuple[FloatArray, FloatArray], unit: float) -> tuple[FloatArray, FloatArray]:
    edges, heights = steps
    return edges / unit, heights


def radius_histogram(records: Sequence[Certification], bins: int = 30, title: str = "") -> Figure:
    """Return the histogram of certified radii: right answers, wrong answers, and how many have no radius.

    Args:
        records: records of one norm.
        bins: number of bins between 0 and the largest radius; see :func:`radius_bins` for those that count pixels.
        title: heading, none if empty.

    Raises:
        ValueError: if there are no records, or they differ in norm.
    """
    from matplotlib.figure import Figure

    norms = sorted({record.norm for record in records})
    if len(norms) != 1:
        raise ValueError(f"records must be of one norm, got {', '.join(norms) or 'none'}")
    certified = [record for record in records if record.status == "certified"]
    groups = [[r.radius for r in certified if r.correct], [r.radius for r in certified if not r.correct]]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    edges = radius_bins(norms[0], max((r.radius for r in certified), default=0.0), bins)
    below = np.zeros(bins)
    for (name, hatch), group, colour in zip((("right", ""), ("wrong", "////")), groups, COLOURS, strict=False):
        heights = np.histogram(group, edges)[0]
        axes.bar(
            edges[:-1], heights, np.diff(edges), below, align="edge", label=f"{name} ({len(group)})",
            color=colour, hatch=hatch, edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        below = below + heights
    without = len(records) - len(certified)
    axes.bar(0, 0, 0, label=f"no radius ({without})", color="none")
    axes.set_xlim(edges[0], edges[-1])
    if counts_pixels(norms[0]):
        _whole(axes)
    finish(axes, f"certified {axis(norms[0])}", "images", wrapped(title, 5.5, 11))
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def radius_bins(norm: str, largest: float, most: int) -> FloatArray:
    """Return the edges of a histogram of radii from 0 to the largest; of radii that count pixels, whole ones.

    Args:
        norm: of the radii.
        largest: the largest radius.
        most: number of bins; where pixels are counted, at most so many, each around the same number of whole radii.
    """
    if not counts_pixels(norm):
        return np.linspace(0.0, largest or 1.0, most + 1)
    width = -(-(int(largest) + 1) // most)
    return np.arange(-0.5, largest + width, width)


def _whole(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _reach(record: Certification) -> float:
    """Return the largest radius at which a correct record still counts as certified."""
    if record.target is not None:
        return record.target
    if record.grid is not None and record.steps is not None:
        # D steps are certified at every r below D + 1 steps.
        return (record.steps + 1) / record.grid
    return record.radius


def accuracy_envelope(steps: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Return edges and heights of the largest of several step functions of :func:`accuracy_steps`."""
    edges = np.unique(np.concatenate([own for own, _ in steps]))
    ends = edges[1:]
    if not len(ends):
        return np.array([0.0, 0.0]), np.zeros(1)
    return edges, np.max([_at(own, heights, ends) for own, heights in steps], axis=0)


def _at(edges: FloatArray, heights: FloatArray, radii: FloatArray) -> FloatArray:
    index = np.searchsorted(edges[1:], radii, side="left")
    return np.append(heights, 0.0)[index]


def closed_steps(heights: FloatArray, open_end: bool = False) -> FloatArray:
    """Return the heights at the edges for ``where="pre"``: the first is repeated, a drop to 0 is added."""
    return np.concatenate([heights[:1], heights, [] if open_end else [0.0]])
