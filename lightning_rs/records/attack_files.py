"""Files of attack records: a binding header, one line an image, appended and flushed; resumed, never erased."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_rs.checks import folder_for, kind_of, naming, refuse_no_file
from lightning_rs.records.attack_contradictions import attack_contradiction
from lightning_rs.records.attacks import AttackRecord
from lightning_rs.records.certification import from_line, to_line
from lightning_rs.records.header import Header
from lightning_rs.records.writing import refuse_other_binding, write_complete

FORMAT = "lightning_rs attacks"
VERSION = 1
_MAGIC = b'{"format":"lightning_rs attacks"'


class AttackFile:
    """An open file of attack records.

    Opening a new path, or a file without any record, writes the header; opening another one cuts off a line that a
    killed process left unfinished and goes on, if the header binds the same.

    Args:
        path: the file; missing folders are created.
        header: what this run is about to do.

    Raises:
        ValueError: if the file is something else, is corrupt, or was made with another configuration.
        BlockingIOError: if another process is writing the file.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        refuse_no_file(path, "out")
        folder_for(path.parent, "the folder of out")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done = self._resume(header)
        except BlockingIOError as error:
            self.close()
            raise BlockingIOError(f"{path} is being written by another process: wait for it") from error
        except BaseException:
            self.close()
            raise

    def append(self, record: AttackRecord) -> None:
        """Write a record and force it to disk.

        Raises:
            ValueError: if the image is already recorded.
        """
        if record.index in self.done:
            raise ValueError(f"{self.path}: image {record.index} is already recorded")
        self._write(record.to_json())
        self.done.add(record.index)

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _resume(self, header: Header) -> set[int]:
        data = self.path.read_bytes()
        finished, newline, torn = data.rpartition(b"\n")
        if not newline:
            if data and not data.startswith(b'{"format"'):
                raise ValueError(f"{self.path}:1: not a file of attacks")
            os.ftruncate(self._fd, 0)
            self._write(_header_line(header))
            return set()
        theirs, records = _parse(self.path, finished)
        if not records:  # of a run that ended before its first image: nothing is bound yet
            os.ftruncate(self._fd, 0)
            self._write(_header_line(header))
            return set()
        refuse_other_binding(self.path, theirs, header)
        if torn:
            os.ftruncate(self._fd, len(finished) + 1)
        return {record.index for record in records}

    def _write(self, line: str) -> None:
        size = os.fstat(self._fd).st_size
        rest = memoryview((line + "\n").encode())
        try:
            with naming(self.path):
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
                os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, size)  # never half a line in the middle
            raise


def is_attack_file(path: str | Path) -> bool:
    """Return whether a file begins as files of attacks do."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.readline().startswith(_MAGIC)


def certification_sha256(header: Header) -> str:
    """Return what a file of attacks names the certifications by that it attacks: the hash of what binds them."""
    return hashlib.sha256(to_line(dict(header.binding)).encode()).hexdigest()


def read_attacks(path: str | Path) -> tuple[Header, list[AttackRecord]]:
    """Return the header and the records of a file, by index; an unfinished last line is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, for a foreign file, a corrupt line or an image that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        kind = kind_of(path)
        raise FileNotFoundError(f"no file of attacks at {path}{'' if kind == 'not there' else f', which is {kind}'}")
    header, records = _parse(path, path.read_bytes().rpartition(b"\n")[0])
    return header, sorted(records, key=lambda record: record.index)


def merge_attacks(paths: Sequence[str | Path], out: str | Path) -> int:
    """Merge the files of several shards or processes into a new one, in index order; return the number of images.

    Raises:
        ValueError: for other configurations, or an image in two files.
        FileExistsError: if ``out`` exists.
    """
    parts = [(Path(path), *read_attacks(path)) for path in paths]
    if not parts:
        raise ValueError("paths must name at least one file, got none")
    found: dict[int, AttackRecord] = {}
    for path, header, records in parts:
        refuse_other_binding(parts[0][0], parts[0][1], header, path)
        for record in records:
            if record.index in found:
                raise ValueError(f"{path}: image {record.index} is in another file as well")
            found[record.index] = record
    lines = [_header_line(parts[0][1]), *(found[index].to_json() for index in sorted(found))]
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; it is never overwritten: choose another name")
    write_complete(out, lines)
    return len(found)


def _header_line(header: Header) -> str:
    body = {"binding": dict(header.binding), "informative": dict(header.informative)}
    return to_line({"format": FORMAT, "version": VERSION, **body})


def _parse(path: Path, finished: bytes) -> tuple[Header, list[AttackRecord]]:
    try:
        first, *lines = finished.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a file of attacks: {error}") from error
    values = from_line(first, f"{path}:1")
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise ValueError(f"{path}:1: not a file of attacks: the first line must have the format {FORMAT!r}")
    for name in ("binding", "informative"):
        if not isinstance(values.get(name), dict):
            raise ValueError(f"{path}:1: {name} must be an object, got {values.get(name)!r}")
    if not isinstance(values["binding"].get("attacker", {}), dict):
        raise ValueError(f"{path}:1: attacker must be an object, got {values['binding']['attacker']!r}")
    records = [AttackRecord.from_json(line, f"{path}:{number}") for number, line in enumerate(lines, 2)]
    for number, record in enumerate(records, 2):
        wrong = attack_contradiction(record, values["binding"])
        if wrong:
            raise ValueError(f"{path}:{number}: image {record.index}: {wrong}")
    indices = [record.index for record in records]
    if len(set(indices)) < len(indices):
        raise ValueError(f"{path}: image {next(i for i in indices if indices.count(i) > 1)} occurs twice")
    return Header(values["binding"], values["informative"]), records
