"""What tables and legends call the runs: given by the user, or the shortest readable names that tell them apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_rs.records import is_sidecar
from lightning_rs.records.reading import record_files

_HASH = re.compile(r"-[0-9a-f]{8}$")  # what the stage ends the name of a record file with
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def named_files(paths: Sequence[str | Path], names: Sequence[str] | Mapping[str, str] = ()) -> dict[Path, str]:
    """Return the record files that some paths mean, with the name of each.

    Args:
        paths: record files, or folders of them; sidecars are passed over, so that ``*.jsonl`` can be given.
        names: one a path, in their order; or each as ``PATH=NAME``, or a mapping, for some of the paths or of the
            files in their folders. A folder of several files gives its name to each, followed by the file's own.

    Raises:
        ValueError: if no file is given, one is given twice, or the names do not fit the paths or each other.
        FileNotFoundError: if a folder holds no record file.
    """
    found = record_files([path for path in paths if not is_sidecar(path)])
    files = [file for _, inside in found for file in inside]
    if not files:
        raise ValueError("paths must name at least one record file, got none")
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise ValueError(f"paths must not repeat a record file, got {', '.join(map(str, files))}")
    chosen = dict(zip(files, default_names(files), strict=True))
    chosen |= _given(found, files, names)
    called = list(chosen.values())
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        holders = ", ".join(str(file) for file, name in chosen.items() if name == twice)
        raise ValueError(f"names must differ, got {twice!r} for {holders}")
    return chosen


def default_names(files: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the files apart, without suffix, and without hash if possible.

    Characters that would break a line are shown as spaces, unless that makes two names one.
    """
    ends = _shortest_ends(files)
    for shorter in (lambda name: _CONTROL.sub(" ", _HASH.sub("", name)), lambda name: _CONTROL.sub(" ", name), ascii):
        names = [shorter(end) for end in ends]
        if len(set(names)) == len(names) and all(name.strip() for name in names):
            return names
    return ends


def _shortest_ends(files: Sequence[Path]) -> list[str]:
    parts = [Path(os.path.realpath(file)).with_suffix("").parts for file in files]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _given(
    found: Sequence[tuple[Path, list[Path]]], files: Sequence[Path], names: Sequence[str] | Mapping[str, str]
) -> dict[Path, str]:
    places = {os.path.normpath(path): inside for path, inside in found}
    places |= {os.path.normpath(file): [file] for file in files if os.path.normpath(file) not in places}
    if isinstance(names, Mapping):
        pairs, listed = list(names.items()), []
    else:
        split = [(name, *name.rpartition("=")[::2]) for name in names]
        pairs = [(path, name) for _, path, name in split if path and os.path.normpath(path) in places]
        listed = [whole for whole, path, _ in split if not (path and os.path.normpath(path) in places)]
    for path, _ in pairs:
        if os.path.normpath(path) not in places:
            raise ValueError(f"names must belong to paths that are given, got {path!r}; there are {', '.join(places)}")
    if listed and (pairs or len(listed) != len(found)):
        raise ValueError(
            f"names must be one a path ({len(found)}), or each PATH=NAME with a PATH that is given, got "
            f"{', '.join(map(repr, listed))}"
        )
    told: dict[Path, str] = {}
    for inside, name in [*((places[os.path.normpath(path)], name) for path, name in pairs),
                         *((inside, name) for (_, inside), name in zip(found, listed, strict=False))]:  # fmt: skip
        if not name.strip() or _CONTROL.search(name):
            raise ValueError(f"names must be one line of text, got {name!r}")
        if len(inside) == 1:
            told[inside[0]] = name
        else:
            told |= {file: f"{name}/{own}" for file, own in zip(inside, default_names(inside), strict=True)}
    return told
