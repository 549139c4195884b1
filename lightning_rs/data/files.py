"""Folders and zip archives of images behind one interface, and the layout of an image folder."""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_rs.data.errors import CorruptDataError, MissingDataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
        """See ``Files.images``; the stamp is size and modification time."""
        found: dict[str, str] = {}
        for folder, _, names in os.walk(self.path, followlinks=True):
            for path in (Path(folder, name) for name in names):
                relative = path.relative_to(self.path).as_posix()
                if _is_image(relative):
                    status = path.stat()
                    found[relative] = f"{status.st_size}-{status.st_mtime_ns}"
        return dict(sorted(found.items()))

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
            except zipfile.BadZipFile as error:
                raise CorruptDataError(f"{self.path} is no readable zip archive ({error}); replace the file") from error
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
        try:
            return self._archive().read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorruptDataError(f"{self.path}: {name} is damaged ({error}); replace the archive") from error


def open_files(path: Path, advice: str) -> Files:
    """Open a folder or a zip archive; raise ``MissingDataError`` if ``path`` is neither."""
    if path.is_dir():
        return FolderFiles(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipFiles(path)
    raise MissingDataError(f"ImageFolder: no folder and no zip archive at {path.absolute()}\n{advice}")


@dataclass(frozen=True)
class Layout:
    """Image names by split and class.

    Attributes:
        splits: for each of ``train``, ``val``, ``test`` that is present (or for ``all``), names and class names.
        class_names: classes, sorted; the position is the label.
    """

    splits: dict[str, list[tuple[str, str]]]
    class_names: tuple[str, ...]


def read_layout(files: Files, advice: str) -> Layout:
    """Find ``[prefix/]split/class/.../image`` or, without split folders, ``[prefix/]class/.../image``.

    Folders that contain everything else (the prefix) are passed over.

    Raises:
        MissingDataError: if there are no images, fewer than two classes, or split folders without ``train``.
        CorruptDataError: if a split has a class that ``train`` has not, or an image lies outside class folders.
    """
    paths = {name: name.split("/") for name in files.images()}
    if not paths:
        raise MissingDataError(f"ImageFolder: no images ({', '.join(EXTENSIONS)}) in {files.path.absolute()}\n{advice}")
    depth = _prefix_depth(list(paths.values()))
    tops = {parts[depth] for parts in paths.values()}
    split_of = SPLITS if len(tops & SPLITS.keys()) > 1 else {}
    if split_of and not tops <= SPLITS.keys():
        raise CorruptDataError(f"{files.path}: {sorted(tops - SPLITS.keys())} beside the split folders\n{advice}")
    splits: dict[str, list[tuple[str, str]]] = {}
    for name, parts in paths.items():
        below = parts[depth + 1 :] if split_of else parts[depth:]
        if len(below) < 2:
            raise CorruptDataError(f"{files.path}: {name} lies in no class folder\n{advice}")
        splits.setdefault(split_of.get(parts[depth], "all"), []).append((name, below[0]))
    return Layout(splits, _class_names(files, splits, advice))


def _prefix_depth(paths: list[list[str]]) -> int:
    """Count leading folders that all paths share; what is left has at least two different names at the top."""
    first, last = min(paths)[:-1], max(paths)[:-1]  # what these two share, all share: the order is lexicographic
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    return depth


def _class_names(files: Files, splits: dict[str, list[tuple[str, str]]], advice: str) -> tuple[str, ...]:
    training = splits.get("all") or splits.get("train")
    if training is None:
        raise MissingDataError(f"ImageFolder: no train folder beside {sorted(splits)} in {files.path}\n{advice}")
    classes = sorted({label for _, label in training})
    if len(classes) < 2:
        raise MissingDataError(f"ImageFolder: only one class ({classes[0]}) in {files.path.absolute()}\n{advice}")
    for split, images in splits.items():
        unknown = sorted({label for _, label in images} - set(classes))
        if unknown:
            raise CorruptDataError(f"{files.path}: {split} has classes that train has not: {unknown[:8]}\n{advice}")
    return tuple(classes)


def _is_image(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.lower().endswith(EXTENSIONS) and not hidden
