"""A figure of several panels: certified accuracy in several norms, each with and without something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_rs.plots.curves import accuracy_envelope, accuracy_steps, closed_steps
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.plots.text import LINE, labels, legend_columns, lines_of, literal_legend, wrapped
from lightning_rs.records import Certification
from lightning_rs.records.units import axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Records by run (the colour), by kind of certificate (the line).
Kinds = Mapping[str, Mapping[str, Sequence[Certification]]]


def certified_accuracy_panels(panels: Mapping[str, Kinds], envelope: bool = True, title: str = "") -> Figure:
    """Return certified accuracy against radius, one panel a norm, colours for runs and lines for kinds.

    Args:
        panels: by the norm that the axis names: records by kind (for instance "with gradients" and "without") and by
            run (for instance a noise level). Kinds and runs are the same in all panels. What is drawn in one panel
            must bound the same perturbations; an l2 radius may stand in for one in a subspace.
        envelope: for each kind, the best run at each radius, wide and pale. It picks the run after seeing the results:
            it describes them and guarantees nothing; the legend says so.
        title: heading, none if empty.

    Raises:
        ValueError: without panels, if two panels differ in their kinds or runs, or if there are more runs than
            colours or more kinds than lines.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = {norm: {kind: list(runs) for kind, runs in kinds.items()} for norm, kinds in panels.items()}
    if not names or any(other != next(iter(names.values())) for other in names.values()):
        raise ValueError(f"panels must be one or more with the same kinds and runs, got {names}")
    kinds = next(iter(names.values()))
    runs = next(iter(kinds.values()), [])
    if len(runs) > len(COLOURS) or len(kinds) > len(STYLES):
        raise ValueError(
            f"panels must hold at most {len(COLOURS)} runs (colours) and {len(STYLES)} kinds (lines), "
            f"got {len(runs)} and {len(kinds)}"
        )
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    figure = Figure(layout="constrained")
    for place, (norm, drawn) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw(axes, drawn, envelope)
        finish(axes, axis(norm), "certified accuracy at r")
    handles = [Line2D([], [], color=colour) for _, colour in zip(runs, COLOURS, strict=False)]
    handles += [Line2D([], [], color="black", ls=style) for _, style in zip(kinds, STYLES, strict=False)]
    texts = [*runs, *kinds]
    if envelope and len(runs) > 1:
        handles.append(Line2D([], [], color="black", lw=5, alpha=0.2))
        texts.append("envelope (descriptive, no guarantee)")
    count = legend_columns(texts, 3.8 * columns - 0.2)
    shown = labels(texts, 3.8 * columns - 0.9, 9)
    figure.set_size_inches(3.8 * columns, 2.7 * rows + 0.5 + LINE * -(-lines_of(shown) // count))
    heading = wrapped(title, 3.5 * columns, 11) if title else ""
    literal_legend(figure, handles, shown, heading, loc="outside upper center", ncols=count, fontsize=9, frameon=False)
    return figure


def _draw(axes: Axes, kinds: Kinds, envelope: bool) -> None:
    right = 0.0
    for number, (runs, style) in enumerate(zip(kinds.values(), STYLES, strict=False)):
        steps = [accuracy_steps(records) for records in runs.values()]
        for (edges, heights), colour in zip(steps, COLOURS, strict=False):
            axes.step(np.append(edges, edges[-1]), closed_steps(heights), where="pre", color=colour, ls=style, lw=1.5)
            right = max(right, float(edges[-1]))
        if envelope and len(steps) > 1:
            edges, heights = accuracy_envelope(steps)
            ends, alpha = np.append(edges, edges[-1]), 0.22 - 0.1 * (number > 0)
            axes.step(ends, closed_steps(heights), where="pre", color="black", ls=style, lw=5, alpha=alpha)
    axes.set_xlim(0, right * 1.02 if right > 0 else 1.0)
    axes.set_ylim(0, 1.02)
