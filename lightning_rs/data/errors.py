"""What can be wrong with data on disk: it is not there, or it is not what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MissingDataError(FileNotFoundError):
    """Data was not found; the message says what was looked for, where, and what to do."""


class CorruptDataError(RuntimeError):
    """Data was found but cannot be used; the message names the file and the fault."""


def missing_files(name: str, files: Sequence[Path], advice: str) -> MissingDataError:
    """Return the error for data set ``name`` whose ``files`` are absent."""
    listed = "".join(f"\n  {file.absolute()}" for file in files)
    return MissingDataError(f"{name}: data not found. Looked for:{listed}\n{advice}")


def check_files(name: str, files: Sequence[Path], advice: str) -> None:
    """Raise ``MissingDataError`` listing those of ``files`` that do not exist."""
    absent = [file for file in files if not file.exists()]
    if absent:
        raise missing_files(name, absent, advice)
