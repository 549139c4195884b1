"""Names in figures: measured, broken where they are too long, told apart, never read as formulas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

_POINTS = 72.0  # to the inch
_HINTING = 1.04  # what a raster's rounding of glyphs adds at most, measured at 8 points
_PIECE = re.compile(r"[^\s/_:,=\-]*[\s/_:,=\-]?")
_LINES = 3
HANDLE = 0.5  # width of a legend's sample of a line, with its space, in inches
LINE = 0.175  # height of a legend's line at 9 points, in inches


@lru_cache(maxsize=20_000)
def width(text: str, size: float) -> float:
    """Return how wide one line of the default font at a size in points is, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is as wide as a letter
        found, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return _HINTING * float(found) / _POINTS


def wrapped(text: str, inches: float, size: float, most: int = _LINES) -> str:
    """Return a text broken into lines of at most that width, preferably after a separator.

    Where more than ``most`` lines were needed, characters of the middle give way to an ellipsis.
    """
    lines = _lines(text, inches, size)
    if len(lines) > most:
        low, high = 1, len(text) - 1  # characters that stay
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(_lines(_cut(text, middle), inches, size)) <= most else (low, middle - 1)
        lines = _lines(_cut(text, low), inches, size)
    return "\n".join(line.rstrip() for line in lines)


def labels(names: Iterable[str], inches: float, size: float) -> list[str]:
    """Return names as :func:`wrapped` breaks them; those that are then alike get their number in front."""
    given = [" ".join(name.split()) for name in names]
    shown = [wrapped(name, inches, size) for name in given]
    return [
        wrapped(f"{number}: {name}", inches, size) if shown.count(label) > 1 else label
        for number, (name, label) in enumerate(zip(given, shown, strict=True), 1)
    ]


def literal_legend(
    owner: Figure | Axes, handles: Sequence[Artist], texts: Sequence[str], title: str = "", **options: Any
) -> Legend:
    """Return a legend that shows texts as they are: a dollar is no formula, a leading underscore hides nothing.

    The title of a figure that has a legend above its axes belongs into the legend: matplotlib would draw one over the
    other.
    """
    legend = owner.legend(handles, [str(number) for number in range(len(texts))], **options)
    if title:
        legend.set_title(title)
        legend.get_title().set(fontsize=11, parse_math=False)
    for shown, text in zip(legend.get_texts(), texts, strict=True):
        shown.set_parse_math(False)
        shown.set_text(text)
    return legend


def lines_of(texts: Iterable[str]) -> int:
    """Return how many lines some texts take together."""
    return sum(text.count("\n") + 1 for text in texts)


def legend_columns(texts: Sequence[str], inches: float, most: int = 3) -> int:
    """Return in how many columns, filled one after the other, a legend at 9 points is not too wide."""
    for columns in range(min(most, len(texts)), 1, -1):
        parts = np.array_split(np.arange(len(texts)), columns)  # as matplotlib does
        widths = [max(width(line, 9) for i in part for line in texts[i].split("\n")) for part in parts]
        if sum(widths) + columns * HANDLE + (columns - 1) * 0.25 <= inches:
            return columns
    return 1


def _cut(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - kept // 2 :]}"


def _lines(text: str, inches: float, size: float) -> list[str]:
    lines = [""]
    for piece in filter(None, _PIECE.findall(text)):
        if not lines[-1] or width((lines[-1] + piece).rstrip(), size) <= inches:
            lines[-1] += piece
        else:
            lines.append(piece)
        while width(lines[-1].rstrip(), size) > inches and len(lines[-1]) > 1:  # one piece wider than a line
            fits = _fitting(lines[-1], inches, size)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def _fitting(text: str, inches: float, size: float) -> int:
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width(text[:middle], size) <= inches else (low, middle - 1)
    return low
