"""What all figures share: colours, axes, files.

Figures are built without pyplot, so that no global state is touched and no display is needed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rs.checks import naming

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with any colour vision; black is kept for the envelope.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_PIXELS = 60_000  # matplotlib draws fewer than 2^16 in each direction
STYLES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (1.5, 1.5)))


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in the format that the suffix names, with no date in it, and return the path."""
    from matplotlib import rc_context

    path = Path(path)
    most = _PIXELS / max(figure.get_size_inches())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Equal figures give equal files: SVG ids are hashed with a random salt and dated otherwise. Journals ask for fonts
    # of type 42.
    with naming(path), rc_context({"svg.hashsalt": "lightning_rs", "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box says it in the picture
        figure.savefig(path, dpi=min(160.0, most), metadata=_UNDATED.get(path.suffix))
    return path


def finish(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes, draw a light grid, drop the upper and right frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=11, parse_math=False)
