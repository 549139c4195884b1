"""Grids of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.plots.text import labels, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]


def image_grid(columns: Mapping[str, ArrayLike], rows: Sequence[str] = (), title: str = "") -> Figure:
    """Return a grid of images, one column an entry: the clean images beside noisy copies of them, for instance.

    Values are shown as they are between 0 and 1 and clipped outside, without rescaling.

    Args:
        columns: images by heading, each (B, C, H, W) or (B, H, W) with C = 1 or 3 and equal B.
        rows: names of the B rows, shown at the left; none if empty.
        title: heading, none if empty.

    Raises:
        ValueError: if there are no columns, or shapes do not fit.
    """
    from matplotlib.figure import Figure

    pictures = {name: _pictures(name, images) for name, images in columns.items()}
    counts = {len(images) for images in pictures.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"columns must hold equally many images, at least one, got {sorted(counts)}")
    count = counts.pop()
    headings, across = labels(pictures, 1.35, 10), max(1.5 * len(pictures) + 0.3, 2.6)
    tall = 1.5 * count + 0.3 + 0.19 * max(text.count("\n") + 1 for text in headings)
    figure = Figure(figsize=(across, tall + (0.4 if title else 0.0)), layout="constrained")
    cells = figure.subplots(count, len(pictures), squeeze=False)
    for column, images in enumerate(pictures.values()):
        for row in range(count):
            axes = cells[row, column]
            axes.imshow(images[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0 and rows:
                axes.set_ylabel(wrapped(rows[row], 1.35, 9), fontsize=9, parse_math=False)
        cells[0, column].set_title(headings[column], fontsize=10, parse_math=False)
    if title:
        figure.suptitle(wrapped(title, across - 0.2, 11), fontsize=11, parse_math=False)
    return figure


def _pictures(name: str, images: ArrayLike) -> FloatArray:
    array = np.asarray(images, dtype=np.float64)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images of column {name!r} must have shape (B, 1 or 3, H, W), got {np.shape(images)}")
    clipped = np.clip(array.transpose(0, 2, 3, 1), 0.0, 1.0)
    return clipped[..., 0] if clipped.shape[-1] == 1 else clipped
