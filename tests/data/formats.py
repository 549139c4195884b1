"""Writers of small data sets in the formats that torchvision reads: idx, Python pickles, .mat, image folders."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def random_images(count: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> Arrays:
    """Noise images that hold every 8-bit value, and labels that cover the classes in turn."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    images[0].reshape(-1)[:256] = np.arange(256)[: images[0].size]
    return images, random.permutation(np.arange(count) % classes)


def write_idx(root: Path, folder: str = "MNIST", train: int = 200, test: int = 50) -> dict[str, Arrays]:
    """MNIST's files, with big-endian headers."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    written = {}
    for seed, (split, prefix, count) in enumerate([("train", "train", train), ("test", "t10k", test)]):
        images, labels = written[split] = random_images(count, (28, 28), 10, seed)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
    return written


def _pickled(path: Path, content: dict[str, Any]) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, reader: Any, patch: pytest.MonkeyPatch, per_file: int = 40) -> dict[str, Arrays]:
    """CIFAR's pickled batches (rows of 3,072 bytes, channels first) and torchvision's md5 lists to match."""
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    fine = reader is datasets.CIFAR100
    written: dict[str, list[Arrays]] = {"train": [], "test": []}
    for split in written:
        listed = []
        for seed, (name, _) in enumerate(getattr(reader, f"{split}_list")):
            images, labels = random_images(per_file, (3072,), 100 if fine else 10, seed + (split == "test") * 9)
            key = "fine_labels" if fine else "labels"
            listed.append([name, _pickled(folder / name, {"data": images, key: labels.tolist()})])
            written[split].append((images.reshape(-1, 3, 32, 32), labels))
        patch.setattr(reader, f"{split}_list", listed)
    names = {reader.meta["key"]: [str(i) for i in range(100 if fine else 10)]}
    patch.setattr(reader, "meta", {**reader.meta, "md5": _pickled(folder / reader.meta["filename"], names)})
    return {split: tuple(map(np.concatenate, zip(*parts, strict=True))) for split, parts in written.items()}  # type: ignore[misc]


def write_svhn(root: Path, patch: pytest.MonkeyPatch, train: int = 60, test: int = 30) -> dict[str, Arrays]:
    """SVHN's .mat files: images last, and label 10 for the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    listed, written = {}, {}
    for seed, (split, count) in enumerate([("train", train), ("test", test)]):
        images, labels = written[split] = random_images(count, (3, 32, 32), 10, seed)
        path = root / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        listed[split] = ["http://localhost/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    patch.setattr(datasets.SVHN, "split_list", listed)
    return written


def encoded(array: NDArray[np.uint8], kind: str) -> bytes:
    """An image file of a ``(h, w, 3)`` or ``(h, w)`` array."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def wnids() -> list[str]:
    """As many WordNet ids as ImageNet has classes."""
    return [f"n{1000 + i:08d}" for i in range(1000)]


def write_imagenet(root: Path, labels: tuple[int, ...] = (3, 500, 999), train: int = 10, val: int = 2) -> None:
    """ImageNet's folders (three of the thousand, images of many sizes) with torchvision's meta file."""
    random = np.random.default_rng(0)
    for split, count in [("train", train), ("val", val)]:
        for label in labels:
            folder = root / split / wnids()[label]
            folder.mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 256, (30 + 3 * i, 40 + label % 7, 3), dtype=np.uint8)
                (folder / f"ILSVRC2012_{split}_{i:08d}.JPEG").write_bytes(encoded(image, "JPEG"))
    torch.save(({wnid: (f"name {wnid}",) for wnid in wnids()}, []), root / "meta.bin")


def folder_images(
    splits: tuple[str, ...] = ("train", "test"), count: int = 20, size: int = 16, kind: str = "PNG"
) -> dict[str, bytes]:
    """Files of an image folder by relative path: two classes, ``count`` images each."""
    random = np.random.default_rng(1)
    return {
        "/".join(filter(None, [split, label, f"{i:03d}.{kind.lower()}"])): encoded(
            random.integers(0, 256, (size, size, 3), dtype=np.uint8), kind
        )
        for split in splits
        for label in ("cat", "dog")
        for i in range(count)
    }


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    """Write files into a zip archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path
