"""Exact smoothed probabilities of base classifiers on a small grid, by enumerating all splits."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_rs.noise.splitting import splitting_codes

IntArray = NDArray[np.int64]


class Grid:
    """All inputs {0..q}^d, and the representation of each under each given vector of splits.

    Args:
        q: number of grid steps.
        levels: number K of splits of one coordinate.
        splits: vectors of splits, shape (m, d): every row has the same weight.

    Attributes:
        points: inputs in grid steps, shape (points, d).
        cells: number of the representation of each point under each row of splits, shape (points, m): equal
            numbers are equal representations, so a base classifier is an array indexed by ``cells``.
    """

    def __init__(self, q: int, levels: int, splits: IntArray) -> None:
        dim = splits.shape[1]
        self.points = np.array(list(itertools.product(range(q + 1), repeat=dim)))
        every, split = torch.arange(q + 1).repeat(levels), torch.arange(levels).repeat_interleave(q + 1)
        pixels = splitting_codes(every, split, torch.tensor([0]), levels, q)
        table = pixels.numpy().astype(np.int64).reshape(levels, q + 1)
        codes = np.zeros((len(self.points), len(splits)), dtype=np.int64)
        for i in range(dim):
            codes = codes * (4 * q + 1) + table[splits[:, i][None, :], self.points[:, i][:, None]]
        self.cells = np.unique(codes, return_inverse=True)[1].reshape(codes.shape)

    @property
    def size(self) -> int:
        """Number of different representations."""
        return int(self.cells.max()) + 1

    def votes(self, classifier: IntArray, classes: int) -> IntArray:
        """Return how often each class is the label, shape (points, classes)."""
        labels = classifier[self.cells]
        return np.stack([(labels == c).sum(1) for c in range(classes)], axis=1)

    def distances(self, norm: Literal[1, "inf"]) -> IntArray:
        """Return all pairwise distances in grid steps, shape (points, points)."""
        steps = np.abs(self.points[:, None] - self.points[None])
        return steps.sum(2) if norm == 1 else steps.max(2)


def independent_splits(levels: int, dim: int) -> IntArray:
    """Return all vectors in {0..levels-1}^dim."""
    return np.array(list(itertools.product(range(levels), repeat=dim)))


def shared_splits(levels: int, v: IntArray) -> IntArray:
    """Return (b + v) mod levels for every outcome b."""
    return (np.arange(levels)[:, None] + v) % levels


def random_classifier(grid: Grid, classes: int, rng: np.random.Generator) -> IntArray:
    """Return labels of all representations: noise, or thresholds along the order of the cells with noise."""
    noise = rng.integers(classes, size=grid.size)
    bounds = np.sort(rng.integers(grid.size + 1, size=classes - 1))
    steps = rng.permutation(classes)[np.searchsorted(bounds, np.arange(grid.size), side="right")]
    return np.where(rng.random(grid.size) < rng.choice([0.0, 0.1, 1.0]), noise, steps)
