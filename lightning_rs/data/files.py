"""Folders and zip archives of images behind one interface."""

from __future__ import annotations

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, final

from lightning_rs.data.errors import CorruptDataError, MissingDataError, reason, shown

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MOST_BYTES = 1 << 30  # of one image file: more is a mistake or an attack
Identity = tuple[int, int]


class Files(ABC):
    """A tree of files under ``path``, named by their ``/``-separated relative path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def images(self) -> dict[str, str]:
        """Return image names, sorted, each with a stamp that changes when the file does."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file."""


@final
class FolderFiles(Files):
    """Files in a folder."""

    def images(self) -> dict[str, str]:
        """See ``Files.images``; the stamp is size and modification time. Links are followed, but no file counts twice.

        Raises:
            CorruptDataError: for a folder or an image that links make appear in two folders, a broken link, what is
                no file, and folders that may not be read.
        """
        found: dict[str, str] = {}
        seen: dict[tuple[int, int], str] = {}
        for relative in self._walk("", (), {}):
            status = self._status(relative)
            first = seen.setdefault((status.st_dev, status.st_ino), relative)
            if first == relative:
                found[relative] = f"{status.st_size}-{status.st_mtime_ns}"
            elif first.rpartition("/")[0] != relative.rpartition("/")[0]:
                self._twice(first, relative, "file")
        return dict(sorted(found.items()))

    def _walk(self, below: str, above: tuple[Identity, ...], seen: dict[Identity, str]) -> Iterator[str]:
        """Yield the images below a folder; links back to a folder around it are passed over."""
        status = self._status(below)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        if seen.setdefault(identity, below) != below:
            self._twice(seen[identity], below, "folder")
        try:
            entries = sorted(os.scandir(self.path / below), key=lambda entry: entry.name)
        except OSError as error:
            raise CorruptDataError(f"{self.path}: {shown(below)} cannot be read ({error.strerror})") from error
        for entry in entries:
            relative = f"{below}/{entry.name}".lstrip("/")
            if (self.path / relative).is_dir():
                if not _is_hidden(entry.name):
                    yield from self._walk(relative, (*above, identity), seen)
            elif _is_image(relative):
                yield relative

    def _status(self, relative: str) -> os.stat_result:
        try:
            status = (self.path / relative).stat()
        except OSError as error:  # a broken link, a circle of links
            raise CorruptDataError(f"{self.path}: {shown(relative)} cannot be read ({error.strerror})") from error
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise CorruptDataError(f"{self.path}: {shown(relative)} is neither a file nor a folder")
        return status

    def _twice(self, first: str, second: str, what: str) -> NoReturn:
        raise CorruptDataError(
            f"{self.path}: {shown(first)} and {shown(second)} are one {what}, so that images would count twice; remove "
            "the link"
        )

    def read(self, name: str) -> bytes:
        """See ``Files.read``."""
        return (self.path / name).read_bytes()


@final
class ZipFiles(Files):
    """Files in a zip archive, read in place."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: tuple[int, zipfile.ZipFile] | None = None

    def _archive(self) -> zipfile.ZipFile:
        # A forked worker must not share its parent's file offset: one handle per process.
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = (os.getpid(), zipfile.ZipFile(self.path))
            except Exception as error:  # the reader raises anything from BadZipFile to struct.error on a damaged file
                raise CorruptDataError(
                    f"{self.path} is no readable zip archive ({reason(error)}); replace the file"
                ) from error
        return self._handle[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open handle behind when pickled."""
        return {**self.__dict__, "_handle": None}

    def images(self) -> dict[str, str]:
        """See ``Files.images``; the stamp is size and CRC-32."""
        entries = {entry.filename: entry for entry in self._archive().infolist() if _is_image(entry.filename)}
        return {name: f"{entry.file_size}-{entry.CRC}" for name, entry in sorted(entries.items())}

    def read(self, name: str) -> bytes:
        """See ``Files.read``; the archive's CRC-32 is checked."""
        archive = self._archive()
        try:
            size = archive.getinfo(name).file_size
            if size > MOST_BYTES:
                raise ValueError(f"{size:,} bytes when unpacked, more than {MOST_BYTES:,}")
            return archive.read(name)
        except Exception as error:  # damaged, encrypted, an unknown compression: each has an exception of its own
            raise CorruptDataError(
                f"{self.path}: {shown(name)} is damaged or cannot be unpacked ({reason(error)}); replace the archive"
            ) from error


def open_files(path: Path, advice: str) -> Files:
    """Open a folder or a zip archive; raise ``MissingDataError`` if ``path`` is neither."""
    if path.is_dir():
        return FolderFiles(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipFiles(path)
    raise MissingDataError(f"ImageFolder: no folder and no zip archive at {path.absolute()}\n{advice}")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not any(map(_is_hidden, name.split("/")))


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX"))
