"""Any other images: class folders in a folder or in a zip archive."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lightning_rs.checks import check_at_least, check_choice
from lightning_rs.data.augment import CropFlip
from lightning_rs.data.base import ImageDataModule, Split
from lightning_rs.data.cache import cache_key, decoded
from lightning_rs.data.errors import CorruptDataError
from lightning_rs.data.files import Files, open_files
from lightning_rs.data.imagenet import IMAGENET_MEAN, IMAGENET_STD, centre_crop, random_resized_crop
from lightning_rs.data.layout import Layout, read_layout
from lightning_rs.data.sources import ArraySource, FileSource, IntArray, Source
from lightning_rs.data.splits import hold_out


class ImageFolder(ImageDataModule):
    """Images in class folders: ``root/{train,val,test}/class/...``, or ``root/class/...`` split by seed.

    ``root`` may be a zip archive, which is read in place. Folders around this layout are passed over. The case of split
    folders does not matter (``Train``, ``TESTING``); folders that could be splits or classes are an error. Without a
    ``val`` folder the validation split is held out of ``train``; without a ``test`` folder, ``val`` is the test data
    (as for ImageNet); without split folders, ``test_fraction`` of the images, stratified, are the test data. Classes
    are the sorted names of the training folders. The own index of an image is its position in the sorted names of
    its split; ``names(split)`` are these names. Names are
    sorted by class: choose a part of the images with ``skip``, since ``max`` alone takes the first classes.

    With ``cache_dir`` each file is decoded once, into one memory-mapped 8-bit array that is checked by its hash at
    each start: right for many small images. Training images are then padded by an eighth, cropped at random and
    flipped. Without it files are decoded when needed, and training uses ImageNet's random resized crop and flip.
    JPEG or PNG, pixels are 8-bit: the grid is 255.

    Args:
        root: folder or zip archive.
        image_size: side of the image that the network sees.
        resize: shorter side before the centre is cut out; ``None`` for ``image_size``.
        channels: 3 for colour, 1 for grey.
        cache_dir: where to put decoded images; ``None`` decodes files when they are needed.
        flip: mirror training images at random; not for digits or letters.
        test_fraction: share of the images that are test data, if there are no split folders.
        num_classes: number of classes; ``None`` looks at ``root``. If given, it must be what is found.
        mean: mean of each channel; ``None`` for ImageNet's.
        std: standard deviation of each channel; ``None`` for ImageNet's.
        name: what records and reports call the data; ``None`` for the name of ``root``.
        folders: the folder of each split (``{"train": "Train", "test": "Test"}``; others are left out), or ``{}`` where
            every folder is a class; ``None`` recognises them.
        **kwargs: see ``ImageDataModule``.
    """

    shape: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    default_val_size: ClassVar[int | float] = 0.1

    def __init__(
        self,
        root: str | Path = "data",
        image_size: int = 224,
        resize: int | None = None,
        channels: Literal[1, 3] = 3,
        cache_dir: str | Path | None = None,
        flip: bool = True,
        test_fraction: float = 0.2,
        num_classes: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        name: str | None = None,
        folders: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("channels", channels, (1, 3))
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie in (0, 1), got {test_fraction}")
        self.root = Path(root).expanduser()
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.image_size = check_at_least("image_size", image_size, 1)
        self.resize = image_size if resize is None else check_at_least("resize", resize, image_size)
        self.flip, self.test_fraction, self.folders = flip, test_fraction, folders
        self.name = name or self.root.absolute().stem
        self.image_shape = (int(channels), image_size, image_size)
        self.shape = self.image_shape
        self.mean = _statistic("mean", mean, IMAGENET_MEAN, channels)
        self.std = _statistic("std", std, IMAGENET_STD, channels)
        self._given_classes = None if num_classes is None else check_at_least("num_classes", num_classes, 2)

    @property
    def num_classes(self) -> int:
        """Number of classes: as given, or as found in ``root``."""
        return self._given_classes if self._given_classes is not None else len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Sorted names of the class folders."""
        return self._layout.class_names

    @cached_property
    def _files(self) -> Files:
        return open_files(self.root, self._advice())

    @cached_property
    def _layout(self) -> Layout:
        layout = read_layout(self._files, self._advice(), self.folders)
        if self._given_classes not in (None, len(layout.class_names)):
            raise CorruptDataError(
                f"ImageFolder: num_classes is {self._given_classes}, but {self.root} has {len(layout.class_names)} "
                f"class folders: {', '.join(layout.class_names[:8])}"
            )
        return layout

    def _prepare(self) -> None:
        if self.cache_dir is not None:
            for split in ("train", "val", "test"):
                self.source(split)

    def names(self, split: Split) -> list[str]:
        """Return the file of each image behind ``split``, by own index (for a held-out ``val``: of ``train``)."""
        return [name for name, _ in self._images("train" if self._held_out and split == "val" else split)]

    @property
    def _held_out(self) -> bool:
        return not {"val", "test"} <= self._layout.splits.keys()

    def _images(self, split: Split) -> list[tuple[str, str]]:
        splits = self._layout.splits
        if "all" not in splits:
            return splits[split if split in splits else "val"]
        labels = self._labels(splits["all"])
        kept, test = hold_out(labels, round(self.test_fraction * len(labels)), self.split_seed)
        return [splits["all"][position] for position in (test if split == "test" else kept)]

    def _load(self, split: Literal["train", "test"]) -> Source:
        return self._source(split)

    def _load_val(self) -> Source | None:
        return None if self._held_out else self._source("val")

    def _source(self, split: Split) -> Source:
        images = self._images(split)
        names, labels = [name for name, _ in images], self._labels(images)
        evaluate, train = centre_crop(self.image_size, self.resize), random_resized_crop(self.image_size, self.flip)
        source = FileSource(self._files, names, labels, self.image_shape, evaluate, train)
        if self.cache_dir is None:
            return source
        stamps = self._files.images()
        key = cache_key([repr((self.image_shape, self.resize)), *(f"{name} {stamps[name]}" for name in names)])
        values = decoded(self.cache_dir, f"{self.name}-{split}", key, source)
        return ArraySource(values, labels, 255, CropFlip(self.image_size // 8, self.flip))

    def _labels(self, images: list[tuple[str, str]]) -> IntArray:
        label_of = {name: label for label, name in enumerate(self.class_names)}
        return np.array([label_of[label] for _, label in images], dtype=np.int64)

    def _advice(self) -> str:
        return (
            "Place the images as train/CLASS/*.png (and test/CLASS, val/CLASS), or as CLASS/*.png, in a folder or a "
            f"zip archive; --data.root is where they are searched (now {self.root})."
        )

    def _root_name(self) -> str:
        return self.root.absolute().name


def _statistic(name: str, given: list[float] | None, usual: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if given is None:
        return usual if channels == 3 else (sum(usual) / len(usual),)
    if len(given) != channels:
        raise ValueError(f"{name} must have {channels} entries (one a channel), got {given}")
    return tuple(given)
