"""A decoded copy of many small image files: one memory-mapped uint8 array, rebuilt when it does not match."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_rs.checks import folder_for, naming
from lightning_rs.data.sources import FileSource

_CHUNK = 1024


def cache_key(parts: Iterable[str]) -> str:
    """Return a sha256 over everything that decides the content of a cache."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def decoded(folder: Path, name: str, key: str, source: FileSource) -> NDArray[np.uint8]:
    """Return the images of ``source`` in evaluation form, memory-mapped, shape ``(n, c, h, w)``.

    The first call decodes every file once into ``folder/name-KEY.npy`` with a sidecar of the array's sha256; later
    calls check that hash and map the array. A cache that fails the check is built again, with a warning. Files
    are put in place whole, so that processes that start together cannot read half a cache.

    Args:
        folder: cache directory; created if absent.
        name: readable part of the file name.
        key: from ``cache_key``; another key is another file.
        source: what to decode.
    """
    array_path = folder / f"{name}-{key[:16]}.npy"
    hash_path = array_path.with_suffix(".json")
    if array_path.exists() and hash_path.exists():
        if _matches(array_path, hash_path, key):
            return _mapped(array_path)
        warnings.warn(f"the image cache {array_path} does not match its hash; it is built again", stacklevel=2)
    folder_for(folder, "the cache")
    with naming(array_path):
        _build(array_path, hash_path, key, source)
    return _mapped(array_path)


def _build(array_path: Path, hash_path: Path, key: str, source: FileSource) -> None:
    partial = array_path.with_name(f".{array_path.stem}.{os.getpid()}.npy")
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(source), *source.shape))
        for start in range(0, len(source), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(source)))
            array[rows] = source.bytes(rows).numpy()
        array.flush()
        del array
        partial_hash = partial.with_suffix(".json")
        partial_hash.write_text(json.dumps({"key": key, "sha256": _sha256(partial)}))
        os.replace(partial, array_path)
        os.replace(partial_hash, hash_path)
    finally:
        partial.unlink(missing_ok=True)


def _matches(array_path: Path, hash_path: Path, key: str) -> bool:
    try:
        recorded = json.loads(hash_path.read_text())
    except ValueError:
        return False
    return bool(recorded == {"key": key, "sha256": _sha256(array_path)})


def _mapped(path: Path) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
