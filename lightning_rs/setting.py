"""Noise, level, samples and shape of what is certified, and the classes chosen before: said once, passed whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.noise.base import Noise
from lightning_rs.noise.lattice import Lattice

IntArray = NDArray[np.int64]
NO_CLASS = -1


@dataclass(frozen=True)
class Selection:
    """What the selection samples may tell the estimation: two classes an image, and which others share a bound.

    Attributes:
        top: class of the largest count, (B,); -1 for exact laws, which need no selection.
        runner_up: class of the second largest count, (B,).
        counts: the selection counts, (B, C); None where nobody kept them.
    """

    top: IntArray
    runner_up: IntArray
    counts: IntArray | None = None

    @classmethod
    def of(cls, counts: IntArray) -> Self:
        """Return the classes of the largest and second largest of counts (B, C); ties go to the lower index."""
        ranked = np.argsort(-counts, axis=1, kind="stable")
        return cls(ranked[:, 0], ranked[:, min(1, counts.shape[1] - 1)], counts)

    @classmethod
    def none(cls, images: int) -> Self:
        """Return what is known of images without selection samples."""
        nobody = np.full(images, NO_CLASS, dtype=np.int64)
        return cls(nobody, nobody)

    @classmethod
    def known(cls, top: ArrayLike, runner_up: ArrayLike | None = None, counts: ArrayLike | None = None) -> Self:
        """Return classes (B,), and counts (B, C), that are known from elsewhere, a record for instance."""
        chosen = np.asarray(top, dtype=np.int64)
        second = np.full_like(chosen, NO_CLASS) if runner_up is None else np.asarray(runner_up, dtype=np.int64)
        return cls(chosen, second, None if counts is None else np.asarray(counts, dtype=np.int64))

    def take(self, rows: slice | Sequence[int] | IntArray) -> Selection:
        """Return that of some images."""
        return Selection(self.top[rows], self.runner_up[rows], None if self.counts is None else self.counts[rows])


@dataclass(frozen=True)
class Setting:
    """What a certificate may know beside the evidence: all of it was fixed before the estimation samples.

    Attributes:
        noise: the law of the noisy copies.
        alpha: failure probability of the statement about one image that is left for its bounds; the error of drawing
            the noise is off it already.
        n: number of samples an image; of all outcomes, where these are enumerated.
        shape: shape of one input, for instance (3, 32, 32).
        selection: the classes of each image from the selection samples; of no image before there are any.
        lattice: where images are rounded to; None if they are not.
    """

    noise: Noise
    alpha: float
    n: int
    shape: tuple[int, ...]
    _: KW_ONLY
    selection: Selection = field(default_factory=lambda: Selection.none(0))
    lattice: Lattice | None = None

    @property
    def top(self) -> IntArray:
        """Class of each image from the selection samples, (B,); -1 where the law needs none."""
        return self.selection.top

    @property
    def runner_up(self) -> IntArray:
        """Second class of each image from the selection samples, (B,)."""
        return self.selection.runner_up

    @property
    def dim(self) -> int:
        """Number of input coordinates."""
        return math.prod(self.shape)

    def rounding(self, norm: str) -> float:
        """Return the most that rounding images to the lattice can take off a radius."""
        return 0.0 if self.lattice is None else 2.0 * self.lattice.worst(norm.partition(":")[0], self.dim)
