"""Figure 2 of Levine et al. (2020) from two record files: points, certified discs, and what the gradient adds to them.

    python -m benchmarks.swiss_roll --checkpoint CKPT --dots DOTS.jsonl --discs DISCS.jsonl --out FIGURE.png

Both files hold the same certificates on the same data; DISCS has more samples of fewer points (see
benchmarks/results/swiss_roll.md). The decision regions behind are those of the smoothed classifier by quadrature: the
base classifier on a fine grid, convolved with the noise. They are a picture, not a statement.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from lightning_rs.classifiers import NoiseAugmentation
from lightning_rs.data import SwissRoll
from lightning_rs.plots import Regions, plane_figure, save_figure
from lightning_rs.records import read_records

STEP = 0.01
MARGIN = 0.6  # beyond the outermost point, in input units


def smoothed_regions(checkpoint: Path, points: np.ndarray) -> Regions:
    """Return the classes of the smoothed classifier around the points."""
    model = NoiseAugmentation.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert model.noise is not None
    sigma, reach = model.noise.sigma, int(np.ceil(5 * model.noise.sigma / STEP))
    low, high = points.min(0) - MARGIN, points.max(0) + MARGIN
    x, y = (np.arange(a - reach * STEP, b + (reach + 0.5) * STEP, STEP) for a, b in zip(low, high, strict=True))
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).float()
    with torch.inference_mode():
        labels = torch.cat([model.network(part).argmax(1) for part in grid.split(1 << 16)]).numpy()
    votes = np.stack([(labels == kind).reshape(len(y), len(x)).astype(float) for kind in range(labels.max() + 1)])
    smooth = np.stack([gaussian_filter(each, sigma / STEP, mode="nearest", truncate=5.0) for each in votes])
    inner = slice(reach, -reach)
    return Regions(x[inner], y[inner], smooth[:, inner, inner].argmax(0))


def points_of(data: SwissRoll) -> np.ndarray:
    """Return all test points, (N, 2)."""
    data.setup("test")
    return np.concatenate([images.numpy() for images, _ in data.test_dataloader()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure and print what the discs gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "dots", "discs", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--certificate", default="SecondOrderL2")
    parser.add_argument("--title", default="")
    args = parser.parse_args(arguments)
    points = points_of(SwissRoll())
    (_, dots), (_, discs) = read_records(args.dots), read_records(args.discs)
    regions = smoothed_regions(args.checkpoint, points)
    save_figure(plane_figure(points, dots, discs, args.certificate, regions, args.title), args.out)
    gains = [100 * (r.radii[args.certificate] / r.radius - 1) for r in discs if r.correct and r.radius > 0]
    print(f"{len(gains)} discs, gain in %: {', '.join(f'{gain:.2f}' for gain in sorted(gains))}")


if __name__ == "__main__":
    main()
