"""Small pictures of certified images: checked against the records, packed into a few sheets that a page holds."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_rs.records import Certification, Header

if TYPE_CHECKING:
    from lightning_rs.data.base import ImageDataModule

Picture = NDArray[np.uint8]
SIDE = 32  # of a picture in a sheet; small images keep their own size, and are enlarged when shown
ACROSS = 32  # pictures in a row of a sheet, and rows
_QUALITY = 70


@dataclass(frozen=True)
class Sheets:
    """Pictures in sheets of 32 x 32 places.

    Attributes:
        uris: the sheets, each as a data URI.
        side: width and height of a place, in pixels.
        places: place of each picture, by key, counted through all sheets.
    """

    uris: Sequence[str]
    side: int
    places: Mapping[tuple[Path, int], int]

    def css(self, shown: int) -> str:
        """Return the style of ``.tile`` and ``.sheetK``, for places that are shown at a width in pixels."""
        whole = shown * ACROSS
        rules = [f".tile {{ width: {shown}px; height: {shown}px; background-size: {whole}px {whole}px; }}"]
        if self.side < shown:
            rules.append(".tile { image-rendering: pixelated; }")
        rules += [f".sheet{k} {{ background-image: url({uri}); }}" for k, uri in enumerate(self.uris)]
        return "\n".join(rules)


def pictures_of(
    data: ImageDataModule, path: Path, header: Header, records: Sequence[Certification]
) -> dict[tuple[Path, int], Picture]:
    """Return a small picture of each image of a record file, by file and index; none for data that are no pictures.

    Raises:
        ValueError: if an image is not the one that was certified, by its SHA-256.
    """
    from lightning_rs.data.pictures import certified_images  # here, because data load torch

    split = header.binding.get("data", {}).get("split")
    found: dict[tuple[Path, int], Picture] = {}
    for index, image in certified_images(data, split, records, path):
        found[path, index] = shrunk(image)
    return found


def shrunk(image: Picture) -> Picture:
    """Return an image (height, width, 1 or 3) of at most 32 pixels a side, its proportions kept."""
    from PIL import Image

    if max(image.shape[:2]) <= SIDE:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture).reshape(*picture.size[::-1], image.shape[2])


def packed(pictures: Mapping[tuple[Path, int], Picture]) -> Sheets:
    """Return pictures in sheets; equal ones share a place, as those of one image in several files do."""
    places: dict[tuple[Path, int], int] = {}
    distinct: dict[bytes, int] = {}
    kept: list[Picture] = []
    for key, picture in pictures.items():
        content = repr(picture.shape).encode() + picture.tobytes()
        if content not in distinct:
            distinct[content] = len(kept)
            kept.append(picture)
        places[key] = distinct[content]
    side = max((max(picture.shape[:2]) for picture in kept), default=SIDE)
    many = ACROSS * ACROSS
    sheets = [kept[start : start + many] for start in range(0, len(kept), many)]
    return Sheets([_uri(_sheet(sheet, side)) for sheet in sheets], side, places)


def _sheet(pictures: Iterable[Picture], side: int) -> Picture:
    sheet = np.full((side * ACROSS, side * ACROSS, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, ACROSS)
        height, width = picture.shape[:2]
        top, left = row * side + (side - height) // 2, column * side + (side - width) // 2
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _uri(sheet: Picture) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "WEBP", quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
