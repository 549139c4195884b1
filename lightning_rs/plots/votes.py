"""The distribution of lower bounds of p: what a classifier is worth at every budget (Sun et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lightning_rs.checks import check_probability
from lightning_rs.plots.many import Curve, Frame, curves_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FloatArray = NDArray[np.float64]
# Tails at which the axis is labelled by p = 1 - tail.
_TICKS = {0.75: "0.25", 0.5: "0.5", 0.25: "0.75", 0.1: "0.9", 0.01: "0.99", 1e-3: "0.999", 1e-4: "0.9999"}
_TICKS |= {1e-5: "0.99999", 1e-6: "1 - 1e-6", 1e-7: "1 - 1e-7", 1e-8: "1 - 1e-8"}
_LEFT = 0.75


def vote_bound_figure(
    tails: Mapping[str, ArrayLike], norm: str = "l2", cap: tuple[str, float] | None = None, title: str = ""
) -> Figure:
    """Return the empirical distribution of lower bounds of p, one step curve a run; small multiples for many runs.

    The axis is linear in the quantile of the normal law, so that for Gaussian noise and Cohen's radius it is r / sigma.

    Args:
        tails: upper bounds of 1 - p, where p is the probability of the label; 1 where another class was chosen.
        norm: the norm whose certificates made the bounds, for the axis.
        cap: the smallest tail that the samples allow and the words for it: no curve can go beyond it.
        title: heading, none if empty.

    Raises:
        ValueError: if there are no runs, one is empty, or a tail is no probability.
    """
    found = {name: np.sort(check_probability(f"tails of {name!r}", values).ravel()) for name, values in tails.items()}
    if not found or not all(map(len, found.values())):
        raise ValueError("tails must hold at least one run with at least one image")
    least = min(float(values[0]) for values in found.values())
    right = _quantile(min([least, 0.01, *([cap[1]] if cap else [])]))
    left = _quantile(_LEFT)
    curves = {name: _distribution(values, left, right) for name, values in found.items()}
    frame = Frame(
        f"lower bound of p, the probability of the label under noise ({norm})", "share of images below",
        (left, right + 0.05 * (right - left)), "post", title, _ticks(right),
    )  # fmt: skip
    return curves_figure(curves, frame, {cap[0]: _line(_quantile(cap[1]))} if cap else None)


def vote_bound_polyline(tails: ArrayLike, most: int) -> tuple[FloatArray, FloatArray]:
    """Return the corners of the distribution of lower bounds of p, for a renderer of lines.

    Args:
        tails: upper bounds of 1 - p.
        most: number of steps that are kept; further ones are joined to the higher share on their left.

    Returns:
        Quantiles of the bounds under the normal law, from that of p = 1/4 on, and shares of images at or below.
    """
    curve = _distribution(np.sort(check_probability("tails", tails).ravel()), _quantile(_LEFT), 0.0)
    x, y = curve.x[:-1], curve.y[:-1]
    if len(x) > most:
        kept = np.unique(np.linspace(1, len(x) - 1, most).round().astype(int))
        x, y = np.append(x[0], x[np.append(1, kept[:-1] + 1)]), np.append(y[0], y[kept])
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def vote_bound_ticks() -> dict[float, str]:
    """Return where the axis of quantiles is labelled, and by which p."""
    return {_quantile(tail): label for tail, label in _TICKS.items()}


def _distribution(tails: FloatArray, left: float, right: float) -> Curve:
    """Return the share of images whose quantile is at most x; those below the left end are there from the start."""
    at = np.array([_quantile(tail) for tail in tails[::-1]])
    shares = np.arange(1, len(at) + 1) / len(at)
    shown = at > left
    below = float((~shown).mean())
    x, y = np.concatenate([[left], at[shown]]), np.concatenate([[below], shares[shown]])
    return Curve(np.append(x, right + 1.0), np.append(y, y[-1]))


def _quantile(tail: float) -> float:
    return float(-ndtri(max(tail, 1e-300)))


def _ticks(right: float) -> Callable[[Axes], None]:
    places = vote_bound_ticks()
    shown = {place: label for place, label in places.items() if place <= right + 0.2}

    def furnish(axes: Axes) -> None:
        axes.set_xticks(list(shown), list(shown.values()), fontsize=8, rotation=45, ha="right", rotation_mode="anchor")

    return furnish


def _line(place: float) -> Callable[[Axes], Line2D]:
    def draw(axes: Axes) -> Line2D:
        return axes.axvline(place, color="black", lw=1.0, ls=(0, (1, 2)))

    return draw
