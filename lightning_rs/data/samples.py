"""Somebody else's data set as a source: samples fetched one by one, checked, and fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_rs.data.sources import ArraySource, IntArray, Source

_LABELS = ("targets", "labels", "y")
_VERIFIED = 16


def source_of(data: Any, name: str) -> Source:
    """Return tensors ``(images, labels)``, a map-style ``Dataset`` or the one behind a ``DataLoader`` as a source.

    Raises:
        ValueError: if it is none of these, or its samples are no float images with whole-number labels.
    """
    if isinstance(data, DataLoader):
        data = data.dataset
    if is_pair(data):
        return _array_source(data[0], data[1], name)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _array_source(data.tensors[0], data.tensors[1], name)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ValueError(
            f"{name} must be tensors (images, labels) or a Dataset with a length and an index (images are certified by "
            f"their index), got {type(data).__name__}"
        )
    return SampleSource(data, name)


def is_pair(data: Any) -> bool:
    """Return whether the data are two arrays: images and labels."""
    arrays = (Tensor, np.ndarray)
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, arrays) for part in data)


@final
class SampleSource(Source):
    """A map-style data set of samples ``(image, label)`` or ``{"image", "label"}``.

    Args:
        dataset: its images are float tensors of one shape, the same at every call.
        name: how errors call it.

    Raises:
        ValueError: naming the first sample that is something else.
    """

    def __init__(self, dataset: Dataset[Any], name: str) -> None:
        self.dataset, self.name = dataset, name
        if not len(dataset):  # type: ignore[arg-type]
            raise ValueError(f"{name} must hold at least one sample, got none")
        self._fixed: bool | None = None
        first, _ = self._sample(0)
        super().__init__(self._labels(), tuple(first.shape))

    def images(self, indices: IntArray, augment: bool = False) -> Tensor:
        """See ``Source.images``; random transforms are the training's, everything else needs fixed images."""
        found = [self._sample(int(index))[0] for index in indices]
        for index, image in zip(indices, found, strict=True):
            if tuple(image.shape) != self.shape:
                raise ValueError(f"{self.name}[{index}] has shape {tuple(image.shape)}, but [0] has {self.shape}")
        if not augment and len(indices):
            self._check_fixed(int(indices[0]), found[0])
        return torch.stack(found) if found else torch.empty(0, *self.shape)

    def _check_fixed(self, index: int, image: Tensor) -> None:
        if self._fixed is None:
            self._fixed = torch.equal(self._sample(index)[0], image)
        if not self._fixed:
            raise ValueError(
                f"{self.name}[{index}] is another image at every call: certification and validation need a data set "
                "without random transforms (give val= and test= without them)"
            )

    def _sample(self, index: int) -> tuple[Tensor, int]:
        sample = self.dataset[index]
        parts = (sample.get("image"), sample.get("label")) if isinstance(sample, Mapping) else sample
        if not isinstance(parts, Sequence) or len(parts) != 2 or isinstance(parts, str):
            raise ValueError(f"{self.name}[{index}] must be (image, label), got {type(sample).__name__}")
        where = f"{self.name}[{index}]"
        return as_image(parts[0], where), int(as_labels([parts[1]], where)[0])

    def _labels(self) -> IntArray:
        """Return all labels: from the attribute that lists them, if samples agree with it, else from the samples."""
        total = len(self.dataset)  # type: ignore[arg-type]
        listed = _listed_labels(self.dataset)
        if listed is not None and len(listed) == total:
            checked = np.unique(np.linspace(0, total - 1, _VERIFIED).astype(np.int64))
            if all(self._sample(int(i))[1] == listed[i] for i in checked):
                return listed
        return np.array([self._sample(index)[1] for index in range(total)], dtype=np.int64)


def as_image(value: Any, where: str) -> Tensor:
    """Return an image as float32; raise ``ValueError`` for integers, PIL images and what is no array."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        hint = ": apply torchvision.transforms.ToTensor()" if type(value).__module__.startswith("PIL") else ""
        raise ValueError(f"{where} must be a float tensor, got {type(value).__name__}{hint}")
    if not value.is_floating_point():
        raise ValueError(
            f"{where} must be a float tensor in the units of the noise, got {value.dtype}: divide 8-bit pixels by 255 "
            "and say domain (0, 1) and grid 255"
        )
    return value.detach().to("cpu", torch.float32)


def as_labels(values: Any, where: str) -> IntArray:
    """Return labels as int64, (n,); raise ``ValueError`` for anything but whole numbers, one an image."""
    array = np.asarray([value.item() if _is_scalar(value) else value for value in values])
    if array.ndim != 1 or array.dtype.kind not in "iuf" or (array != np.floor(array)).any():
        raise ValueError(f"{where} must have one whole number as its label, got {values[0]!r}")
    return array.astype(np.int64)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (Tensor, np.generic, np.ndarray)) and value.ndim == 0


def _array_source(images: Any, labels: Any, name: str) -> Source:
    values = as_image(images, f"{name} images")
    if values.ndim < 2 or len(values) != len(labels) or not len(values):
        raise ValueError(f"{name} must be images (n, *shape) and n labels, got {tuple(values.shape)} and {len(labels)}")
    return ArraySource(values.numpy(), as_labels(labels, f"{name} image"), None)


def _listed_labels(dataset: Any) -> IntArray | None:
    """Return the labels that a data set lists beside its samples, or None."""
    if isinstance(dataset, Subset):
        whole = _listed_labels(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    for name in _LABELS:
        listed = getattr(dataset, name, None)
        if isinstance(listed, (Tensor, np.ndarray, list, tuple)) and len(listed):
            try:
                return as_labels(listed, name)
            except (ValueError, TypeError):
                return None
    return None
