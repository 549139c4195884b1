"""What can be wrong with data on disk: it is not there, or it is not what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MissingDataError(FileNotFoundError):
    """Data was not found; the message says what was looked for, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(_said_by_worker(message, type(self)))


class CorruptDataError(RuntimeError):
    """Data was found but cannot be used; the message names the file and the fault."""

    def __init__(self, message: str) -> None:
        super().__init__(_said_by_worker(message, type(self)))


def reason(error: BaseException) -> str:
    """Return what a reader said, in one line; its type if it said nothing."""
    said = " ".join(str(error).split())
    return said if len(said) > 3 else f"{type(error).__name__} {said}".strip()


def shown(name: str) -> str:
    """Return a file's name as one line that any terminal shows."""
    return name if name.isprintable() else ascii(name)


def _said_by_worker(message: str, kind: type[Exception]) -> str:
    """Return the message alone: a loader's worker process sends its whole traceback instead of the error."""
    if not message.startswith(f"Caught {kind.__name__} in "):
        return message
    return message.partition(f".{kind.__name__}: ")[2].strip() or message


def missing_files(name: str, files: Sequence[Path], advice: str) -> MissingDataError:
    """Return the error for data set ``name`` whose ``files`` are absent."""
    listed = "".join(f"\n  {file.absolute()}" for file in files)
    return MissingDataError(f"{name}: data not found. Looked for:{listed}\n{advice}")


def check_files(name: str, files: Sequence[Path], advice: str) -> None:
    """Raise ``MissingDataError`` listing those of ``files`` that do not exist."""
    absent = [file for file in files if not file.exists()]
    if absent:
        raise missing_files(name, absent, advice)
