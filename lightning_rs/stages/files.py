"""The record files of one certification: one a rank while it runs, one when it is done."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_rs.records import Certification, Header, RecordFile, merge, merge_sidecars, read_records, sidecar_path
from lightning_rs.records.reading import scan


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
        """Return the micro-batch size that existing files were made with."""
        for part in (path, *_rank_files(path)):
            header = scan(part, part.read_bytes()).header if part.is_file() else None
            if header is not None:
                return int(header.binding["runtime"]["micro_batch"])
        return None

    def resume(self) -> set[int]:
        """Repair the files that are there and return the indices recorded in any of them.

        Done by one process, before any :meth:`open`: files may come from another number of processes.

        Raises:
            ValueError: if a file is corrupt or has another binding configuration.
            BlockingIOError: if another run is writing one of the files.
        """
        done: set[int] = set()
        try:
            for part in self._parts():
                if part == self._own:
                    self.open()
                    assert self._file is not None
                    done |= self._file.done
                else:
                    with RecordFile(part, self.header) as file:
                        done |= file.done
        except BaseException:
            self.close()
            raise
        return done

    def open(self) -> None:
        """Open this rank's file for appending, if it is not open yet."""
        if self._file is None:
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

    def recorded(self) -> set[int]:
        """Return the indices recorded in any of the files, without touching them."""
        return {record.index for part in self._parts() for record in scan(part, part.read_bytes()).records}

    def merge(self, expected: Sequence[int]) -> None:
        """Merge the ranks' files into the final one if all images are there; a lone final file stays as it is."""
        parts = self._without_copies(self._parts())
        if parts == [self.path] or not set(expected) <= self.recorded():
            return
        merged = self.path.with_name(f".{self.path.name}.merged")
        merged.unlink(missing_ok=True)
        merge(parts, merged, expected)
        merge_sidecars(parts, merged)
        # The records first: a process killed here leaves copies, which the next run removes.
        os.replace(merged, self.path)
        os.replace(sidecar_path(merged), sidecar_path(self.path))
        self._remove([part for part in parts if part != self.path])

    def read(self) -> list[Certification]:
        """Return all records that are there, in index order."""
        found = [record for part in self._parts() for record in read_records(part)[1]]
        return sorted(found, key=lambda record: record.index)

    def _parts(self) -> list[Path]:
        return [part for part in (self.path, *_rank_files(self.path)) if part.is_file()]

    def _without_copies(self, parts: list[Path]) -> list[Path]:
        # A process killed between the merge and the clean-up leaves rank files that the final file contains.
        if self.path not in parts:
            return parts
        final = {record.index: record for record in read_records(self.path)[1]}
        copies = [
            part
            for part in parts
            if part != self.path and all(final.get(record.index) == record for record in read_records(part)[1])
        ]
        self._remove(copies)
        return [part for part in parts if part not in copies]

    @staticmethod
    def _remove(parts: Sequence[Path]) -> None:
        for part in parts:
            part.unlink()
            sidecar_path(part).unlink(missing_ok=True)


def _rank_files(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    found = path.parent.glob(f"{glob.escape(path.stem)}.rank*{glob.escape(path.suffix)}")
    return sorted(part for part in found if part.name[len(path.stem) + 5 : -len(path.suffix) or None].isdigit())
