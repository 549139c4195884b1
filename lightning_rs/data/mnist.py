"""MNIST and Fashion-MNIST, whole or averaged over blocks, and MNIST's principal components."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast, final

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from lightning_rs.checks import check_at_least, check_choice
from lightning_rs.data.augment import CropFlip
from lightning_rs.data.sources import ArraySource, Source
from lightning_rs.data.splits import hold_out
from lightning_rs.data.torchvision import Arrays, Part, TorchvisionDataModule

Pool = Literal[1, 2, 4, 7, 14]
POOLS = (1, 2, 4, 7, 14)


class _IdxDataModule(TorchvisionDataModule):
    """Data in MNIST's idx files, ``root/<class>/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``."""

    reader: ClassVar[type[datasets.MNIST]]

    @final
    def _files(self, split: Part) -> list[Path]:
        names = [Path(resource).stem for resource, _ in self.reader.resources]  # torchvision wants all four
        return [Path(self.reader.__name__, "raw", name) for name in names]

    @final
    def _open(self, split: Part, download: bool) -> Arrays:
        data = self.reader(self.root, train=split == "train", download=download)
        return data.data.numpy()[:, None], data.targets.numpy()


class MNIST(_IdxDataModule):
    """Handwritten digits, 60,000 and 10,000 images of 28 x 28 (LeCun et al. 1998); no augmentation by default.

    Args:
        shift: training images are moved by up to so many pixels.
        average_pool: side of the square blocks over which the images are averaged: 4 gives 7 x 7. The values are then
            averages of 8-bit pixels and ``grid`` is ``None``.
        **kwargs: see ``TorchvisionDataModule``.
    """

    reader = datasets.MNIST
    num_classes = 10
    shape: tuple[int, ...] = (1, 28, 28)
    class_names: tuple[str, ...] = tuple("0123456789")
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)
    base_name: ClassVar[str] = "mnist"
    # Measured on the 60,000 training images.
    std_of_pool: ClassVar[dict[int, float]] = {2: 0.2801, 4: 0.2307, 7: 0.1778, 14: 0.0615}

    def __init__(self, shift: int = 0, average_pool: Pool = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shift = check_at_least("shift", shift, 0)
        check_choice("average_pool", average_pool, POOLS)
        self.average_pool = average_pool
        self.name = self.base_name
        if average_pool != 1:
            side = 28 // average_pool
            self.name, self.shape, self.grid = f"{self.base_name}_{side}x{side}", (1, side, side), None
            self.std = (self.std_of_pool.get(average_pool, self.std[0]),)

    def _augmentation(self) -> CropFlip:
        return CropFlip(self.shift)

    def _transformed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.generic], int]:
        return block_sums(images, self.average_pool), 255 * self.average_pool**2


class FashionMNIST(MNIST):
    """Articles of clothing, 60,000 and 10,000 images of 28 x 28 (Xiao et al. 2017).

    Args:
        shift: training images are moved by up to so many pixels.
        average_pool: see ``MNIST``.
        **kwargs: see ``TorchvisionDataModule``.
    """

    reader = datasets.FashionMNIST
    class_names = tuple(datasets.FashionMNIST.classes)
    mean = (0.2860,)
    std = (0.3530,)
    base_name = "fashion_mnist"
    std_of_pool: ClassVar[dict[int, float]] = {}


class MNISTPCA(_IdxDataModule):
    """The leading principal components of MNIST averaged to 7 x 7: vectors in all of R^d, no grid.

    The experiment of Levine et al. 2020, appendix B.2 (10 components of the 7 x 7 images). Components are fitted on
    the training split only (not on what is held out for validation, nor on the test data) and are orthonormal: an l2
    ball of vectors is a slice of the same ball of images. Coordinates are centred, not whitened, each component's
    largest entry is positive, and values are rounded to multiples of 2^-16, so that they do not depend on the machine.

    Args:
        components: number of principal components.
        average_pool: side of the square blocks over which the images are averaged first; 1 for 28 x 28.
        **kwargs: see ``TorchvisionDataModule``.
    """

    reader = datasets.MNIST
    num_classes = 10
    shape: tuple[int, ...] = (10,)
    class_names = MNIST.class_names
    mean: tuple[float, ...] = (0.0,) * 10
    std: tuple[float, ...] = (0.332,) * 10
    # Root mean variance of the 10 leading components of the training images; one scale for all keeps noise isotropic.
    std_of_pool: ClassVar[dict[int, float]] = {1: 1.604, 2: 0.761, 4: 0.332, 7: 0.137, 14: 0.059}
    domain = None
    grid = None

    def __init__(self, components: int = 10, average_pool: Pool = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("average_pool", average_pool, POOLS)
        most = (28 // average_pool) ** 2
        if check_at_least("components", components, 1) > most:
            raise ValueError(f"components must not exceed the {most} pixels, got {components}")
        self.components, self.average_pool = components, average_pool
        self.name, self.shape = f"mnist_pca{components}", (components,)
        self.mean, self.std = (0.0,) * components, (self.std_of_pool[average_pool],) * components
        self._basis: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def _source_of(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Source:
        mean, basis = self._fitted()
        coordinates = (self._pixels(images) - mean) @ basis
        return ArraySource(np.ldexp(np.round(np.ldexp(coordinates, 16)), -16).astype(np.float32), labels, None)

    def _pixels(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return block_sums(images, self.average_pool).reshape(len(images), -1) / (255.0 * self.average_pool**2)

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean ``(pixels,)`` and orthonormal components ``(pixels, components)`` of the training split."""
        if self._basis is None:
            images, labels = self._arrays("train")
            kept, _ = hold_out(labels, self.held_out_size(len(labels)), self.split_seed)
            self._basis = principal_components(self._pixels(images[kept]), self.components)
        return self._basis


def block_sums(images: NDArray[np.uint8], side: int) -> NDArray[np.integer[Any]]:
    """Sum ``(n, c, h, w)`` over square blocks: exact integers, so the average is rounded only once."""
    if side == 1:
        return images
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // side, side, width // side, side)
    return cast(NDArray[np.integer[Any]], blocks.sum(axis=(3, 5), dtype=np.int32))


def principal_components(data: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean ``(d,)`` and the ``count`` leading principal directions ``(d, count)``, signs fixed."""
    mean = data.mean(axis=0)
    centred = data - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    leading = vectors[:, ::-1][:, :count]
    largest = np.abs(leading).argmax(axis=0)
    return mean, leading * np.sign(leading[largest, np.arange(count)])
