"""What comes with the package: configurations and checkpoints, found by name from any folder.

In a checkout they lie at the top level, ``configs/`` and ``checkpoints/``; an installed package has the same files
inside. A name is what stands below that folder, with or without the folder and the suffix: ``certify/fast``,
``configs/certify/fast.yaml``. A file of the user's always comes first.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
_SUFFIXES = {"configs": (".yaml", ".yml"), "checkpoints": (".ckpt",)}


def folder(kind: str) -> Path:
    """Return the folder of the shipped "configs" or "checkpoints".

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    for place in (_PACKAGE / kind, _PACKAGE.parent / kind):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"this installation of lightning_rs has no {kind}: looked in {_PACKAGE}; install it again")


def names(kind: str) -> dict[str, Path]:
    """Return the shipped files by name ("certify/fast"), sorted."""
    root, suffix = folder(kind), _SUFFIXES[kind][0]
    files = sorted(root.rglob(f"*{suffix}"))
    return {file.relative_to(root).as_posix().removesuffix(suffix): file for file in files}


def config_path(name: str) -> str:
    """Return the file that ``-c name`` means: the user's own, else the shipped one.

    Raises:
        FileNotFoundError: if there is neither, naming the nearest shipped ones.
    """
    found = find(name, "configs")
    if found is not None:
        return found
    near = ", ".join(difflib.get_close_matches(_own_name(name, "configs"), names("configs"), n=3, cutoff=0.5))
    hint = f"did you mean {near}? " if near else ""
    raise FileNotFoundError(
        f"config must be a file or the name of a shipped one, got {name!r}; {hint}`lightning_rs configs` lists them"
    )


def checkpoint_path(path: str | Path) -> str:
    """Return the checkpoint that a path or a name of a shipped one means; what is neither stays as it is."""
    return find(path, "checkpoints") or str(path)


def find(name: str | Path, kind: str) -> str | None:
    """Return the user's file of this name, else the shipped one, else None."""
    if Path(name).is_file():
        return str(name)
    shipped = names(kind).get(_own_name(name, kind))
    return None if shipped is None else str(shipped)


def manifest() -> list[Mapping[str, Any]]:
    """Return what is known of the shipped checkpoints, one entry a file."""
    entries: list[Mapping[str, Any]] = json.loads((folder("checkpoints") / "manifest.json").read_text())["checkpoints"]
    return entries


def _own_name(name: str | Path, kind: str) -> str:
    text = Path(name).as_posix()
    suffix = next((s for s in _SUFFIXES[kind] if text.endswith(s)), "")
    return text.removesuffix(suffix).removeprefix(f"{kind}/")
