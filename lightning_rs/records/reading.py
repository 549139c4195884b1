"""Reading record files: every line is checked, an unfinished last line is tolerated and reported."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_rs.checks import kind_of
from lightning_rs.records.certification import Certification
from lightning_rs.records.collection import Certifications
from lightning_rs.records.header import FORMAT, Header
from lightning_rs.records.tables import looks_like_table
from lightning_rs.records.verification import theorems_of, verify

_MAGIC = f'{{"format":"{FORMAT}"'.encode()
_SIDECAR = ".sidecar.jsonl"


@dataclass(frozen=True)
class Contents:
    """A record file as it is on disk.

    Attributes:
        header: its first line; None while nothing but a part of it was written.
        records: the certifications in the order of the file.
        lines: their lines, in the same order.
        complete: number of bytes up to the end of the last finished line.
        torn: whether a part of a line follows, left by a process that was killed.
    """

    header: Header | None
    records: list[Certification]
    lines: list[str]
    complete: int
    torn: bool


def scan(path: Path, data: bytes) -> Contents:
    """Parse the bytes of a record file.

    Raises:
        ValueError: naming file and line, for a foreign file, a corrupt finished line or a repeated index.
    """
    finished, newline, tail = data.rpartition(b"\n")
    if not newline:
        if data and not (data.startswith(_MAGIC) or _MAGIC.startswith(data)):
            raise ValueError(_foreign(path, data))
        return Contents(None, [], [], 0, bool(data))
    if not data.startswith(b"{"):
        raise ValueError(_foreign(path, data))
    texts = [_decode(path, number, raw) for number, raw in enumerate(finished.split(b"\n"), 1)]
    header = Header.from_json(texts[0], f"{path}:1")
    combined = "combined" in header.binding
    # First: certificates of others are imported, which records then name.
    theorems = [] if combined else theorems_of(path, header)
    records = [Certification.from_json(text, f"{path}:{number}") for number, text in enumerate(texts[1:], 2)]
    _refuse_repeats(path, records)
    if combined:
        from lightning_rs.records.combined import verify_combined  # it reads the files that it combines

        verify_combined(path, header, records)
    else:
        verify(path, header, theorems, records)
    return Contents(header, records, texts[1:], len(finished) + 1, bool(tail))


def read_records(path: str | Path) -> tuple[Header, Certifications]:
    """Return the header and the certifications of a file, sorted by index: a list with ``to_pandas()``.

    An unfinished last line, as a killed run leaves it, is ignored with a warning; the file is not changed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, if a finished line is corrupt.
    """
    contents = load(path)
    assert contents.header is not None
    if contents.torn:
        warnings.warn(f"{path}: the last line is unfinished and was ignored; rerun to complete the file", stacklevel=2)
    return contents.header, Certifications(sorted(contents.records, key=lambda record: record.index))


def body_lines(path: str | Path) -> list[str]:
    """Return the lines of all records in index order: equal between runs that should agree."""
    contents = load(path)
    order = sorted(range(len(contents.lines)), key=lambda i: contents.records[i].index)
    return [contents.lines[i] for i in order]


def load(path: str | Path) -> Contents:
    """Return the contents of a file that has a header."""
    path = Path(path)
    if not path.is_file():
        kind = kind_of(path)
        raise FileNotFoundError(f"no record file at {path}{'' if kind == 'not there' else f', which is {kind}'}")
    contents = scan(path, path.read_bytes())
    if contents.header is None:
        raise ValueError(f"{path}:1: the header is missing or unfinished: the run was killed before its first record")
    return contents


def sidecar_path(path: str | Path) -> Path:
    """Return where the timings and the environment of a record file are kept: ``NAME.sidecar.jsonl``."""
    return Path(path).with_suffix(_SIDECAR)


def is_sidecar(path: str | Path) -> bool:
    """Return whether a path names a sidecar; ``*.jsonl`` on a command line matches them too."""
    return str(path).endswith(_SIDECAR)


def is_record_file(path: str | Path) -> bool:
    """Return whether a file begins as record files do."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def record_files(paths: Sequence[str | Path]) -> list[tuple[Path, list[Path]]]:
    """Return each path with the record files that it means: itself, or those in the folder and the folders in it.

    Raises:
        FileNotFoundError: if a folder holds none.
    """
    found = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob("*.jsonl") if is_record_file(file)) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"no record file in the folder {path}")
        found.append((path, inside))
    return found


def read_seconds(path: str | Path) -> dict[int, float]:
    """Return the seconds each image took, by index, from the sidecar of a record file; empty if there is none.

    The sidecar is a convenience: lines that are not timings are skipped.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return {}
    entries = [_entry(line) for line in sidecar.read_text(errors="replace").splitlines()]
    return {entry["index"]: float(entry["seconds"]) for entry in entries if {"index", "seconds"} <= entry.keys()}


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _foreign(path: Path, data: bytes) -> str:
    first = data.partition(b"\n")[0].decode("utf-8-sig", errors="replace")
    message = f"{path}:1: not a record file: the first line must be a header with format {FORMAT!r}"
    if not looks_like_table(path, first):
        return message
    return (
        f"{message}; if it is a table of radii, import it first: python -m lightning_rs import {path} "
        f"--out {path.name.partition('.')[0]}.jsonl --sigma SIGMA --n N --alpha ALPHA; "
        "report does it by itself when it is told --sigma, --n and --alpha"
    )


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not a line of UTF-8 text: {error}") from error


def _refuse_repeats(path: Path, records: list[Certification]) -> None:
    first: dict[int, int] = {}
    for number, record in enumerate(records, 2):
        if record.index in first:
            raise ValueError(f"{path}:{number}: image {record.index} is already on line {first[record.index]}")
        first[record.index] = number
