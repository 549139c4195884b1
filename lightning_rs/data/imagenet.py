"""ImageNet (ILSVRC 2012), decoded from its files as they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torchvision import datasets, models, transforms
from torchvision.datasets.imagenet import META_FILE, load_meta_file

from lightning_rs.checks import check_at_least
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.errors import CorruptDataError, check_files
from lightning_rs.data.files import FolderFiles
from lightning_rs.data.sources import FileSource, ImageTransform, Source

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNet(ImageDataModule):
    """ILSVRC 2012 (Russakovsky et al. 2015): 1.28 million training images in 1,000 classes.

    The 50,000 published validation images are the test data, as in the smoothing literature, and the validation
    split is held out of the training images.

    Training: random resized crop and flip. Evaluation: the shorter side to ``resize``, then the centre. Resizing
    ends in 8-bit pixels, so the grid is 255. Labels are positions in the sorted WordNet ids of the devkit, also if
    folders are missing. Own indices are torchvision's: sorted by WordNet id, then by file name.

    Args:
        root: folder with ``train/`` and ``val/`` (WordNet ids below them) and torchvision's ``meta.bin``, or with
            the original archives, which torchvision unpacks in ``prepare_data``.
        download: ImageNet cannot be downloaded without an account: ``True`` is an error that says so.
        image_size: side of the image that the network sees.
        resize: shorter side before the centre is cut out.
        **kwargs: see ``ImageDataModule``.
    """

    name = "imagenet"
    num_classes = 1000
    shape: tuple[int, ...] = (3, 224, 224)
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    default_val_size: ClassVar[int | float] = 10_000

    def __init__(
        self,
        root: str | Path = "data",
        download: bool = False,
        image_size: int = 224,
        resize: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if download:
            raise ValueError("download must be false for ImageNet, got true: get the archives from image-net.org")
        self.root = Path(root).expanduser()
        self.image_size = check_at_least("image_size", image_size, 1)
        self.resize = check_at_least("resize", resize, image_size)
        self.shape = (3, image_size, image_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

    def _prepare(self) -> None:
        for split in ("train", "val"):  # torchvision unpacks the archives of what is not there yet
            archive = self.root / f"ILSVRC2012_img_{split}.tar"
            if archive.exists() and not (self.root / split).is_dir():
                datasets.ImageNet(str(self.root), split)

    def _load(self, split: Literal["train", "test"]) -> Source:
        folder = "train" if split == "train" else "val"
        check_files(self.name, [self.root / folder, self.root / META_FILE], self._advice())
        wnids = self._wnids(folder)
        try:
            data = datasets.ImageNet(str(self.root), folder)
        except (RuntimeError, OSError) as error:  # a class folder without images, for instance
            raise CorruptDataError(f"{self.name}: {self.root.absolute()}: {error}") from error
        labels = np.searchsorted(wnids, data.wnids)[np.asarray(data.targets)]
        names = [str(Path(path).relative_to(self.root)) for path, _ in data.samples]
        evaluate, train = centre_crop(self.image_size, self.resize), random_resized_crop(self.image_size)
        return FileSource(FolderFiles(self.root), names, labels, (3, self.image_size, self.image_size), evaluate, train)

    def _wnids(self, folder: str) -> list[str]:
        """Return the sorted WordNet ids of the devkit, having checked that they are ILSVRC 2012's."""
        try:
            wnids = sorted(load_meta_file(self.root)[0])
        except Exception as error:  # whatever torch.load meets in a torn file
            raise CorruptDataError(f"{self.name}: {self.root.absolute() / META_FILE} is damaged: {error}") from error
        strange = sorted({path.name for path in (self.root / folder).iterdir() if path.is_dir()} - set(wnids))
        if len(wnids) != self.num_classes or strange:
            raise CorruptDataError(
                f"{self.name}: {META_FILE} has {len(wnids)} classes (not {self.num_classes}), and "
                f"{self.root.absolute() / folder} has folders {strange[:8]} beside them; for other data use ImageFolder"
            )
        return wnids

    def _advice(self) -> str:
        return (
            "ImageNet needs an account at image-net.org. Place train/ and val/ (one folder a WordNet id) with "
            "torchvision's meta.bin there, or the archives ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
            f"ILSVRC2012_devkit_t12.tar.gz; --data.root is the folder that is searched (now {self.root})."
        )

    def _root_name(self) -> str:
        return self.root.absolute().name


def centre_crop(size: int, resize: int) -> ImageTransform:
    """Return the evaluation transform: the shorter side to ``resize``, then the central ``size`` x ``size``."""
    transform: ImageTransform = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])
    return transform


def random_resized_crop(size: int, flip: bool = True) -> ImageTransform:
    """Return the training transform of ImageNet: a random area and aspect ratio resized to ``size``, and a flip."""
    steps: list[Any] = [transforms.RandomResizedCrop(size)]
    transform: ImageTransform = transforms.Compose([*steps, transforms.RandomHorizontalFlip(0.5 if flip else 0.0)])
    return transform
