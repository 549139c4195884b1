"""Figures of step curves, whatever their number and names: one axes for a few, small multiples for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.plots.text import HANDLE, LINE, labels, legend_columns, lines_of, literal_legend, width, wrapped

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FloatArray = NDArray[np.float64]

_ABOVE = 4  # so many names stand above the axes, more beside it
_TOGETHER = 12  # so many curves share one axes: each with a look of its own
_PANEL = 6  # so many share a panel of small multiples: each with a colour of its own
_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """A step function.

    Attributes:
        x: edges, shape (k,), increasing.
        y: heights, shape (k,): from the edge before (``where="pre"``) or to the next one ("post").
        open_end: whether nothing is known beyond the last edge; it gets a dot.
    """

    x: FloatArray
    y: FloatArray
    open_end: bool = False


@dataclass(frozen=True)
class Frame:
    """What all axes of one figure share.

    Attributes:
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        x_limits: its ends; the vertical axis goes from 0 to 1.
        where: side of the steps, as matplotlib calls it.
        title: heading, none if empty.
        furnish: called with every axes, for ticks.
    """

    x_label: str
    y_label: str
    x_limits: tuple[float, float]
    where: Literal["pre", "post"] = "pre"
    title: str = ""
    furnish: Callable[[Axes], None] | None = None


def curves_figure(
    curves: Mapping[str, Curve], frame: Frame, behind: Mapping[str, Callable[[Axes], Line2D]] | None = None
) -> Figure:
    """Return a figure of step curves; every name and every remark lies inside it.

    Up to twelve curves share one axes. More are drawn as small multiples of up to six, in the order given and to one
    scale, so that no two curves of one axes look alike.

    Args:
        curves: by the name that the legend shows.
        frame: what the axes say.
        behind: what every axes shows besides, by the words that explain it: each draws one line.
    """
    from matplotlib.figure import Figure

    behind = behind or {}
    figure = Figure(layout="constrained")
    if len(curves) <= _TOGETHER:
        _one_axes(figure, curves, frame, behind)
    else:
        _small_multiples(figure, curves, frame, behind)
    return figure


def _one_axes(
    figure: Figure, curves: Mapping[str, Curve], frame: Frame, behind: Mapping[str, Callable[[Axes], Line2D]]
) -> None:
    axes = figure.add_subplot()
    handles: list[Artist] = [*_draw(axes, curves, frame), *(draw(axes) for draw in behind.values())]
    finish(axes, wrapped(frame.x_label, 5.0, 10), frame.y_label, wrapped(frame.title, 5.5, 11))
    if len(curves) <= _ABOVE:
        texts = [*labels(curves, 5.5, 9), *(wrapped(text, 5.5, 9) for text in behind)]
        columns = legend_columns(texts, 6.2, most=2)
        rows = -(-lines_of(texts) // columns)
        figure.set_size_inches(6.4, 4.4 + LINE * max(rows - 2, 0))
        # Outside, because accurate runs fill every corner of the axes.
        literal_legend(figure, handles, texts, loc="outside upper center", ncols=columns, fontsize=9, frameon=False)
    else:
        texts = [*labels(curves, 2.7, 9), *(wrapped(text, 2.7, 9) for text in behind)]
        widest = max(width(line, 9) for text in texts for line in text.split("\n"))
        figure.set_size_inches(max(9.0, 6.0 + HANDLE + widest + 0.2), max(4.4, LINE * lines_of(texts) + 0.6))
        literal_legend(figure, handles, texts, loc="outside right upper", fontsize=9)


def _small_multiples(
    figure: Figure, curves: Mapping[str, Curve], frame: Frame, behind: Mapping[str, Callable[[Axes], Line2D]]
) -> None:
    names = labels(curves, 2.8, 8)
    groups = np.array_split(np.arange(len(names)), -(-len(names) // _PANEL))
    columns = min(_COLUMNS, len(groups))
    rows = [groups[i : i + columns] for i in range(0, len(groups), columns)]
    tallest = [max(lines_of(names[i] for i in group) for group in row) for row in rows]
    figure.set_size_inches(3.7 * columns, 2.3 * len(rows) + 0.16 * sum(tallest) + 0.7)
    items, first = list(curves.items()), None
    for place, group in enumerate(groups):
        axes = figure.add_subplot(len(rows), columns, place + 1, sharex=first, sharey=first)
        first = first or axes
        lines = _draw(axes, dict(items[i] for i in group), frame)
        besides = [draw(axes) for draw in behind.values()]
        finish(axes, "", "")
        literal_legend(
            axes, lines, [names[i] for i in group], loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2,
            fontsize=8, frameon=False, labelspacing=0.3,
        )  # fmt: skip
    title = wrapped(frame.title, 3.5 * columns, 11) if frame.title else ""
    if behind:
        texts = [wrapped(text, 3.7 * columns - 1.0, 9) for text in behind]
        literal_legend(figure, besides, texts, title, loc="outside upper center", fontsize=9, frameon=False)
    elif title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    figure.supxlabel(wrapped(frame.x_label, 3.5 * columns, 10), fontsize=10)
    figure.supylabel(frame.y_label, fontsize=10)


def _draw(axes: Axes, curves: Mapping[str, Curve], frame: Frame) -> list[Line2D]:
    lines = []
    for number, (name, curve) in enumerate(curves.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        [line] = axes.step(curve.x, curve.y, where=frame.where, color=colour, linestyle=style, lw=1.8)
        line.set_label(name)
        lines.append(line)
        if curve.open_end:
            axes.plot(curve.x[-1], curve.y[-1], marker="o", ls="none", color=colour, ms=5, label=f"_end of {number}")
    axes.set_xlim(*frame.x_limits)
    axes.set_ylim(0, 1.02)
    if frame.furnish is not None:
        frame.furnish(axes)
    return lines
