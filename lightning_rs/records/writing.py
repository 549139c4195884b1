"""Writing record files: append-only, resumable, safe against being killed at any moment."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning_rs.checks import folder_for, kind_of, naming, refuse_no_file, renamed
from lightning_rs.records.certification import Certification, to_line
from lightning_rs.records.header import Header, environment
from lightning_rs.records.reading import is_record_file, is_sidecar, load, scan, sidecar_path


class RecordFile:
    """An open record file: header first, then one line an image, flushed to disk with every batch.

    Opening a new path writes the header. Opening an existing one resumes: a torn last line is cut off,
    :attr:`done` names the images that are there, and nothing finished is ever erased. Timings and the
    environment go to ``NAME.sidecar.jsonl``, so that bodies are equal between runs.

    Args:
        path: the file; missing folders are created.
        header: what this run is about to do. It must agree with the file's in all binding fields.

    Raises:
        ValueError: if the file is no record file, is corrupt, is of version 1, or has another binding configuration
            (the message names every difference); if the header lacks what files bind.
        BlockingIOError: if another process is writing the file.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        refuse_no_file(self.path, "records")
        folder_for(self.path.parent, "the folder of records")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._done = self._resume(header)
            self._note({"environment": environment(), "resumed_after": len(self._done)})
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Indices of the images that are recorded."""
        return frozenset(self._done)

    def append(self, certifications: Iterable[Certification], seconds: Sequence[float] | None = None) -> None:
        """Write records and force them to disk before returning.

        Args:
            certifications: the records; none of their images may be in the file already.
            seconds: wall-clock seconds that each image took, for the sidecar.

        Raises:
            ValueError: if an image is already recorded or ``seconds`` has another length.
        """
        records = list(certifications)
        if seconds is not None and len(seconds) != len(records):
            raise ValueError(f"seconds must hold one number a record, got {len(seconds)} for {len(records)} records")
        new: set[int] = set()
        for record in records:
            if record.index in self._done or record.index in new:
                raise ValueError(f"{self.path}: image {record.index} is already recorded")
            new.add(int(record.index))
        self._write("".join(record.to_json() + "\n" for record in records).encode())
        self._done |= new
        if seconds is not None:
            self._note(*({"index": r.index, **_timing(s)} for r, s in zip(records, seconds, strict=True)))

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)  # also releases the lock
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path} is being written by another process: wait for it, or give each process its own file"
            ) from error

    def _resume(self, header: Header) -> set[int]:
        if header.flaw is not None or header.legacy:
            raise ValueError(f"{self.path} cannot be written: {header.flaw or 'its header is of version 1'}")
        with open(self._fd, "rb", closefd=False) as file:
            contents = scan(self.path, file.read())
        if contents.header is not None:
            if contents.header.remark is not None:
                raise ValueError(
                    f"{self.path} {contents.header.remark}; it can be read, merged and exported, but not resumed: "
                    "record into another file"
                )
            refuse_other_binding(self.path, contents.header, header)
            changed = contents.header.warnings(header)
            if changed:
                warnings.warn(f"{self.path} is resumed although {'; '.join(changed)}", stacklevel=3)
        if contents.torn:
            os.ftruncate(self._fd, contents.complete)
        if contents.header is None:
            self._write((header.to_json() + "\n").encode())
            _sync_folder(self.path.parent)
        return {record.index for record in contents.records}

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
        size = os.fstat(self._fd).st_size
        try:
            with naming(self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
                os.fsync(self._fd)
        except BaseException:
            # A full disk or Ctrl-C must not leave half a line in the middle of the file.
            os.ftruncate(self._fd, size)
            raise

    def _note(self, *entries: dict[str, Any]) -> None:
        # The newline in front ends a line that a killed process may have left unfinished.
        lines = "".join("\n" + to_line(entry) for entry in entries)
        with naming(sidecar_path(self.path)), open(sidecar_path(self.path), "a") as sidecar:
            sidecar.write(lines)


def merge(paths: Sequence[str | Path], out: str | Path, expected_indices: Iterable[int] | None = None) -> int:
    """Merge the files of several processes or shards into one, in index order, and return its length.

    Files of version 1 give one of version 1, with a warning that says what it does not bind.

    Args:
        paths: record files with equal binding headers and disjoint images; sidecars are passed over.
        out: the merged file, written at once at the end. It is never overwritten; if it exists and says the
            same, nothing happens.
        expected_indices: images that must be there; None: those that the headers announce, if they do.

    Raises:
        ValueError: for another binding configuration, an unfinished line, repeated, missing or unexpected
            images, or an existing ``out`` that says something else.
        FileNotFoundError: if one of the files does not exist.
    """
    parts = [(Path(path), load(path)) for path in paths if not is_sidecar(path)]
    if not parts:
        raise ValueError("paths must name at least one record file, got none")
    header = parts[0][1].header
    assert header is not None
    found: dict[int, tuple[str, Path]] = {}
    seen: dict[int, str] = {}
    for path, part in parts:
        assert part.header is not None
        refuse_other_binding(parts[0][0], header, part.header, path)
        if part.torn:
            raise ValueError(f"{path}: the last line is unfinished: rerun its certification before merging")
        for record, line in zip(part.records, part.lines, strict=True):
            if record.index in found:
                other = "" if seen[record.index] == record.image else ", and another image there (its SHA-256 differs)"
                raise ValueError(f"image {record.index} is in both {found[record.index][1]} and {path}{other}")
            seen[record.index] = record.image
            found[record.index] = (line, path)
    expected = header.expected if expected_indices is None else list(expected_indices)
    if expected is not None:
        _refuse_gaps(set(found), set(expected))
    if header.remark is not None:
        warnings.warn(f"{out} {header.remark}", stacklevel=2)
    informative = {**header.informative, "merged": [path.name for path, _ in parts]}
    write_whole(out, Header(header.binding, informative, header.version), [found[index][0] for index in sorted(found)])
    return len(found)


def merge_sidecars(paths: Sequence[str | Path], out: str | Path) -> None:
    """Put the timings and environments of several record files beside the merged one."""
    sidecars = [sidecar_path(path) for path in paths if not is_sidecar(path)]
    texts = [sidecar.read_text(errors="replace") for sidecar in sidecars if sidecar.is_file()]
    with naming(sidecar_path(out)):
        sidecar_path(out).write_text("\n".join(texts))


def write_whole(out: str | Path, header: Header, lines: Sequence[str]) -> None:
    """Write a complete record file at once; an existing one is kept if it says the same, else refused."""
    out = Path(out)
    if out.exists():
        if not out.is_file():
            raise ValueError(f"out must be the name of a new file, got {out}, which is {kind_of(out)}")
        if not is_record_file(out):
            raise ValueError(f"{out} exists and is no record file; it is never overwritten: choose another name")
        existing = load(out)
        assert existing.header is not None
        if existing.header.difference(header) or existing.torn or existing.lines != list(lines):
            raise ValueError(f"{out} exists and holds other records; it is never overwritten: choose another name")
        return
    write_complete(out, [header.to_json(), *lines])


def write_complete(out: str | Path, lines: Iterable[str]) -> None:
    """Write a file of lines that is there as a whole or not at all: after a full disk or Ctrl-C nothing is left."""
    out = Path(out)
    folder_for(out.parent, "the folder of out")
    temporary = out.with_name(f".{out.name[:200]}.{os.getpid()}.tmp")
    try:
        with naming(out), open(temporary, "w") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise renamed(error, out) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(out.parent)


def refuse_other_binding(path: Path, header: Header, other: Header, other_path: Path | None = None) -> None:
    """Raise ``ValueError`` naming every binding field in which two headers differ."""
    differences = header.difference(other)
    if differences:
        against = "this run" if other_path is None else str(other_path)
        raise ValueError(f"{path} was made with another configuration than {against}: {'; '.join(differences)}")


def _refuse_gaps(found: set[int], expected: set[int]) -> None:
    for indices, trouble in ((expected - found, "missing"), (found - expected, "unexpected")):
        if indices:
            shown = ", ".join(map(str, sorted(indices)[:10])) + (", ..." if len(indices) > 10 else "")
            raise ValueError(f"cannot merge: {len(indices)} images are {trouble}: {shown}")


def _timing(seconds: float) -> dict[str, Any]:
    return {"seconds": float(seconds), "images_per_second": 1.0 / seconds if seconds > 0 else 0.0}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
