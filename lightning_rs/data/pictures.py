"""Images of a data module as pixels to look at, each checked to be the one that was certified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_rs.data.base import ImageDataModule, Split
from lightning_rs.engine.streams import image_sha256
from lightning_rs.records import Certification

_AT_ONCE = 256


def certified_images(
    data: ImageDataModule, split: str | None, records: Sequence[Certification], path: Path
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield index and pixels (height, width, 1 or 3) of each certified image; nothing for data that are no pictures.

    Records without a hash of their image, imported or of version 0.1, are passed over: nothing says what they certify.

    Args:
        data: where the images come from; which of them it would certify does not matter.
        split: which images, as the record file's header says.
        records: what was certified.
        path: the record file, for errors.

    Raises:
        ValueError: if the data have no such image, or another one than the one certified.
    """
    known = [record for record in records if record.image]
    if not known or len(data.shape) != 3 or data.shape[0] not in (1, 3):
        return
    if split not in get_args(Split):
        raise ValueError(f"{path}: the header must say which split was certified, got {split!r}")
    data.prepare_data()
    source = data.source(split)  # type: ignore[arg-type]
    for start in range(0, len(known), _AT_ONCE):
        some = known[start : start + _AT_ONCE]
        beyond = next((record.index for record in some if record.index >= len(source)), None)
        if beyond is not None:
            there = f"{data.name} ({split}) has {len(source)} images"
            raise ValueError(f"data: {path} certifies image {beyond}, but {there}")
        images = source.images(np.array([record.index for record in some]))
        for record, image in zip(some, images, strict=True):
            if image_sha256(image) != record.image:
                raise ValueError(
                    f"data: image {record.index} of {data.name} ({split}) is another one than {path} certifies (its "
                    "SHA-256 differs): name the data that were certified, with the arguments they had"
                )
            yield record.index, pixels(image, data.domain)


def pixels(image: torch.Tensor, domain: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Return an image (C, H, W) as pixels (H, W, C); values outside the domain are clipped, None spans the image."""
    low, high = domain or (float(image.min()), float(image.max()))
    scaled = ((image.float() - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
