"""Figures of brackets: what is certified, what is broken, and the gap between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.plots.text import LINE, labels, lines_of, literal_legend, wrapped
from lightning_rs.records.units import axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]


class Bracketed(Protocol):
    """What a curve needs of an attack record."""

    @property
    def norm(self) -> str:
        """Norm of the distances."""
        ...

    @property
    def bracket(self) -> tuple[float, float]:
        """Certified up to, broken from; minus infinity where nothing is stated, infinity where nothing broke it."""
        ...


def bracket_steps(records: Sequence[Bracketed]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return radii r >= 0 and, at each, the shares certified at r and not attacked at r.

    Images whose class is not the label count as neither, from r = 0 on.

    Raises:
        ValueError: if there are no records.
    """
    if not records:
        raise ValueError("records must hold at least one image, got none")
    lower, upper = np.array([record.bracket for record in records], dtype=np.float64).T
    # A hair beyond each radius as well: steps hold up to the next edge, and nothing is certified beyond its own radius.
    ends = np.concatenate([lower, upper])
    ends = ends[np.isfinite(ends)]
    edges = np.unique(np.concatenate([[0.0], ends, ends * (1 + 1e-9)]))
    certified = (lower[None] >= edges[:, None]) & (upper[None] > 0)
    return edges, certified.mean(1), (upper[None] > edges[:, None]).mean(1)


def bracket_figure(runs: Mapping[str, Sequence[Bracketed]], title: str = "") -> Figure:
    """Return the curves "certified at r" and "not attacked at r" of each run, with the gap between them shaded.

    Args:
        runs: attack records by name, all of one norm.
        title: heading, none if empty.

    Raises:
        ValueError: if there are no runs, one has no records, norms differ, or there are more runs than colours.
    """
    from matplotlib.figure import Figure

    if len(runs) > len(COLOURS):
        raise ValueError(f"runs must be at most {len(COLOURS)}, which are told apart by colour, got {len(runs)}")
    norms = sorted({record.norm for records in runs.values() for record in records})
    if len(norms) != 1:
        raise ValueError(f"runs must be of one norm, got {', '.join(norms) or 'none'}")
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    right, lines, texts = 0.0, [], []
    for (name, records), colour in zip(runs.items(), COLOURS, strict=False):
        edges, certified, standing = bracket_steps(records)
        right = max(right, float(edges[-1]))
        end = np.append(edges, edges[-1] * 1.05 + 1e-9)
        for heights, style, what in (
            (certified, "solid", "certified at r"),
            (standing, (0, (6, 2)), "not attacked at r"),
        ):
            texts.append(f"{name}: {what} ({len(records)} images)")
            lines += axes.step(
                end, np.append(heights, heights[-1]), where="post", color=colour, linestyle=style, lw=1.8,
                label=texts[-1],
            )  # fmt: skip
        axes.fill_between(
            end, np.append(certified, certified[-1]), np.append(standing, standing[-1]), step="post", color=colour,
            alpha=0.15, lw=0,
        )  # fmt: skip
    axes.set_xlim(0, right * 1.05 if right > 0 else 1.0)
    axes.set_ylim(0, 1.02)
    finish(axes, axis(norms[0]), "share of images", wrapped(title, 5.5, 11))
    shown = labels(texts, 5.5, 9)
    figure.set_size_inches(6.4, 4.1 + LINE * lines_of(shown))
    literal_legend(figure, lines, shown, loc="outside upper center", ncols=1, fontsize=9, frameon=False)
    return figure
