"""Views of a source as torch data sets whose batches are fetched whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, final, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_rs.data.sources import IntArray, Source


class KeyedBatch(TypedDict):
    """What the certification loader yields: own indices ``(b,)``, images ``(b, *shape)``, labels ``(b,)``."""

    index: Tensor
    image: Tensor
    label: Tensor


@final
class Batch(Sequence[Any]):
    """A batch fetched in one piece that still is a sequence of samples, as ``__getitems__`` must return one.

    So torch's ``default_collate`` understands it, and ``collate`` need not take it apart.
    """

    def __init__(self, index: Tensor, image: Tensor, label: Tensor, keyed: bool) -> None:
        self.own, self.image, self.label, self.keyed = index, image, label, keyed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.label)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        """Return one sample: ``(image, label)``, or a dictionary when keyed."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        image, label = self.image[row], int(self.label[row])
        return {"index": int(self.own[row]), "image": image, "label": label} if self.keyed else (image, label)

    def collated(self) -> KeyedBatch | tuple[Tensor, Tensor]:
        """Return the batch as tensors."""
        if self.keyed:
            return KeyedBatch(index=self.own, image=self.image, label=self.label)
        return self.image, self.label


def collate(batch: Any) -> KeyedBatch | tuple[Tensor, Tensor]:
    """Collate a ``Batch`` at no cost (a function at module level, so that workers can pickle it)."""
    assert isinstance(batch, Batch)
    return batch.collated()


@final
class View(Dataset[Any]):
    """Some images of a source, in a fixed order.

    Args:
        source: the data set.
        indices: own indices of the images, shape ``(n,)``.
        augment: apply the training augmentation of the source.
        keyed: samples are ``{"index", "image", "label"}`` instead of ``(image, label)``.
    """

    def __init__(self, source: Source, indices: IntArray, augment: bool = False, keyed: bool = False) -> None:
        self.source, self.augment, self.keyed = source, augment, keyed
        self.indices = np.asarray(indices, dtype=np.int64)

    @property
    def labels(self) -> IntArray:
        """Class of each image, shape ``(n,)``."""
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        """Return one sample."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Return the samples at ``positions``, fetched in one piece."""
        own = self.indices[np.asarray(positions, dtype=np.int64)]
        image = self.source.images(own, self.augment)
        return Batch(torch.from_numpy(own), image, torch.from_numpy(self.source.labels[own]), self.keyed)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over samples in order."""
        return (self[position] for position in range(len(self)))
