"""Where images come from: a fixed, ordered set of labelled images, fetched a batch at a time."""

from __future__ import annotations

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lightning_rs.data.errors import CorruptDataError, reason, shown
from lightning_rs.data.files import Files

IntArray = NDArray[np.int64]
BatchAugmentation = Callable[[Tensor], Tensor]
ImageTransform = Callable[[Image.Image], Image.Image]
# What the extensions of image files stand for. Others that PIL knows start programs, or are no images.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_MOST_ELONGATED = 500


class Source(ABC):
    """A data set as published: the position of an image in it is the image's own index.

    Args:
        labels: class of each image, int64, shape ``(n,)``.
        shape: shape of one image.
    """

    def __init__(self, labels: IntArray, shape: tuple[int, ...]) -> None:
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.shape = tuple(shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @abstractmethod
    def images(self, indices: IntArray, augment: bool = False) -> Tensor:
        """Return images as float32, shape ``(b, *shape)``; those with a grid are ``k / q`` correctly rounded."""

    @final
    def fingerprint(self, count: int = 16) -> str:
        """Return a sha256 over all labels and the first ``count`` images: cheap, and notices another data set."""
        digest = hashlib.sha256(repr((len(self), self.shape)).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.images(np.arange(min(count, len(self)))).numpy().tobytes())
        return digest.hexdigest()


@final
class ArraySource(Source):
    """Images held in one array, in memory or memory-mapped: a batch is one indexing operation.

    Args:
        values: integers ``k`` in ``0..scale`` or, with ``scale=None``, floats; shape ``(n, *shape)``.
        labels: shape ``(n,)``.
        scale: the image is ``values / scale``; ``None`` leaves ``values`` as they are.
        augmentation: applied to batches of ``values`` for training.
    """

    def __init__(
        self,
        values: NDArray[np.generic],
        labels: IntArray,
        scale: int | None,
        augmentation: BatchAugmentation | None = None,
    ) -> None:
        super().__init__(labels, values.shape[1:])
        if len(values) != len(self.labels):
            raise CorruptDataError(f"{len(values)} images but {len(self.labels)} labels")
        self.values, self.scale, self.augmentation = values, scale, augmentation

    def images(self, indices: IntArray, augment: bool = False) -> Tensor:
        """See ``Source.images``."""
        batch = torch.from_numpy(np.asarray(self.values[indices]))
        if augment and self.augmentation is not None:
            batch = self.augmentation(batch)
        return to_unit(batch, self.scale)


@final
class FileSource(Source):
    """Images in files, decoded when they are asked for.

    Args:
        files: a folder or a zip archive.
        names: names within ``files``, one an image.
        labels: shape ``(n,)``.
        shape: ``(channels, height, width)`` that both transforms deliver; 1 or 3 channels.
        evaluate: deterministic transform of the decoded 8-bit image.
        train: random transform for training; ``None`` uses ``evaluate``.
    """

    def __init__(
        self,
        files: Files,
        names: Sequence[str],
        labels: IntArray,
        shape: tuple[int, int, int],
        evaluate: ImageTransform,
        train: ImageTransform | None = None,
    ) -> None:
        super().__init__(labels, shape)
        self.files, self.names = files, list(names)
        self.evaluate, self.train = evaluate, train or evaluate

    def images(self, indices: IntArray, augment: bool = False) -> Tensor:
        """See ``Source.images``; the grid is 255."""
        return to_unit(self.bytes(indices, augment), 255)

    def bytes(self, indices: IntArray, augment: bool = False) -> Tensor:
        """Return images as uint8, shape ``(b, c, h, w)``."""
        transform = self.train if augment else self.evaluate
        batch = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for row, index in enumerate(indices):
            name = self.names[index]
            try:
                content = self.files.read(name)
                batch[row] = pil_to_tensor(transform(decode(content, "L" if self.shape[0] == 1 else "RGB")))
            except CorruptDataError:
                raise
            except UnidentifiedImageError as error:
                said = f"{self.files.path}: {shown(name)} cannot be decoded (no image that PIL knows); replace the file"
                raise CorruptDataError(said) from error
            except Exception as error:  # on what is no image, or a torn or hostile one, PIL raises anything
                said = f"{self.files.path}: {shown(name)} cannot be decoded ({reason(error)}); replace the file"
                raise CorruptDataError(said) from error
        return batch


def decode(content: bytes, mode: str) -> Image.Image:
    """Return the image in a file's content, 8 bits a channel, in ``mode`` "L" or "RGB".

    Raises:
        Exception: of any type, from the decoder, for what is no image, damaged, too large or too long and thin.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about metadata, which is not used
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}, not 8 bits a channel")
            # Its shorter side is scaled to that of the network's input: a line would fill the memory.
            if max(image.size) > _MOST_ELONGATED * min(image.size):
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels: too long and thin")
            return image.convert(mode)


def to_unit(values: Tensor, scale: int | None) -> Tensor:
    """Return ``values / scale`` in float32, correctly rounded, as torchvision's ``ToTensor`` does for 255."""
    floats = values.to(torch.float32)
    return floats if scale is None else floats.div_(scale)
