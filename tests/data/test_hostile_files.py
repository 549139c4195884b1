"""Damaged, huge, encrypted and odd files: whatever a reader meets is one line with the file's name."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from lightning_rs.cli.console import shorten
from lightning_rs.data import CorruptDataError, ImageFolder, MissingDataError
from lightning_rs.data.datasets import View, collate
from lightning_rs.data.files import Files
from lightning_rs.data.imagenet import centre_crop
from lightning_rs.data.sources import FileSource
from tests.data.formats import folder_images, write_folder

Pixels = NDArray[np.uint8]


class OneFile(Files):
    """A single file in memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__(Path("hostile"))
        self.content = content

    def images(self) -> dict[str, str]:
        return {"one.png": "0"}

    def read(self, name: str) -> bytes:
        return self.content


def read(content: bytes) -> torch.Tensor:
    """Read one image as the certification does."""
    return FileSource(OneFile(content), ["one.png"], np.zeros(1, np.int64), (3, 8, 8), centre_crop(8, 8)).bytes(
        np.zeros(1, np.int64)
    )


def save(pixels: Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def palette(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(16).save(file, "PNG")
    return file.getvalue()


ENCODINGS: dict[str, Callable[[Pixels], bytes]] = {
    "png": lambda p: save(p, "PNG"),
    "png-palette": palette,
    "jpeg": lambda p: save(p, "JPEG"),
    "jpeg-progressive": lambda p: save(p, "JPEG", progressive=True),
    "bmp": lambda p: save(p, "BMP"),
    "ppm": lambda p: save(p, "PPM"),
    "tiff": lambda p: save(p, "TIFF"),
    "tiff-lzw": lambda p: save(p, "TIFF", compression="tiff_lzw"),
    "webp": lambda p: save(p, "WEBP"),
    "webp-lossless": lambda p: save(p, "WEBP", lossless=True),
}


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Change a few bytes, cut, repeat, insert, or write an extreme number over a field."""
    data = bytearray(content)
    kind = random.integers(6)
    place = int(random.integers(len(data)))
    if kind <= 1:  # the head of the file decides most
        for _ in range(int(random.integers(1, 6))):
            data[int(random.integers(min(len(data), 64 if kind else len(data))))] = int(random.integers(256))
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = data[place : place + int(random.integers(1, 64))]
    elif kind == 4:
        data[place:place] = random.bytes(int(random.integers(1, 32)))
    else:
        extreme = struct.pack(">I" if random.integers(2) else "<I", int(random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF])))
        data[place : place + 4] = extreme
    return bytes(data)


def escapes(kind: str, mutations: int) -> list[str]:
    """Return what is neither an image of the right form nor one line that names the file."""
    random = np.random.default_rng(list(ENCODINGS).index(kind))
    whole = ENCODINGS[kind](random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    assert read(whole).shape == (1, 3, 8, 8)
    found = []
    for number in range(mutations):
        try:
            with warnings.catch_warnings(record=True) as said:
                image = read(mutated(whole, random))
            if image.shape != (1, 3, 8, 8) or image.dtype != torch.uint8 or said:
                found.append(f"{number}: {image.shape} {image.dtype} {said}")
        except CorruptDataError as error:
            if "\n" in str(error) or "hostile: one.png" not in str(error):
                found.append(f"{number}: {error!r}")
        except BaseException as error:
            found.append(f"{number}: {error!r}")
    return found


@pytest.mark.parametrize("kind", ENCODINGS)
def test_mutated_files_are_images_or_one_line(kind: str) -> None:
    assert escapes(kind, 40) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODINGS)
def test_many_mutated_files_are_images_or_one_line(kind: str) -> None:
    assert escapes(kind, 1500) == []


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of_size(15_000, 15_000), r"225000000 pixels"),
        (png_of_size(10_000, 10_000), r"100000000 pixels"),
        (png_of_size(2, 60_000), r"2 x 60000 pixels: too long and thin"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that PIL knows"),
        (b"", "no image that PIL knows"),
    ],
)
def test_huge_thin_and_foreign_files_are_named(content: bytes, message: str) -> None:
    with pytest.raises(CorruptDataError, match=f"hostile: one.png cannot be decoded .*{message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)  # no addresses of Python's objects


def test_a_limit_that_the_user_raises_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(np.zeros((64, 64, 3), np.uint8), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(CorruptDataError, match="4096 pixels"):
        read(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read(content).shape == (1, 3, 8, 8)


def write_damaged_zip(path: Path, change: Callable[[bytearray], None]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in folder_images(("train", "test")).items():
            archive.writestr(name, content)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def encrypt(data: bytearray) -> None:
    """Set the flag "encrypted" of every entry, at the data and in the directory."""
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)


def unknown_compression(data: bytearray) -> None:
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] = 97
            place = data.find(mark, place + 4)


def huge_entry(data: bytearray) -> None:
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + 24 : place + 28] = struct.pack("<I", 0xF0000000)
        place = data.find(b"PK\x01\x02", place + 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (encrypt, r"train/cat/000.png is damaged or cannot be unpacked .*password"),
        (unknown_compression, r"train/cat/000.png is damaged or cannot be unpacked .*compression"),
        (huge_entry, r"train/cat/000.png is damaged or cannot be unpacked \(4,026,531,840 bytes when unpacked"),
    ],
)
def test_encrypted_strange_and_swollen_archives_are_named(
    change: Callable[[bytearray], None], message: str, tmp_path: Path
) -> None:
    root = write_damaged_zip(tmp_path / "i.zip", change)
    module = ImageFolder(root=root, image_size=16)
    with pytest.raises(CorruptDataError, match=message) as caught:
        module.source("train").images(np.arange(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [CorruptDataError, MissingDataError])
def test_what_a_worker_says_is_its_error_alone(kind: type[Exception]) -> None:
    """As torch raises the error of a worker process again: its type, on a message that holds the whole traceback."""
    message = (
        f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        f"lightning_rs.data.errors.{kind.__name__}: data: a.png cannot be decoded\n"
    )
    assert str(kind(message)) == "data: a.png cannot be decoded"
    assert str(kind("data: as it is")) == "data: as it is"


def test_a_damaged_file_in_a_worker_is_one_line(tmp_path: Path) -> None:
    files = folder_images()
    files["test/dog/003.png"] = b"no image"
    view: View = ImageFolder(root=write_folder(tmp_path, files), image_size=16).dataset("test")
    loader = DataLoader(view, batch_size=8, num_workers=1, collate_fn=collate)
    with pytest.raises(CorruptDataError) as caught:
        list(loader)
    wanted = f"{tmp_path}: test/dog/003.png cannot be decoded (no image that PIL knows); replace the file"
    assert str(caught.value) == wanted


def test_errors_of_other_peoples_data_in_a_worker_are_one_line() -> None:
    message = (
        "Caught KeyError in DataLoader worker process 3.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\n    raise KeyError("x")\nKeyError: \'x\'\n'
    )
    assert shorten(message) == "in the data (DataLoader worker process 3): KeyError: 'x'"
