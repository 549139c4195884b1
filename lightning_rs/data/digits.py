"""scikit-learn's handwritten digits: real, small, and installed with the package."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.datasets import load_digits

from lightning_rs.checks import check_at_least
from lightning_rs.data.augment import CropFlip
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.sources import ArraySource, IntArray, Source
from lightning_rs.data.splits import hold_out

TEST_SIZE, TEST_SEED = 360, 0


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8 x 8 pixels in 17 grey levels (Alpaydin and Kaynak 1998), from scikit-learn.

    The test data are 360 images (stratified), the same for everyone: they depend on no argument. The own index of an
    image is its position in the test or in the training data; ``positions`` are those in ``load_digits()``.

    Args:
        shift: training images are moved by up to so many pixels; none by default.
        **kwargs: see ``ImageDataModule``.
    """

    name = "digits"
    num_classes = 10
    shape = (1, 8, 8)
    grid = 16
    class_names: tuple[str, ...] = tuple("0123456789")
    mean = (0.3053,)
    std = (0.3760,)
    default_val_size: ClassVar[int | float] = 0.1

    def __init__(self, shift: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shift = check_at_least("shift", shift, 0)

    @staticmethod
    def positions(split: Literal["train", "test"]) -> IntArray:
        """Return where the images of ``split`` are in ``sklearn.datasets.load_digits()``."""
        train, test = hold_out(load_digits().target, TEST_SIZE, TEST_SEED)
        return train if split == "train" else test

    def _load(self, split: Literal["train", "test"]) -> Source:
        digits, chosen = load_digits(), self.positions(split)
        values = digits.images[chosen, None].astype(np.uint8)
        return ArraySource(values, digits.target[chosen], 16, CropFlip(self.shift))

    def _root_name(self) -> str:
        return "scikit-learn"
