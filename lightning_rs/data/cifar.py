"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from torchvision import datasets

from lightning_rs.data.augment import CropFlip
from lightning_rs.data.torchvision import Arrays, Part, TorchvisionDataModule

FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class _CIFARDataModule(TorchvisionDataModule):
    """Data in CIFAR's Python pickles; torchvision checks the md5 of each."""

    reader: ClassVar[type[datasets.CIFAR10]]
    shape = (3, 32, 32)

    @final
    def _files(self, split: Part) -> list[Path]:
        names = [str(name) for name, _ in [*self.reader.train_list, *self.reader.test_list]]
        return [Path(self.reader.base_folder, name) for name in [*names, self.reader.meta["filename"]]]

    @final
    def _open(self, split: Part, download: bool) -> Arrays:
        data: Any = self.reader(self.root, train=split == "train", download=download)
        return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, dtype=np.int64)

    @final
    def _augmentation(self) -> CropFlip:
        return CropFlip(padding=4, flip=True)


class CIFAR10(_CIFARDataModule):
    """50,000 and 10,000 colour images of 32 x 32 in 10 classes (Krizhevsky 2009).

    Augmentation: zero-padding by 4, random crop, random flip.
    """

    reader = datasets.CIFAR10
    name = "cifar10"
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)


class CIFAR100(_CIFARDataModule):
    """50,000 and 10,000 colour images of 32 x 32 in 100 classes (Krizhevsky 2009), with the fine labels.

    Augmentation: zero-padding by 4, random crop, random flip.
    """

    reader = datasets.CIFAR100
    name = "cifar100"
    num_classes = 100
    class_names = tuple(FINE_LABELS.split())
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
