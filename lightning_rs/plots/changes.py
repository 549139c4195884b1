"""Distributions of the change of radius from one certificate to others (cf. Levine et al. 2020, Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.plots.style import COLOURS, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
_GOLDEN = 0.6180339887498949
_LINEAR = 1.0  # percent: smaller changes are drawn to a linear scale, larger ones to a logarithmic one


def change_figure(
    changes: Mapping[str, Mapping[str, ArrayLike]], baseline: str = "the first certificate", title: str = ""
) -> Figure:
    """Return the distribution of changes of radius, one panel a certificate and one column a run.

    Every image is a point; the box spans the quartiles with a line at the median, the whiskers 5% to 95%. Above each
    column stands the share of images whose radius went up. The axis is linear up to 1% and logarithmic beyond.

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
    most = max(map(len, columns.values()))
    figure = Figure(figsize=(1.0 + len(columns) * max(1.6, 0.4 + 0.6 * most), 4.4), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for number, (axes, (name, own)) in enumerate(zip(panels, columns.items(), strict=True)):
        _panel(axes, own, COLOURS[number % len(COLOURS)])
        finish(axes, "", f"change of radius against {baseline} (%)" if number == 0 else "")
        axes.set_title(name, fontsize=10, pad=18)  # above the shares
    _scale(panels[0], np.concatenate([values for own in columns.values() for values in own.values()]))
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


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
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8, rotation=30 if len(columns) > 1 else 0)
    axes.set_xlim(-0.6, len(columns) - 0.4)


def _scale(axes: Axes, values: FloatArray) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.0)
    axes.set_ylim(min(1.3 * float(values.min()), -0.5), max(1.3 * float(values.max()), 0.5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
