"""What a figure must be, judged by matplotlib's own boxes: everything inside, nothing on top of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def assert_readable(figure: Any, names: Sequence[str] = (), curves: bool = False) -> None:
    """Fail if a text leaves the figure, two texts overlap, axes are tiny, or a name is not shown.

    With ``curves``, also if two lines of one axes have the same colour and style.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = figure.bbox
    beyond = _beyond(figure)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if id(text) not in beyond]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    for text, box in boxes:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= whole.width + 0.5 and box.y1 <= whole.height + 0.5
        assert inside, f"{text!r} leaves the figure: {box.extents} of {whole.width} x {whole.height}"
    for (one, first), (two, second) in combinations(boxes, 2):
        apart = (
            first.x1 <= second.x0 + 1 or second.x1 <= first.x0 + 1
            or first.y1 <= second.y0 + 1 or second.y1 <= first.y0 + 1
        )  # fmt: skip
        assert apart, f"{one!r} and {two!r} lie on each other: {first.extents} and {second.extents}"
    for axes in figure.axes:
        size = axes.get_window_extent(renderer)
        assert min(size.width, size.height) >= 0.9 * figure.dpi, f"axes of {size.width} x {size.height} pixels"
        lines = [line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]
        looks = {(str(line.get_color()), str(line._unscaled_dash_pattern), line.get_alpha()) for line in lines}
        if curves:
            assert len(looks) == len(lines), "two curves look alike"
    shown = ["".join(text.split()) for text, _ in boxes]
    for name in names:
        whole_name = "".join(name.split())
        parts = [text.split("\N{HORIZONTAL ELLIPSIS}") for text in shown]
        assert any(whole_name.startswith(p[0]) and whole_name.endswith(p[-1]) for p in parts if p), name


def _beyond(figure: Any) -> set[int]:
    """Return the ids of tick labels outside the limits of their axis: matplotlib keeps them and does not draw them."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    found |= {id(tick.label1), id(tick.label2)}
    return found
