"""What the data sets read through torchvision have in common: a root folder, a download, checks."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from lightning_rs.data.augment import CropFlip
from lightning_rs.data.base import ImageDataModule
from lightning_rs.data.errors import CorruptDataError, MissingDataError, check_files
from lightning_rs.data.sources import ArraySource, Source

Part = Literal["train", "test"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


class TorchvisionDataModule(ImageDataModule):
    """A data set that torchvision downloads and reads, held in memory as 8-bit integers.

    Args:
        root: folder of the data, as torchvision lays it out.
        download: let torchvision download what is missing (in ``prepare_data``, once a machine).
        **kwargs: see ``ImageDataModule``.
    """

    default_val_size: ClassVar[int | float] = 5000

    def __init__(self, root: str | Path = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download = Path(root).expanduser(), download

    @abstractmethod
    def _files(self, split: Part) -> list[Path]:
        """Return the files that torchvision reads for ``split``, relative to ``root``."""

    @abstractmethod
    def _open(self, split: Part, download: bool) -> Arrays:
        """Read through torchvision: images ``(n, c, h, w)`` and labels ``(n,)``."""

    def _augmentation(self) -> CropFlip:
        """Return the usual augmentation."""
        return CropFlip()

    def _transformed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.generic], int]:
        """Return integer images and the scale that maps them to [0, 1]."""
        return images, 255

    @final
    def _prepare(self) -> None:
        if not self.download:
            return
        for split in ("train", "test"):
            try:
                self._open(split, download=True)
            except (RuntimeError, OSError) as error:
                raise MissingDataError(
                    f"{self.name}: the download into {self.root.absolute()} failed: {error}"
                ) from error

    @final
    def _load(self, split: Part) -> Source:
        return self._source_of(*self._arrays(split))

    def _source_of(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Source:
        values, scale = self._transformed(images)
        return ArraySource(values, labels, scale, self._augmentation())

    @final
    def _arrays(self, split: Part) -> Arrays:
        check_files(self.name, [self.root / file for file in self._files(split)], self._advice())
        try:
            images, labels = self._open(split, download=False)
        except Exception as error:  # whatever torchvision, pickle or scipy meet in a torn file
            folder = (self.root / self._files(split)[0]).parent.absolute()
            raise CorruptDataError(
                f"{self.name}: the {split} files in {folder} are damaged ({type(error).__name__}: {error}); "
                "delete them and place or download them again"
            ) from error
        if len(images) != len(labels):
            raise CorruptDataError(f"{self.name} {split}: {len(images)} images but {len(labels)} labels")
        return images, labels

    def _advice(self) -> str:
        return (
            f"Download them (--data.download true; {type(self).__name__}(download=True)), "
            f"or place them there; --data.root is the folder that is searched (now {self.root})."
        )

    def _root_name(self) -> str:
        return self.root.absolute().name
