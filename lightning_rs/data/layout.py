"""What the folders of an image data set mean: splits or classes. What could be both is an error that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_rs.data.errors import CorruptDataError, MissingDataError, shown
from lightning_rs.data.files import EXTENSIONS, Files

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """Image names by split and class.

    Attributes:
        splits: for each of ``train``, ``val``, ``test`` that is present (or for ``all``), names and class names.
        class_names: classes, sorted; the position is the label.
    """

    splits: dict[str, list[tuple[str, str]]]
    class_names: tuple[str, ...]


def read_layout(files: Files, advice: str, folders: Mapping[str, str] | None = None) -> Layout:
    """Find ``[prefix/]split/class/.../image`` or, without split folders, ``[prefix/]class/.../image``.

    Folders that contain everything else (the prefix) are passed over. Splits are recognised whatever the case:
    train, training; val, valid, validation; test, testing.

    Args:
        files: the data.
        advice: what errors say at their end.
        folders: the folder of each split; other folders beside them are left out. Empty: there are no split folders,
            every folder is a class. None: as recognised.

    Raises:
        MissingDataError: if there are no images, fewer than two classes, or split folders without ``train``.
        CorruptDataError: if folders could be splits as well as classes, a split has a class that ``train`` has not, or
            an image lies outside class folders.
    """
    paths = {name: name.split("/") for name in files.images()}
    if not paths:
        raise MissingDataError(f"ImageFolder: no images ({', '.join(EXTENSIONS)}) in {files.path.absolute()}\n{advice}")
    depth = _prefix_depth(list(paths.values()))
    below = [parts[depth:] for parts in paths.values()]
    split_of = _recognised(files, below, advice) if folders is None else _named(files, below, folders, advice)
    splits: dict[str, list[tuple[str, str]]] = {}
    for name, parts in zip(paths, below, strict=True):
        if folders and parts[0] not in split_of:
            continue
        inside = parts[1:] if split_of else parts
        if len(inside) < 2:
            raise CorruptDataError(f"{files.path}: {shown(name)} lies in no class folder\n{advice}")
        splits.setdefault(split_of.get(parts[0], "all"), []).append((name, inside[0]))
    return Layout(splits, _class_names(files, splits, advice))


def _prefix_depth(paths: list[list[str]]) -> int:
    """Count leading folders that all paths share; what is left has at least two different names at the top."""
    first, last = min(paths)[:-1], max(paths)[:-1]  # what these two share, all share: the order is lexicographic
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    return depth


def _recognised(files: Files, below: list[list[str]], advice: str) -> dict[str, str]:
    """Return the split of each top folder; empty if they are classes."""
    inside = _inside(below)
    split_of = {top: _SPLITS[top.lower()] for top in inside if top.lower() in _SPLITS}
    if len(split_of) == len(inside) > 1:
        if len(set(split_of.values())) < len(split_of):
            _refuse(files, below, "two folders mean one split", advice)
        return split_of
    # A folder of images can be a class whatever its name: trains, among other vehicles.
    nested = {top for top, names in inside.items() if names}
    like = {top: split for top in inside if (split := _alike(top)) is not None}
    if len(split_of) > 1 or like.keys() & nested:
        _refuse(files, below, "some folders look like splits, and some do not", advice)
    shared = [top for top in nested if any(len(inside[top] & inside[other]) > 1 for other in nested - {top})]
    if len(shared) > 1 or (len(set(like.values())) > 1 and like.keys() == inside.keys()):
        _refuse(files, below, "the folders could be splits or classes", advice)
    return {}


def _alike(top: str) -> str | None:
    """Return the split that a folder's name reminds of ("train_set", "Test2017"), or None."""
    words = re.split(r"[^a-z]+", top.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _named(files: Files, below: list[list[str]], folders: Mapping[str, str], advice: str) -> dict[str, str]:
    """Return the split of each folder that the user named."""
    unknown = sorted(set(folders) - set(_SPLITS.values()))
    absent = sorted(set(folders.values()) - {parts[0] for parts in below})
    if unknown:
        raise ValueError(f"folders must name those of train, val and test, got {unknown[0]!r}")
    if absent:
        _refuse(files, below, f"there is no folder {absent[0]!r}", advice)
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"folders must name a folder of its own for each split, got {dict(folders)}")
    return {top: split for split, top in folders.items()}


def _inside(below: list[list[str]]) -> dict[str, set[str]]:
    """Return the folders within each top folder (images at the top have none)."""
    inside: dict[str, set[str]] = {}
    for top, *rest in below:
        if rest:
            inside.setdefault(top, set()).update(rest[:-1][:1])
    return inside


def _refuse(files: Files, below: list[list[str]], why: str, advice: str) -> None:
    inside = _inside(below)
    count = {top: sum(parts[0] == top for parts in below) for top in inside}
    found = [f"{shown(top)}/ ({count[top]} images, {len(names)} folders)" for top, names in sorted(inside.items())]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    raise CorruptDataError(
        f"{files.path}: {why}: found {', '.join(found[:8])}{more}. Say what is meant with folders "
        "(--data.init_args.folders): {train: FOLDER, test: FOLDER} leaves others out, {} makes every folder a class.\n"
        f"{advice}"
    )


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
