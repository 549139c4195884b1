"""The record files of one certification: one a rank while it runs, one when it is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_rs.records import Certification, Header, RecordFile, merge, read_records, sidecar_path
from lightning_rs.records.reading import scan
from lightning_rs.records.writing import refuse_other_binding


class RecordSet:
    """``NAME.jsonl`` and, with several ranks, ``NAME.rank0.jsonl``, ``NAME.rank1.jsonl``, ... until they are merged.

    Args:
        path: the final file.
        header: what binds it.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, path: Path, header: Header, rank: int, world_size: int) -> None:
        self.path = path
        self.header = header
        self._own = path if world_size == 1 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
        self._file: RecordFile | None = None

    @staticmethod
    def recorded_micro_batch(path: Path) -> int | None:
        """Return the micro-batch size that an existing file was made with."""
        for part in (path, *RecordSet._rank_files(path)):
            if part.is_file() and part.stat().st_size:
                return int(read_records(part)[0].binding["runtime"]["micro_batch"])
        return None

    def done(self) -> set[int]:
        """Return the indices recorded in any of the files.

        Raises:
            ValueError: if a file is corrupt or has another binding configuration.
        """
        done: set[int] = set()
        for part in self._parts():
            contents = scan(part, part.read_bytes())
            if contents.header is not None:
                refuse_other_binding(part, contents.header, self.header)
            done |= {record.index for record in contents.records}
        return done

    def open(self) -> None:
        """Open this rank's file for appending."""
        self._file = RecordFile(self._own, self.header)

    def append(self, record: Certification, seconds: float) -> None:
        """Write one record to disk."""
        assert self._file is not None
        self._file.append([record], [seconds])

    def close(self) -> None:
        """Release this rank's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self, expected: Sequence[int]) -> None:
        """Merge the ranks' files into the final one if all images are there; a lone final file stays as it is."""
        parts = self._without_copies(self._parts())
        if parts == [self.path] or not set(expected) <= self.done():
            return
        merged = self.path.with_name(f".{self.path.name}.merged")
        merged.unlink(missing_ok=True)
        merge(parts, merged, expected)
        with open(sidecar_path(self.path), "a") as sidecar:
            for part in parts:
                if part != self.path:
                    sidecar.write(sidecar_path(part).read_text() if sidecar_path(part).is_file() else "")
        os.replace(merged, self.path)
        for part in parts:
            if part != self.path:
                part.unlink()
                sidecar_path(part).unlink(missing_ok=True)

    def read(self) -> list[Certification]:
        """Return all records that are there, in index order."""
        found = [record for part in self._parts() for record in read_records(part)[1]]
        return sorted(found, key=lambda record: record.index)

    def _parts(self) -> list[Path]:
        return [part for part in (self.path, *self._rank_files(self.path)) if part.is_file()]

    @staticmethod
    def _rank_files(path: Path) -> list[Path]:
        return sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}")) if path.parent.is_dir() else []

    def _without_copies(self, parts: list[Path]) -> list[Path]:
        # A process killed between the merge and the clean-up leaves rank files that the final file contains.
        if self.path not in parts:
            return parts
        final = {record.index: record for record in read_records(self.path)[1]}
        kept = [self.path]
        for part in parts[1:]:
            records = read_records(part)[1]
            if all(final.get(record.index) == record for record in records):
                part.unlink()
                sidecar_path(part).unlink(missing_ok=True)
            else:
                kept.append(part)
        return kept
