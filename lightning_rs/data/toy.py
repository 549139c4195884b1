"""A set of points in the plane on which certified radii can be drawn."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.datasets import make_swiss_roll

from lightning_rs.checks import check_at_least, check_nonnegative
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.sources import ArraySource, Source

TURNS = (1.5 * np.pi, 4.5 * np.pi)  # the angles that make_swiss_roll draws from


class SwissRoll(ImageDataModule):
    """scikit-learn's Swiss roll seen from its end: points ``(t cos t, t sin t) / 10`` in R^2, no grid.

    ``t`` is uniform in [1.5 pi, 4.5 pi], cut into ``classes`` equal parts from the inside out. With two classes the
    inner one is surrounded by the outer one (cf. Levine et al. 2020, Figure 2, which does not give its scale).
    Neighbouring turns are 0.63 apart. Training and test points come from different seeds. There is no augmentation.

    Args:
        classes: number of parts.
        train_size: number of training points, validation included.
        test_size: number of test points.
        jitter: standard deviation of Gaussian noise in the data, in units of the coordinates.
        data_seed: seed of the points.
        **kwargs: see ``ImageDataModule``.
    """

    name = "swiss_roll"
    num_classes = 2
    shape = (2,)
    class_names: tuple[str, ...] = ()
    mean = (0.201, 0.020)
    std = (0.664, 0.695)
    domain = None
    grid = None

    def __init__(
        self,
        classes: int = 2,
        train_size: int = 4000,
        test_size: int = 1000,
        jitter: float = 0.0,
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check_at_least("classes", classes, 2)
        self.class_names = tuple(f"part {part}" for part in range(classes))
        self.sizes = {
            "train": check_at_least("train_size", train_size, 1),
            "test": check_at_least("test_size", test_size, 1),
        }
        self.jitter = float(check_nonnegative("jitter", jitter))
        self.data_seed = check_at_least("data_seed", data_seed, 0)

    def _load(self, split: Literal["train", "test"]) -> Source:
        random = np.random.RandomState([self.data_seed, ("train", "test").index(split)])
        points, t = make_swiss_roll(self.sizes[split], noise=10 * self.jitter, random_state=random)
        part = np.floor((t - TURNS[0]) / (TURNS[1] - TURNS[0]) * self.num_classes)
        labels = np.clip(part, 0, self.num_classes - 1).astype(np.int64)
        # Multiples of 2^-16: the same points on every machine, though sines differ in their last bit.
        plane = np.ldexp(np.round(np.ldexp(points[:, [0, 2]] / 10, 16)), -16)
        return ArraySource(plane.astype(np.float32), labels, None)

    def _root_name(self) -> str:
        return "scikit-learn"
