"""Street View House Numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import datasets

from lightning_rs.data.augment import CropFlip
from lightning_rs.data.torchvision import Arrays, Part, TorchvisionDataModule


class SVHN(TorchvisionDataModule):
    """73,257 and 26,032 house numbers, colour, 32 x 32 (Netzer et al. 2011); the ``extra`` images are not used.

    Augmentation: zero-padding by 4 and random crop; no flip, which would make other digits. Only the file of the
    split at hand is needed.
    """

    name = "svhn"
    num_classes = 10
    shape = (3, 32, 32)
    class_names = tuple("0123456789")
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def _files(self, split: Part) -> list[Path]:
        return [Path(datasets.SVHN.split_list[split][1])]

    def _open(self, split: Part, download: bool) -> Arrays:
        data = datasets.SVHN(self.root, split=split, download=download)
        return np.ascontiguousarray(data.data), np.atleast_1d(data.labels)

    def _augmentation(self) -> CropFlip:
        return CropFlip(padding=4)
