"""Distributions of the change of radius from one certificate to others (cf. Levine et al. 2020, Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.plots.text import labels, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
_COLUMNS = 12  # so many runs share a panel
_WIDEST = 14.0  # inches that panels fill before the next row begins
_LABEL = 2.6  # inches that a run's name fills before its next line begins
_GOLDEN = 0.6180339887498949
_LINEAR = 1.0  # percent: smaller changes are drawn to a linear scale, larger ones to a logarithmic one


def change_figure(
    changes: Mapping[str, Mapping[str, ArrayLike]], baseline: str = "the first certificate", title: str = ""
) -> Figure:
    """Return the distribution of changes of radius, one panel a certificate and one column a run.

    A panel holds up to twelve runs; more fill further panels. Every image is a point; the box spans the quartiles with
    a line at the median, the whiskers 5% to 95%. Above each column stands the share of images whose radius went up. The
    axis is linear up to 1% and logarithmic beyond.

    Args:
        changes: changes in percent of the baseline's radius, one number an image, by certificate and then by run.
        baseline: what the change is relative to, for the axis.
        title: heading, none if empty.

    Raises:
        ValueError: if there are no certificates, or a column is empty or not finite.
    """
    from matplotlib.figure import Figure

    columns = {name: {run: _finite(name, run, values) for run, values in own.items()} for name, own in changes.items()}
    if not columns or not all(columns.values()):
        raise ValueError(f"changes must hold at least one run of each certificate, got {dict(changes)!r}")
    parts = [
        (name, dict(part), COLOURS[number % len(COLOURS)])
        for number, (name, own) in enumerate(columns.items())
        for part in _parts(list(own.items()))
    ]
    wide = max(1.6, 0.4 + 0.6 * max(len(own) for _, own, _ in parts))
    across = min(len(parts), max(1, int(_WIDEST / wide)))
    down = -(-len(parts) // across)
    shown = [labels(own, _LABEL, 8) for _, own, _ in parts]
    # Names stand upright where they would run into each other.
    upright = any(width(line, 8) > 0.9 for texts in shown for text in texts for line in text.split("\n"))
    tall = max(width(line, 8) for texts in shown for text in texts for line in text.split("\n")) if upright else 0.4
    inches = (1.0 + across * wide, down * (3.9 + tall) + 0.2)
    figure = Figure(figsize=inches, layout="constrained")
    first: Axes | None = None
    for place, (name, own, colour) in enumerate(parts):
        axes = figure.add_subplot(down, across, place + 1, sharey=first)
        first = first or axes
        _panel(axes, own, colour)
        axes.set_xticks(range(len(own)), shown[place], fontsize=8, parse_math=False)
        axes.tick_params("x", rotation=90 if upright else 30 if len(own) > 1 else 0)
        finish(axes, "", wrapped(f"change of radius against {baseline} (%)", 3.0, 10) if place % across == 0 else "")
        heading = wrapped(name, wide - 0.2, 10)
        axes.set_title(heading, fontsize=10, pad=18, parse_math=False)  # above the shares
    assert first is not None
    _scale(first, np.concatenate([values for own in columns.values() for values in own.values()]))
    if title:
        figure.suptitle(wrapped(title, inches[0] - 0.4, 12), fontsize=12, parse_math=False)
    return figure


def _parts(columns: list[tuple[str, FloatArray]]) -> list[list[tuple[str, FloatArray]]]:
    """Return the columns of one certificate in groups that fit into a panel, of nearly equal size."""
    count = -(-len(columns) // _COLUMNS)
    size = -(-len(columns) // count)
    return [columns[i : i + size] for i in range(0, len(columns), size)]


def _finite(name: str, run: str, values: ArrayLike) -> FloatArray:
    found = np.asarray(values, dtype=np.float64).ravel()
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"changes of {name!r} in {run!r} must be finite, at least one, got {found!r}")
    return found


def _panel(axes: Axes, columns: Mapping[str, FloatArray], colour: str) -> None:
    for place, values in enumerate(columns.values()):
        # Spread sideways by a low-discrepancy sequence: the picture is the same every time.
        aside = 0.5 * (np.arange(len(values)) * _GOLDEN % 1 - 0.5)
        axes.plot(place + aside, values, ".", color=colour, ms=3, alpha=0.35, mew=0, rasterized=True)
        share = f"{100 * float((values > 0).mean()):.0f}% up"
        axes.annotate(share, (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axes.boxplot(
        list(columns.values()), positions=range(len(columns)), widths=0.6, whis=(5, 95), showfliers=False,
        medianprops={"color": "black", "linewidth": 1.8}, boxprops={"linewidth": 1.0},
    )  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xlim(-0.6, len(columns) - 0.4)


def _scale(axes: Axes, values: FloatArray) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.0)
    axes.set_ylim(min(1.3 * float(values.min()), -0.5), max(1.3 * float(values.max()), 0.5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
