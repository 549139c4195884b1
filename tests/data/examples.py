"""One small instance of every data module: the table that the contract tests run over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision import datasets

from lightning_rs import data
from lightning_rs.data import ImageDataModule
from tests.data import formats

Make = Callable[..., ImageDataModule]
Write = Callable[[Path, pytest.MonkeyPatch], Any]


def pair(count: int, seed: int) -> TensorDataset:
    """Return 8-bit images and labels of three classes in memory."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator) / 255
    return TensorDataset(images, torch.arange(count) % 3)


# name: (class, arguments, writer of its files)
EXAMPLES: dict[str, tuple[Make, dict[str, Any], Write]] = {
    "digits": (data.Digits, {}, lambda root, patch: None),
    "mnist": (data.MNIST, {"val_size": 30}, lambda root, patch: formats.write_idx(root)),
    "mnist_7x7": (data.MNIST, {"val_size": 30, "average_pool": 4}, lambda root, patch: formats.write_idx(root)),
    "mnist_pca10": (data.MNISTPCA, {"val_size": 30}, lambda root, patch: formats.write_idx(root)),
    "fashion_mnist": (
        data.FashionMNIST,
        {"val_size": 30},
        lambda root, patch: formats.write_idx(root, "FashionMNIST"),
    ),
    "cifar10": (
        data.CIFAR10,
        {"val_size": 30},
        lambda root, patch: formats.write_cifar(root, datasets.CIFAR10, patch),
    ),
    "cifar100": (
        data.CIFAR100,
        {"val_size": 30},
        lambda root, patch: formats.write_cifar(root, datasets.CIFAR100, patch, 200),
    ),
    "svhn": (data.SVHN, {"val_size": 10}, lambda root, patch: formats.write_svhn(root, patch)),
    "imagenet": (
        data.ImageNet,
        {"val_size": 6, "image_size": 20, "resize": 24},
        lambda root, patch: formats.write_imagenet(root),
    ),
    "folder": (
        data.ImageFolder,
        {"val_size": 8, "image_size": 16, "name": "folder"},
        lambda root, patch: formats.write_folder(root, formats.folder_images()),
    ),
    "swiss_roll": (data.SwissRoll, {"train_size": 100, "test_size": 40, "val_size": 20}, lambda root, patch: None),
    "own": (
        data.OwnData,
        {
            "train": pair(60, 0),
            "test": pair(40, 1),
            "val_size": 20,
            "num_classes": 3,
            "domain": (0.0, 1.0),
            "grid": 255,
            "name": "own",
        },
        lambda root, patch: None,
    ),
}
EMBEDDED = ("digits", "swiss_roll", "own")


def build(name: str, root: Path, **changes: Any) -> ImageDataModule:
    """Build an example on data at ``root``."""
    make, arguments, _ = EXAMPLES[name]
    place = {} if name in EMBEDDED else {"root": str(root)}
    return make(**{"batch_size": 16, **place, **arguments, **changes})
